"""Training of a copy detector: tell the training images apart whatever is done to them.

Follows Dar et al. 2024 (https://arxiv.org/abs/2402.01054), who find memorised training images of
medical diffusion models in such an embedding, with the contrastive loss of Chen et al. 2020.
Shapes: N images, B images of a batch, D embedding values, H = W = resolution.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils.augmentation import add_noise, mirror, regrade, smooth
from utils.classifier import to_unit
from utils.classifier_optim import Precision, learning_rate_at, parameter_groups, update_average
from utils.cli import UserError
from utils.copy_detector import CopyDetector, DetectorConfig, build_detector_network
from utils.precision import has_fast_bf16
from utils.shuffled_batches import epoch_batches

MIN_IMAGES = 2  # a contrast needs another image
MIN_CROP_AREA = 0.7  # of the image; a copy cropped further may not be found
MAX_CROP_STRETCH = 1.1  # of the crop's width against its height, either way


@dataclass(frozen=True)
class DetectorOptions:
    """How to train.

    Attributes:
        resolution: Side of the network's input in pixels.
        embedding_dim: D.
        batch_size: Images a step; each is seen in two views.
        views_per_image: Pairs of views of each image in all, which sets the steps:
            ``N * views_per_image / batch_size``, from ``min_steps`` to ``max_steps``.
        min_steps: Of few images.
        max_steps: Of many.
        learning_rate: Peak of the schedule (warm-up over a tenth, then a cosine).
        weight_decay: Of AdamW.
        temperature: Of the loss.
        ema_decay: Of the average of the weights, which is what is kept.
        seed: Of weights, order and views.
    """

    resolution: int = 96
    embedding_dim: int = 128
    batch_size: int = 64
    views_per_image: int = 40
    min_steps: int = 300
    max_steps: int = 5000
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    temperature: float = 0.05
    ema_decay: float = 0.99
    seed: int = 0

    def num_steps(self, num_images: int) -> int:
        """Steps for N images."""
        wanted = round(num_images * self.views_per_image / self.batch_size)
        return min(self.max_steps, max(self.min_steps, wanted))


def train_copy_detector(
    gray: np.ndarray,
    options: DetectorOptions,
    *,
    resize_mode: str = "center_crop",
    device: str = "cpu",
) -> CopyDetector:
    """Train on the images whose copies are to be found, and on no others.

    Args:
        gray: (N, H, W) uint8, H = W = ``options.resolution``, as ``gray_views`` gives them.
        options: How.
        resize_mode: By which the images were brought to size; ``embed`` does the same.
        device: Where; on the CPU the same seed gives the same bytes.

    Raises:
        UserError: With fewer than two images, or if the loss is no longer finite.
    """
    if len(gray) < MIN_IMAGES:
        raise UserError(
            f"--train_dir: {len(gray)} image(s); a copy detector needs {MIN_IMAGES} or more"
        )
    config = DetectorConfig(
        resolution=options.resolution,
        resize_mode=resize_mode,
        embedding_dim=options.embedding_dim,
        mean=float(gray.mean()) / 255,
        std=max(1.0, float(gray.std())) / 255,  # flat images have none
        num_images=len(gray),
        data_hash=hash_images(gray),
        options=asdict(options),
    )
    network = build_detector_network(config, seed=options.seed).to(device).train()
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(parameter_groups(network, options.weight_decay))
    generator = torch.Generator(device).manual_seed(options.seed)
    precision = Precision(device, "bf16" if has_fast_bf16(torch.device(device).type) else "no")
    num_steps = options.num_steps(len(gray))
    with tqdm(total=num_steps, desc="copy detector", unit="step") as bar:
        for step, indices in enumerate(_plan(len(gray), num_steps, options)):
            images = to_unit(torch.from_numpy(gray[indices]).to(device))
            views = torch.cat([view(images, generator), view(images, generator)])
            with precision.autocast():
                embeddings = network(views)
            loss = nt_xent(embeddings.float(), temperature=options.temperature)
            rate = learning_rate_at(step, total_steps=num_steps, peak=options.learning_rate)
            precision.descend(loss, optimizer, network, rate=rate)
            update_average(average, network, decay=options.ema_decay, step=step + 1)
            bar.update()
            if step % 20 == 0 or step + 1 == num_steps:
                _show(bar, float(loss.detach()), step)
    return CopyDetector(config, average, device=device)


def hash_images(gray: np.ndarray) -> str:
    """SHA-256 of images (N, H, W) uint8."""
    return hashlib.sha256(np.ascontiguousarray(gray).data).hexdigest()


def nt_xent(embeddings: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy: find an image's other view among all views.

    Chen et al. 2020, SimCLR, equation 1 (https://arxiv.org/abs/2002.05709).

    Args:
        embeddings: (2 B, D); rows i and i + B are two views of one image.
        temperature: Divides the cosines; > 0.

    Returns:
        The mean loss over the 2 B rows.
    """
    count = len(embeddings)
    unit = F.normalize(embeddings, dim=1)
    cosines = (unit @ unit.T / temperature).fill_diagonal_(-math.inf)  # never itself
    partner = torch.arange(count, device=unit.device).roll(count // 2)
    return F.cross_entropy(cosines, partner)


def view(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One view of each image: what may be done to a copy without its being another image.

    Mirrored (half of them), cropped and resized, smoothed as a blur, a small latent grid or a VAE
    does it, gamma, contrast and brightness, noise; see ``utils.augmentation``.

    Args:
        images: (B, 1, H, W) float32 in [0, 1].
        generator: On their device.
    """
    images = resized_crop(mirror(images, generator), generator)
    return add_noise(regrade(smooth(images, generator), generator), generator)


def resized_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random part of at least ``MIN_CROP_AREA`` of each image, brought back to full size."""
    drawn = torch.rand((4, len(images)), generator=generator, device=images.device)
    area = MIN_CROP_AREA + (1 - MIN_CROP_AREA) * drawn[0]
    stretch = torch.exp((2 * drawn[1] - 1) * math.log(MAX_CROP_STRETCH) / 2)
    width, height = (area.sqrt() * stretch).clamp_max(1), (area.sqrt() / stretch).clamp_max(1)
    zero = torch.zeros_like(area)
    across = torch.stack([width, zero, (1 - width) * (2 * drawn[2] - 1)], dim=1)
    down = torch.stack([zero, height, (1 - height) * (2 * drawn[3] - 1)], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _plan(count: int, num_steps: int, options: DetectorOptions) -> Iterator[np.ndarray]:
    """Indices (B,) of every step."""
    order = torch.Generator().manual_seed(options.seed)
    done = 0
    while done < num_steps:
        for indices in epoch_batches(count, options.batch_size, order):
            if done == num_steps:
                return
            yield indices
            done += 1


def _show(bar: tqdm, loss: float, step: int) -> None:
    """Write the loss beside the bar; stop where there is none."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of the copy detector is not finite at step {step + 1}")
    bar.set_postfix(loss=f"{loss:.3f}")
