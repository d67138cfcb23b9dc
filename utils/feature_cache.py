"""Features of an image set, made once and kept on disk by the images' content and the network.

An entry's key is the hash of the image's pixels; its folder tells the network's weights and
preprocessing, the resolution and the resize mode. So a renamed file is found again, and of a grown
set only the new images pass through the network. All processes of ``accelerate launch`` share the
work; every function here that takes ``state`` is called on each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import torch

from utils.classifier import batched
from utils.features import FeatureExtractor, Features, run_network
from utils.image_files import DIGEST_BYTES
from utils.image_sets import ImageSet
from utils.pixel_digests import digest_pixels
from utils.reconstruction import Reconstruction
from utils.shard_building import Job, fill
from utils.tensor_shards import Space

FLAG = "--feature_cache_dir"
BLOCK = 64  # images between two moves of the progress bar, at least
_SHARD_ENTRIES = {True: 512, False: 4096}  # on a CPU or not: half a minute's work of either
_WHAT = (
    "features of images by hashes of their pixels; images cannot be decoded from them, but two "
    "features tell whether two images are alike: as confidential as the images. May be deleted."
)


def digests_of(images: ImageSet, *, state, folder: Path) -> np.ndarray:
    """Hash of every image's pixels as its file holds them, (N, 16) uint8."""
    return digest_pixels(images.dataset.records, folder, state)


def cached_features(
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    digests: np.ndarray,
    state,
    folder: Path,
    batch_size: int,
    reconstruction: Reconstruction | None = None,
) -> Features:
    """Features of N images; those not on disk yet are computed and kept.

    Args:
        images: The images.
        extractor: The network.
        digests: (N, 16) of `digests_of`.
        state: ``PartialState`` or ``Accelerator``; tells the process's share.
        folder: The cache's folder, which all processes share.
        batch_size: Images at once on a GPU; changes speed and memory.
        reconstruction: Passes each image through a VAE first.
    """
    facts = {
        "network": dict(extractor.facts),
        "resolution": images.resolution,
        "resize_mode": images.resize_mode,
        "pillow": PIL.__version__,
        "computed_on": f"{torch.device(extractor.device).type}, torch {torch.__version__}",
        "vae": reconstruction.sha256 if reconstruction else None,
    }
    width = extractor.dim + extractor.num_logits
    space = Space(folder, "features", facts, (width,), torch.float32, DIGEST_BYTES)

    def make(positions: np.ndarray) -> Iterator[torch.Tensor]:
        pixels = _read(images, extractor, positions, reconstruction)
        for block in batched(pixels, max(BLOCK, batch_size)):
            found = run_network(extractor, block, batch_size=batch_size)
            parts = [found.pool] if found.logits is None else [found.pool, found.logits]
            yield torch.from_numpy(np.concatenate(parts, axis=1))

    what = f"{images.name} {'reconstructions' if reconstruction else 'images'}"
    what = f"{extractor.name.split(':')[0]}: {what}"
    job = Job(space, _WHAT, digests, make, what, "img", FLAG, _SHARD_ENTRIES[_is_cpu(extractor)])
    values = fill(job, state, set()).gather().numpy()
    logits = values[:, extractor.dim :] if extractor.num_logits else None
    return Features(values[:, : extractor.dim], logits)


def _is_cpu(extractor: FeatureExtractor) -> bool:
    return torch.device(extractor.device).type == "cpu"


def _read(
    images: ImageSet,
    extractor: FeatureExtractor,
    positions: np.ndarray,
    reconstruction: Reconstruction | None,
) -> Iterator[np.ndarray]:
    """What the network takes of each image, (H, W, C) uint8."""
    if reconstruction is None:
        side = extractor.input_px
        return images.read(extractor.prepare, positions, largest_px=side)
    whole = images.read(reconstruction.prepare, positions, largest_px=images.resolution)
    return map(extractor.prepare, reconstruction.apply(whole))
