"""Feature networks behind one interface: PIL images in, arrays out.

A network is named on the command line and loaded from the user's files or a hub name; none
replaces another. Shapes: N images of H x W pixels and C channels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from utils.classifier import Classifier, to_gray, to_unit
from utils.cli import UserError
from utils.extractor_names import CLASSIFIER_PREFIX, WEIGHT_FILES

CPU_BATCH = 8  # near the fastest, and fixed: the last bits of a sum depend on the batch's size

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Features:
    """What a network says about N images.

    Attributes:
        pool: (N, D) float32, the layer that distances are measured in.
        logits: (N, K) float32 of exclusive classes; None if the network has none.
    """

    pool: np.ndarray
    logits: np.ndarray | None


class FeatureExtractor(Protocol):
    """A network with its preprocessing.

    Attributes:
        name: As on the command line.
        dim: D.
        num_logits: K; 0 if the network has no exclusive classes.
        sha256: Of the weights.
        weights: Path of the weight file or folder, or its name on the hub.
        note: One sentence on what its numbers compare with.
        input_px: Side of the network's input.
        device: Where it runs.
    """

    name: str
    dim: int
    num_logits: int
    sha256: str
    weights: str
    note: str
    input_px: int
    device: str

    @property
    def facts(self) -> Mapping[str, object]:
        """All that the numbers depend on besides the image it is given, in JSON's types."""
        ...

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A square image, mode ``L`` or ``RGB``, as (H, W, C) uint8; pure, for any thread."""
        ...

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, H, W, C) uint8 on the device to pool (N, D) and logits (N, K), float32."""
        ...


def load_extractor(
    name: str, *, weights: Path | str | None = None, device: str = "cpu", offline: bool = True
) -> FeatureExtractor:
    """Load a feature network.

    Args:
        name: A key of ``extractor_names.WEIGHT_FILES``, or ``classifier:DIR``.
        weights: Its weight file; for ``clip`` and ``dinov2`` a folder or a name on the hub; not
            for a classifier, whose folder holds it.
        device: Where it runs.
        offline: Whether a download is forbidden; only hub names are ever downloaded.

    Raises:
        UserError: If the name is unknown or the file does not hold this network's weights.
        FileNotFoundError: If a classifier's file is missing.
    """
    if name.startswith(CLASSIFIER_PREFIX):
        return ClassifierFeatures(name, device=device)
    if name not in WEIGHT_FILES:
        raise UserError(f"there is no feature extractor {name!r}")
    if weights is None:
        raise UserError(f"the extractor {name} needs its weights: {WEIGHT_FILES[name]}")
    if name in ("inception", "torchvision-inception"):
        from utils.inception_features import FidInceptionFeatures, TorchvisionInceptionFeatures

        kinds = {"inception": FidInceptionFeatures}
        return kinds.get(name, TorchvisionInceptionFeatures)(Path(weights), device=device)
    if name == "vit":
        from utils.vit_features import VitFeatures

        return VitFeatures(Path(weights), device=device)
    from utils.hub_features import ClipFeatures, DinoFeatures  # transformers takes a second

    kind = ClipFeatures if name == "clip" else DinoFeatures
    return kind(str(weights), device=device, offline=offline)


class ClassifierFeatures:
    """A diagnosis classifier's penultimate layer; logits unless labels may occur together."""

    note = "A diagnosis classifier of this project: compares only with the same classifier."

    def __init__(self, name: str, *, device: str):
        """Load the folder named after the prefix."""
        folder = Path(name.removeprefix(CLASSIFIER_PREFIX))
        self.classifier = Classifier.load(folder, device=device)
        self.classifier.network.eval()
        self.name, self.weights, self.device = name, str(folder), device
        self.dim = self.classifier.network.head.in_features
        self.num_logits = 0 if self.classifier.multi_label else len(self.classifier.labels)
        self.sha256, self.input_px = self.classifier.sha256, self.classifier.resolution
        self.facts = {
            "name": CLASSIFIER_PREFIX,  # the same wherever its folder lies
            "sha256": self.sha256,
            "input_px": self.input_px,
            "preprocessing": asdict(self.classifier.config),
            "pooling": "penultimate layer; log-probabilities",
        }

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The classifier's own view of an image, (H, W, 1) uint8."""
        config = self.classifier.config
        view = {"resolution": config.resolution, "resize_mode": config.resize_mode}
        return to_gray(image, **view)[:, :, None]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, H, W, 1) uint8 to pool features (N, D) and log-probabilities (N, K)."""
        network = self.classifier.network
        pool = network.features(to_unit(pixels[..., 0]))
        return pool, network.head(pool).log_softmax(dim=1) if self.num_logits else None


def extract(
    extractor: FeatureExtractor,
    images: Iterable[Image.Image],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Features:
    """Features of square images, mode ``L`` or ``RGB``; N may be 0. See ``run_network``."""
    prepared = map(extractor.prepare, images)
    return run_network(extractor, prepared, batch_size=batch_size, progress=progress)


@torch.inference_mode()
def run_network(
    extractor: FeatureExtractor,
    prepared: Iterable[np.ndarray],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Features:
    """Features of images that ``extractor.prepare`` has prepared, in their order.

    On a CPU an image's numbers depend on that image alone, to the last bit: batches hold
    ``CPU_BATCH`` images of one shape, a last one that is not full is padded.

    Args:
        extractor: The network.
        prepared: N arrays (H, W, C) uint8, read as they are needed; shapes may differ.
        batch_size: Images at once on another device; changes the speed, and there the last bits.
        progress: Called with the number of images of each batch done, as ``tqdm.update``.
    """
    fixed = torch.device(extractor.device).type == "cpu"
    size = CPU_BATCH if fixed else batch_size
    indices: list[int] = []
    pools = [np.empty((0, extractor.dim), np.float32)]
    logits = [np.empty((0, extractor.num_logits), np.float32)]
    for batch in _batches_of_one_shape(prepared, size):
        stack = [pixels for _, pixels in batch]
        if fixed:
            stack += stack[-1:] * (size - len(stack))
        pixels = torch.from_numpy(np.stack(stack)).to(extractor.device)
        pool, logit = extractor.forward(pixels)
        indices += [index for index, _ in batch]
        pools.append(pool[: len(batch)].float().cpu().numpy())
        if logit is not None:
            logits.append(logit[: len(batch)].float().cpu().numpy())
        if progress is not None:
            progress(len(batch))
    order = np.argsort(indices)
    has_logits = extractor.num_logits > 0
    return Features(
        np.concatenate(pools)[order], np.concatenate(logits)[order] if has_logits else None
    )


def _batches_of_one_shape(
    prepared: Iterable[np.ndarray], size: int
) -> Iterable[list[tuple[int, np.ndarray]]]:
    """Indices and pixels of up to ``size`` images that can be stacked."""
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for index, pixels in enumerate(prepared):
        batch = waiting.setdefault(pixels.shape, [])
        batch.append((index, pixels))
        if len(batch) == size:
            yield waiting.pop(pixels.shape)
    yield from waiting.values()
