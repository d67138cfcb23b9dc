"""Feature networks behind one interface: PIL images in, arrays out.

A network is named on the command line and loaded from files of the user; none is downloaded and
none replaces another. Shapes: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from utils.backbone_weights import read_state
from utils.classifier import Classifier, batched
from utils.cli import UserError
from utils.extractor_names import CLASSIFIER_PREFIX, TORCHVISION_FILE
from utils.inception import INPUT_PX, NUM_FEATURES, FidInception
from utils.run_folder import sha256_file

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
        sha256: Of the weight file.
        weights: Path of the weight file.
        note: One sentence on what its numbers compare with.
    """

    name: str
    dim: int
    sha256: str
    weights: str
    note: str

    def extract(
        self,
        images: Iterable[Image.Image],
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> Features:
        """Features of images of any size, mode ``L`` or ``RGB``; N may be 0.

        Args:
            images: Read one batch at a time.
            batch_size: Images at once; changes speed and memory, not the result.
            progress: Called with the number of images of each batch done, as ``tqdm.update``.
        """
        ...


def load_extractor(
    name: str, *, weights: Path | None = None, device: str = "cpu", offline: bool = True
) -> FeatureExtractor:
    """Load a feature network.

    Args:
        name: ``inception``, ``torchvision-inception`` or ``classifier:DIR``.
        weights: Its weight file; not for a classifier, whose folder holds it.
        device: Where it runs.
        offline: Nothing is downloaded in either case; here for extractors with hub names.

    Raises:
        UserError: If the name is unknown or the file does not hold this network's weights.
        FileNotFoundError: If a file is missing.
    """
    if name.startswith(CLASSIFIER_PREFIX):
        return ClassifierFeatures(name, device=device)
    if weights is None:
        raise UserError(f"the extractor {name} needs its weight file")
    if name == "inception":
        return FidInceptionFeatures(weights, device=device)
    if name == "torchvision-inception":
        return TorchvisionInceptionFeatures(weights, device=device)
    raise UserError(f"there is no feature extractor {name!r}")


class FidInceptionFeatures:
    """FID's Inception: pool features (2048) and unbiased logits (1008)."""

    name, dim = "inception", NUM_FEATURES
    note = "Inception v3 of the FID, as in torch-fidelity and pytorch-fid."

    def __init__(self, weights: Path, *, device: str):
        """Read the weight file; pickled code in it is never run."""
        self.network = FidInception.load(read_state(weights), source=str(weights)).to(device)
        self.sha256, self.weights, self.device = sha256_file(weights), str(weights), device

    def extract(
        self,
        images: Iterable[Image.Image],
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> Features:
        """See ``FeatureExtractor.extract``."""
        run = {"device": self.device, "batch_size": batch_size, "progress": progress}
        return _run(self.network, _rgb, images, **run)


class TorchvisionInceptionFeatures:
    """torchvision's Inception v3: another network, whose distance is not an FID."""

    name, dim = "torchvision-inception", 2048
    note = "torchvision's Inception v3: not the FID's network, no published FID compares."

    def __init__(self, weights: Path, *, device: str):
        """Read torchvision's weight file; pickled code in it is never run."""
        from torchvision.models import inception_v3

        self.network = inception_v3(weights=None, init_weights=False, transform_input=False)
        try:
            self.network.load_state_dict(read_state(weights))
        except RuntimeError as error:
            raise UserError(
                f"{weights}: not the weights of torchvision's Inception v3; use {TORCHVISION_FILE}"
            ) from error
        self.head = self.network.fc.requires_grad_(False).to(device)
        self.network.fc = torch.nn.Identity()
        self.network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.sha256, self.weights, self.device = sha256_file(weights), str(weights), device

    def extract(
        self,
        images: Iterable[Image.Image],
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> Features:
        """See ``FeatureExtractor.extract``."""
        run = {"device": self.device, "batch_size": batch_size, "progress": progress}
        return _run(self._forward, _rgb_299, images, **run)

    def _forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, 299, 299) uint8 to pool features (N, 2048) and logits (N, 1000)."""
        pool = self.network(pixels / 127.5 - 1)  # the range this network was trained on
        return pool, self.head(pool)


class ClassifierFeatures:
    """A diagnosis classifier's penultimate layer; logits unless labels may occur together."""

    note = "A diagnosis classifier of this project: compares only with the same classifier."

    def __init__(self, name: str, *, device: str):
        """Load the folder named after the prefix."""
        folder = Path(name.removeprefix(CLASSIFIER_PREFIX))
        self.classifier = Classifier.load(folder, device=device)
        self.name, self.weights = name, str(folder)
        self.dim = self.classifier.network.head.in_features
        self.sha256 = self.classifier.sha256

    def extract(
        self,
        images: Iterable[Image.Image],
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> Features:
        """See ``FeatureExtractor.extract``."""
        probabilities, pool = self.classifier.predict_and_features(
            images, batch_size=batch_size, progress=progress
        )
        if self.classifier.multi_label:
            return Features(pool, None)
        smallest = np.finfo(np.float32).tiny
        return Features(pool, np.log(np.maximum(probabilities, smallest)))


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def _rgb_299(image: Image.Image) -> np.ndarray:
    small = image.convert("RGB").resize((INPUT_PX, INPUT_PX), Image.Resampling.BILINEAR)
    return np.asarray(small)


@torch.inference_mode()
def _run(
    network: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    prepare: Callable[[Image.Image], np.ndarray],
    images: Iterable[Image.Image],
    *,
    device: str,
    batch_size: int,
    progress: Progress | None,
) -> Features:
    """Pass images through a network; images of one batch that differ in size go one by one."""
    pools, logits = [], []
    for batch in batched(map(prepare, images), batch_size):
        same = len({pixels.shape for pixels in batch}) == 1
        for stack in [batch] if same else [[pixels] for pixels in batch]:
            tensor = torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)  # N x 3 x H x W
            pool, logit = network(tensor.to(device))
            pools.append(pool.float().cpu().numpy())
            logits.append(logit.float().cpu().numpy())
        if progress is not None:
            progress(len(batch))
    if not pools:
        return Features(np.empty((0, NUM_FEATURES), np.float32), None)
    return Features(np.concatenate(pools), np.concatenate(logits))


def concatenate(parts: Sequence[Features]) -> Features:
    """The features of several batches of the same network as one."""
    logits = [part.logits for part in parts if part.logits is not None]
    return Features(
        np.concatenate([part.pool for part in parts]), np.concatenate(logits) if logits else None
    )
