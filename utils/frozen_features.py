"""Features of images by a network that is not trained, made once and kept on disk by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from utils.classifier import CPU_BATCH, Classifier
from utils.gray_images import GrayImages
from utils.network_folder import hash_weights
from utils.shard_building import Job, fill
from utils.tensor_shards import Space

KEY_BYTES = 16
_BLOCK = 4 * CPU_BATCH  # images between two moves of the progress bar
_MAX_ENTRIES = 512  # of a shard, which is what is lost if the run is killed
_WHAT = (
    "features of images by hashes of their pixels; images cannot be decoded from them, but two "
    "features tell whether two images are alike: as confidential as the images. May be deleted."
)


def frozen_features(
    classifier: Classifier, images: GrayImages, *, folder: Path, name: str, state
) -> np.ndarray:
    """Features (N, D) float32 of N images; those on disk are not computed again.

    Args:
        classifier: Whose backbone is used.
        images: At the size of its input.
        folder: Of the cache, which all processes of ``accelerate launch`` share.
        name: For the progress bar.
        state: ``PartialState``; all processes call this and share the work.
    """
    digests = [hashlib.sha256(pixels.tobytes()).digest()[:KEY_BYTES] for pixels in images]
    keys = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), KEY_BYTES)
    backbone = classifier.network.backbone
    facts = {
        "backbone": classifier.config.backbone,
        "weights": hash_weights(backbone),
        "gray": [classifier.config.mean, classifier.config.std],
        "resolution": classifier.resolution,
        "computed_on": f"{torch.device(classifier.device).type}, torch {torch.__version__}",
    }
    shape = (classifier.network.head.in_features,)
    space = Space(folder, "frozen", facts, shape, torch.float32, KEY_BYTES)

    def make(positions: np.ndarray) -> Iterator[torch.Tensor]:
        for start in range(0, len(positions), _BLOCK):
            part = images.take(positions[start : start + _BLOCK])
            yield torch.from_numpy(classifier.predict_gray(part)[1])

    job = Job(space, _WHAT, keys, make, f"features: {name}", "img", "--output_dir", _MAX_ENTRIES)
    return fill(job, state, set()).gather().numpy()
