"""Pixels against pixels, coarsely: a hash that survives compression, and which way round a copy is.

Shapes: N images, S x S thumbnails.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import scipy.fft
from PIL import Image

THUMBNAIL_PX = 32
HASH_SIDE = 16  # of the low frequencies kept
NUM_BITS = HASH_SIDE**2 - 1  # all but the mean
_NUM_BYTES = -(-NUM_BITS // 8)
# A tenth of the bits. Of 136 held-out real OCT B-scans of 512 px those closest to any of 594
# training scans were 12 bits away (a scan that the set holds under two patients), then 38, 56, 64;
# JPEG of quality 30 moved 60 scans by 18 bits at most, a blur of 2 px in 256 by 14.
MAX_DISTANCE = 25
ALIKE = NUM_BITS - 2 * MAX_DISTANCE  # inner product of two hashes that differ in so many bits
_BLOCK = 1024  # rows compared at once: 1024 x 50,000 float32 are 200 MB
MAX_SHIFT_PX = 2  # of a thumbnail: 6 % of the side


def thumbnail(image: Image.Image) -> np.ndarray:
    """The image as (32, 32) uint8, each value the mean over its part of the image."""
    small = image.convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.uint8)


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """Which of the lowest frequencies of an image are above their median: pHash with 255 bits.

    Zauner 2010 (https://phash.org/docs/pubs/thesis_zauner.pdf), with 16 x 16 instead of 8 x 8
    coefficients of the 32 x 32 cosine transform: 64 bits do not tell one macula from another. The
    coefficient of the mean is left out.

    Args:
        thumbnails: (N, 32, 32).

    Returns:
        (N, 255) float32 of -1 and 1, so that ``(255 - a @ b) / 2`` counts the bits that differ.
    """
    waves = scipy.fft.dctn(np.asarray(thumbnails, np.float64), axes=(1, 2), norm="ortho")
    low = waves[:, :HASH_SIDE, :HASH_SIDE].reshape(len(waves), -1)[:, 1:]  # (N, 255)
    middle = np.median(low, axis=1, keepdims=True) if len(low) else 0.0
    return np.where(low > middle, 1, -1).astype(np.float32)


def hashes_to_hex(hashes: np.ndarray) -> list[str]:
    """Hashes (N, 255) of `perceptual_hash` as 64 hexadecimal digits each, for tables."""
    return [row.tobytes().hex() for row in np.packbits(hashes > 0, axis=1)]


def hashes_from_hex(digits: np.ndarray) -> np.ndarray:
    """The inverse of `hashes_to_hex`: (N,) of 64 ASCII digits, type ``S64``, to (N, 255)."""
    packed = np.frombuffer(bytes.fromhex(b"".join(digits.tolist()).decode()), np.uint8)
    bits = np.unpackbits(packed.reshape(-1, _NUM_BYTES), axis=1, count=NUM_BITS)
    return bits.astype(np.float32) * 2 - 1


def first_of_alike(
    hashes: np.ndarray, mirrored: np.ndarray, kept: Sequence[np.ndarray]
) -> np.ndarray:
    """Which images resemble none that was kept before, mirrored or not, in their order.

    Args:
        hashes: (N, 255) from `perceptual_hash`.
        mirrored: (N, 255), those of the mirror images.
        kept: Hashes of images that are kept already, arrays of (M, 255).

    Returns:
        (N,) bool: kept. An image that is not kept does not count for those after it.
    """
    first = np.zeros(len(hashes), bool)
    for start in range(0, len(hashes), _BLOCK):
        block = slice(start, start + _BLOCK)
        views = (hashes[block], mirrored[block])
        earlier = [*kept, hashes[:start][first[:start]]]
        near_earlier = np.zeros(len(views[0]), bool)
        for view, others in product(views, earlier):
            near_earlier |= (view @ others.T >= ALIKE).any(axis=1)
        near = np.maximum(views[0] @ views[0].T, views[1] @ views[0].T) >= ALIKE
        for place in np.flatnonzero(~near_earlier):
            first[start + place] = not (near[place, :place] & first[start : start + place]).any()
    return first


def is_mirrored(thumbnails: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Whether each image resembles its original more when it is mirrored left-right.

    By normalised cross-correlation, the largest over shifts of up to two pixels.

    Args:
        thumbnails: (N, 32, 32).
        originals: (N, 32, 32), in the same order.

    Returns:
        (N,) bool.
    """
    mirrored = thumbnails[..., ::-1]
    return best_correlation(mirrored, originals) > best_correlation(thumbnails, originals)


def best_correlation(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Largest correlation of the original's middle with the image's, over small shifts.

    Args:
        images: (N, S, S).
        originals: (N, S, S).

    Returns:
        (N,) in [-1, 1]; 0 where either is flat.
    """
    inner = slice(MAX_SHIFT_PX, images.shape[-1] - MAX_SHIFT_PX)
    target = _standardise(originals[:, inner, inner])
    best = np.full(len(images), -1.0)
    for down, right in product(range(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1), repeat=2):
        moved = np.roll(images, (down, right), axis=(1, 2))[:, inner, inner]
        np.maximum(best, np.einsum("nd,nd->n", _standardise(moved), target), out=best)
    return best


def _standardise(images: np.ndarray) -> np.ndarray:
    """(N, D) of mean 0 and unit length; zeros for flat images."""
    rows = images.reshape(len(images), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
