"""A diagnosis classifier as a folder: load, save, probabilities and features of images.

``config.json`` says which network, labels and preprocessing; ``model.safetensors`` holds the
weights. The same folder is the quality gate of sampling and a feature extractor of evaluation.
Shapes: N images, L labels, D features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils import images as pictures
from utils.backbones import Network, build_network
from utils.cli import UserError
from utils.network_folder import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_files,
    hash_weights,
    load_weights,
    save_network,
)
from utils.run_folder import sha256_file

FORMAT = 1
CPU_BATCH = 16  # as fast as more, and fixed: the last bits of a sum depend on the batch's size
_KINDS = {
    "backbone": str,
    "labels": list,
    "multi_label": bool,
    "resolution": int,
    "resize_mode": str,
    "mean": (int, float),
    "std": (int, float),
    "data_hash": str,
    "initial_weights": str,
}


@dataclass(frozen=True)
class ClassifierConfig:
    """What the weights need to be understood.

    Attributes:
        backbone: ``small`` or a torchvision model name.
        labels: Names of the L outputs, in order.
        multi_label: Independent (sigmoid) outputs instead of exclusive ones (softmax).
        resolution: Side of the network's input in pixels.
        resize_mode: How images are brought to it, see ``utils.images.resize``.
        mean: Mean gray value of the training images in [0, 1]; used by ``small``.
        std: Standard deviation of the gray values; used by ``small``.
        data_hash: Fingerprint of the training data.
        initial_weights: What the backbone started from, in words.
        format: Version of this folder's layout.
    """

    backbone: str
    labels: tuple[str, ...]
    multi_label: bool
    resolution: int
    resize_mode: str
    mean: float
    std: float
    data_hash: str
    initial_weights: str = "random weights"
    format: int = FORMAT


def to_gray(image: Image.Image, *, resolution: int, resize_mode: str) -> np.ndarray:
    """The network's view of an image: (H, W) uint8, H = W = resolution.

    Colour is dropped: the scans are gray, and a generator's faint tint is no finding. A random
    crop is a matter of training only; here it is the central one.
    """
    mode = "center_crop" if resize_mode == "random_crop" else resize_mode
    return np.array(pictures.resize(image.convert("L"), resolution, mode), dtype=np.uint8)


def to_unit(gray: torch.Tensor) -> torch.Tensor:
    """(B, H, W) uint8 to the (B, 1, H, W) float32 in [0, 1] that networks and augmentation take."""
    return gray.unsqueeze(1).float() / 255


def probabilities(logits: torch.Tensor, *, multi_label: bool) -> torch.Tensor:
    """Logits (B, L) to probabilities (B, L): sigmoid if ``multi_label``, else softmax."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(dim=1)


