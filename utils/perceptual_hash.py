"""Pixels against pixels, coarsely: a hash that survives compression, and which way round a copy is.

Shapes: N images, S x S thumbnails.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import scipy.fft
from PIL import Image

THUMBNAIL_PX = 32
HASH_SIDE = 16  # of the low frequencies kept
NUM_BITS = HASH_SIDE**2 - 1  # all but the mean
# A tenth of the bits. Of 136 held-out real OCT B-scans of 512 px those closest to any of 594
# training scans were 12 bits away (a scan that the set holds under two patients), then 38, 56, 64;
# JPEG of quality 30 moved 60 scans by 18 bits at most, a blur of 2 px in 256 by 14.
MAX_DISTANCE = 25
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
