"""An embedding in which an image lies near its own copies: save, load, embed.

``utils.copy_training`` trains it. ``config.json`` says what the network was trained on and how it
sees an image; ``model.safetensors`` holds the weights.
Shapes: N images, B images of a batch, D embedding values, H = W = resolution.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm

from utils.backbones import SMALL_WIDTHS, Network, SmallBackbone
from utils.classifier import batched, to_gray, to_unit
from utils.cli import UserError
from utils.images import RESIZE_MODES
from utils.network_folder import (
    CONFIG_NAME,
    check_files,
    hash_weights,
    load_weights,
    save_network,
)

FORMAT = 1
KIND = "copy_detector"
GRID_SIDE = 4
INNER_BATCH = 32  # of `embed`: another batch size may add in another order


@dataclass(frozen=True)
class DetectorConfig:
    """What the weights need to be understood, and what they were trained on.

    Attributes:
        resolution: Side of the network's input in pixels.
        resize_mode: How images are brought to it, see ``utils.images.resize``.
        embedding_dim: D.
        mean: Mean gray value of the training images in [0, 1].
        std: Standard deviation of the gray values.
        num_images: Training images.
        data_hash: Fingerprint of the training images as the network sees them.
        options: ``DetectorOptions`` of the training.
        kind: Tells the folder from a classifier's.
        format: Version of this folder's layout.
    """

    resolution: int
    resize_mode: str
    embedding_dim: int
    mean: float
    std: float
    num_images: int
    data_hash: str
    options: dict[str, object]
    kind: str = KIND
    format: int = FORMAT


class CopyDetector:
    """A trained embedding with its preprocessing."""

    def __init__(self, config: DetectorConfig, network: Network, *, device: str = "cpu"):
        """Take over a network and move it to ``device``."""
        self.config = config
        self.device = device
        self.network = network.to(device).eval()

    @classmethod
    def load(cls, path: Path | str, *, device: str = "cpu") -> CopyDetector:
        """Read a folder that ``save`` wrote.

        Raises:
            FileNotFoundError: If the folder or one of its two files is missing.
            UserError: If the configuration is broken or the weights do not fit it.
        """
        folder = Path(path)
        check_files(folder, what="copy detector")
        config = _read_config(folder / CONFIG_NAME)
        network = build_detector_network(config, seed=0)
        load_weights(network, folder)
        return cls(config, network, device=device)

    def save(self, path: Path | str) -> None:
        """Write the folder, the configuration last."""
        save_network(self.network, asdict(self.config), Path(path))

    @property
    def sha256(self) -> str:
        """SHA-256 of the weight file, the same before and after saving."""
        return hash_weights(self.network)

    @torch.inference_mode()
    def embed(
        self, images: Iterable[Image.Image | np.ndarray], *, progress: tqdm | None = None
    ) -> np.ndarray:
        """Embeddings; an image and its mirror image have the same.

        On the CPU the bytes of an embedding do not depend on the images around it.

        Args:
            images: PIL images, or (H, W) uint8 arrays, of any size.
            progress: Moved on by the number of images of each batch.

        Returns:
            (N, D) float32 of unit length.
        """
        side = self.config.resolution
        found = [np.empty((0, self.config.embedding_dim), np.float32)]
        grays = gray_views(images, resolution=side, resize_mode=self.config.resize_mode)
        for batch in batched(grays, INNER_BATCH):
            padded = np.zeros((INNER_BATCH, side, side), np.uint8)
            padded[: len(batch)] = batch
            pixels = to_unit(torch.from_numpy(padded).to(self.device))
            both = [F.normalize(self.network(view), dim=1) for view in (pixels, pixels.flip(-1))]
            vectors = F.normalize(both[0] + both[1], dim=1)
            found.append(vectors[: len(batch)].float().cpu().numpy())
            if progress is not None:
                progress.update(len(batch))
        return np.concatenate(found)


def gray_views(
    images: Iterable[Image.Image | np.ndarray], *, resolution: int, resize_mode: str
) -> Iterator[np.ndarray]:
    """Images as the network sees them, (H, W) uint8 each."""
    for image in images:
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        yield to_gray(picture, resolution=resolution, resize_mode=resize_mode)


class GridBackbone(nn.Module):
    """The classifier's small network, but its last map is pooled to a coarse grid, not to a point.

    Where things lie tells one retina from another; what there is, they all share.
    """

    feature_dim = SMALL_WIDTHS[-1] * GRID_SIDE**2

    def __init__(self):
        super().__init__()
        self.layers = SmallBackbone().layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, 2048) of normalised images (B, 1, H, W)."""
        return F.adaptive_avg_pool2d(self.layers(x), GRID_SIDE).flatten(1)


def build_detector_network(config: DetectorConfig, *, seed: int) -> Network:
    """The network with random weights, the same for the same seed; its head gives the embedding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = GridBackbone()
        network = Network(
            backbone, backbone.feature_dim, config.embedding_dim, [config.mean], [config.std]
        )
    return network.to(memory_format=torch.channels_last)


def _read_config(path: Path) -> DetectorConfig:
    """The configuration, checked."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path}: not JSON: {error}") from error
    names = {field.name for field in fields(DetectorConfig)}
    ours = isinstance(found, dict) and (found.get("kind"), found.get("format")) == (KIND, FORMAT)
    if not ours or set(found) != names:
        raise UserError(f"{path}: not the configuration of a copy detector of format {FORMAT}")
    numbers = [found[name] for name in ("resolution", "embedding_dim", "mean", "std")]
    sound = all(isinstance(number, int | float) for number in numbers)
    if not sound or min(numbers) <= 0 or found["resize_mode"] not in RESIZE_MODES:
        raise UserError(f"{path}: resolution, embedding_dim, mean, std or resize_mode is no such")
    return DetectorConfig(**found)