class Classifier:
    """A trained network with its labels and preprocessing, ready to judge images."""

    def __init__(self, config: ClassifierConfig, network: Network, *, device: str = "cpu"):
        """Take over a network and move it to ``device``."""
        self.config = config
        self.device = device
        self.network = network.to(device)
        self._sha256: str | None = None

    @classmethod
    def load(cls, path: Path | str, *, device: str = "cpu") -> Classifier:
        """Read a classifier folder.

        Raises:
            FileNotFoundError: If the folder or one of its two files is missing.
            UserError: If the configuration is broken or the weights do not fit it.
        """
        folder = Path(path)
        config = read_config(folder)
        network = build_network(
            config.backbone,
            num_labels=len(config.labels),
            resolution=config.resolution,
            seed=0,
            mean=config.mean,
            std=config.std,
        )
        load_weights(network, folder)
        classifier = cls(config, network, device=device)
        classifier._sha256 = sha256_file(folder / WEIGHTS_NAME)
        return classifier

    def save(self, path: Path | str) -> None:
        """Write the folder, the configuration last."""
        save_network(self.network, asdict(self.config), Path(path))
        self._sha256 = sha256_file(Path(path) / WEIGHTS_NAME)

    @property
    def labels(self) -> list[str]:
        """Names of the outputs, in order."""
        return list(self.config.labels)

    @property
    def multi_label(self) -> bool:
        """Whether labels may occur together."""
        return self.config.multi_label

    @property
    def resolution(self) -> int:
        """Side of the network's input in pixels."""
        return self.config.resolution

    @property
    def sha256(self) -> str:
        """SHA-256 of the weight file, the same before and after saving."""
        if self._sha256 is None:
            self._sha256 = hash_weights(self.network)
        return self._sha256

    def predict(
        self,
        images: Iterable[Image.Image],
        *,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Probabilities of the labels; arguments as in ``predict_and_features``.

        Returns:
            (N, L) float32: softmax, or sigmoid if ``multi_label``.
        """
        return self.predict_and_features(images, batch_size=batch_size, progress=progress)[0]

    def features(
        self,
        images: Iterable[Image.Image],
        *,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Penultimate layer; arguments as in ``predict_and_features``.

        Returns:
            (N, D) float32.
        """
        return self.predict_and_features(images, batch_size=batch_size, progress=progress)[1]

    def predict_and_features(
        self,
        images: Iterable[Image.Image],
        *,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and features in one pass.

        Args:
            images: PIL images of any mode and size, read one batch at a time.
            batch_size: Images at once on another device than the CPU; changes the speed, and
                there the last bits. On a CPU an image's numbers depend on that image alone:
                batches hold ``CPU_BATCH`` images, a last one that is not full is padded.
            progress: Called with the number of images of each batch done, as ``tqdm.update``.

        Returns:
            (N, L) and (N, D), both float32.
        """
        view = {"resolution": self.resolution, "resize_mode": self.config.resize_mode}
        gray = (to_gray(image, **view) for image in images)
        return self.predict_gray(gray, batch_size=batch_size, progress=progress)

    @torch.inference_mode()
    def predict_gray(
        self,
        gray: Iterable[np.ndarray],
        *,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As ``predict_and_features``, for images that ``to_gray`` has prepared."""
        self.network.eval()
        probs = [np.empty((0, len(self.labels)), np.float32)]
        feats = [np.empty((0, self.network.head.in_features), np.float32)]
        fixed = torch.device(self.device).type == "cpu"
        for batch in batched(gray, CPU_BATCH if fixed else batch_size):
            padding = batch[-1:] * (CPU_BATCH - len(batch)) if fixed else []
            pixels = torch.from_numpy(np.stack(batch + padding)).to(self.device)
            features = self.network.features(to_unit(pixels))
            outputs = probabilities(self.network.head(features), multi_label=self.multi_label)
            probs.append(outputs[: len(batch)].cpu().numpy())
            feats.append(features[: len(batch)].float().cpu().numpy())
            if progress is not None:
                progress(len(batch))
        return np.concatenate(probs), np.concatenate(feats)


def batched(items: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Lists of ``size`` items, the last one shorter (``itertools.batched`` needs Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def read_config(folder: Path) -> ClassifierConfig:
    """A classifier folder's configuration, every field checked; no weights are read.

    Raises:
        FileNotFoundError: If the folder or one of its two files is missing.
        UserError: If the configuration is broken.
    """
    hint = "; semi_supervised.py writes one as OUTPUT_DIR/classifier"
    check_files(folder, what="classifier", hint=hint)
    path = folder / CONFIG_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path}: not JSON: {error}") from error
    names = [field.name for field in fields(ClassifierConfig)]
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path}: not the configuration of a classifier of format {FORMAT}")
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing")
    for name, kind in _KINDS.items():
        if not isinstance(found[name], kind):
            raise UserError(f"{path}: {name} is {found[name]!r}")
    config = ClassifierConfig(**{name: found[name] for name in names})
    labels = config.labels
    named = all(isinstance(label, str) and label for label in labels)
    if not labels or not named or len(set(labels)) < len(labels):
        raise UserError(f"{path}: labels must be different names, not {labels!r}")
    if config.resolution < 1 or config.resize_mode not in pictures.RESIZE_MODES:
        raise UserError(
            f"{path}: resolution {config.resolution} and resize_mode {config.resize_mode!r} "
            "do not make an image"
        )
    if not config.std > 0:
        raise UserError(f"{path}: std is {config.std}, not above 0")
    return replace(config, labels=tuple(labels))
