"""A set of images as the memorisation audit needs it, and duplicates among them by their pixels.

Shapes: N images, M queries, S = 32 pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from utils.copy_detector import gray_views
from utils.images import pixel_hash
from utils.perceptual_hash import ALIKE, THUMBNAIL_PX, perceptual_hash, thumbnail

_BLOCK = 1024  # rows compared at once: 1024 x 50,000 float32 are 200 MB
# More than rounding moves a product of unit vectors (D = 128: 2e-5); those of hashes are exact.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class AuditImages:
    """One set of images as the audit needs it.

    Attributes:
        names: (N,) what to call each image, such as its file name.
        patients: (N,) patient of each image, None where unknown.
        hashes: (N,) ``pixel_hash`` of each image.
        mirrored_hashes: (N,) the same of its mirror image.
        thumbnails: (N, 32, 32) uint8.
        gray: (N, H, W) uint8, what the copy detector sees.
    """

    names: tuple[str, ...]
    patients: tuple[str | None, ...]
    hashes: tuple[str, ...]
    mirrored_hashes: tuple[str, ...]
    thumbnails: np.ndarray
    gray: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def mirror_free_hashes(self) -> list[str]:
        """(N,) the same for two images that are equal pixel for pixel, mirrored or not."""
        return [min(pair) for pair in zip(self.hashes, self.mirrored_hashes)]

    def first_of_each(self) -> dict[str, int]:
        """Mirror-free hash to the index of the first image that has it."""
        return {key: i for i, key in reversed(list(enumerate(self.mirror_free_hashes())))}


def read_images(
    images: Iterable[Image.Image | np.ndarray],
    names: Sequence[str],
    *,
    resolution: int,
    patients: Sequence[str | None] | None = None,
    description: str = "audit",
    quiet: bool = False,
) -> AuditImages:
    """Read each image once for everything the audit asks of it.

    Args:
        images: N PIL images or (H, W) uint8 arrays, all sets brought to size in the same way.
        names: (N,).
        resolution: Side of the copy detector's input in pixels.
        patients: (N,); None: unknown.
        description: Of the progress bar.
        quiet: Whether to draw none.
    """
    hashes, mirrored, thumbnails, gray = [], [], [], []
    for item in tqdm(images, total=len(names), desc=description, unit="image", disable=quiet):
        image = Image.fromarray(item) if isinstance(item, np.ndarray) else item
        hashes.append(pixel_hash(image))
        mirrored.append(pixel_hash(ImageOps.mirror(image)))
        thumbnails.append(thumbnail(image))
        gray.extend(gray_views([image], resolution=resolution, resize_mode="center_crop"))
    return AuditImages(
        tuple(names),
        tuple(patients or [None] * len(names)),
        tuple(hashes),
        tuple(mirrored),
        np.array(thumbnails, np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX),
        np.array(gray, np.uint8).reshape(-1, resolution, resolution),
    )


def nearest(queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar of the keys for each query, block by block.

    A matrix product has other last bits with other numbers of rows or threads; it only finds the
    keys that may be nearest. They are compared by sums of a fixed order, so that a query's answer
    depends on that query and the keys alone.

    Args:
        queries: (M, D) float32, of unit length or of whole numbers.
        keys: (N, D) float32, N >= 1, likewise.

    Returns:
        Its index (M,) int64, the lowest of equals; and the inner product (M,) float32.
    """
    index = np.empty(len(queries), np.int64)
    value = np.empty(len(queries), np.float32)
    for start in range(0, len(queries), _BLOCK):
        block = slice(start, start + _BLOCK)
        products = queries[block] @ keys.T  # (<= 1024, N)
        for row, found in enumerate(products, start):
            near = np.flatnonzero(found >= found.max() - _ROUNDING)
            exact = (keys[near] * queries[row]).sum(axis=1)
            index[row] = near[exact.argmax()]
            value[row] = exact.max()
    return index, value


def perceptual_duplicates(thumbnails: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the hash, mirrored or not, is close to that of an original."""
    keys = perceptual_hash(originals)
    views = (thumbnails, thumbnails[..., ::-1])
    agreement = [nearest(perceptual_hash(view), keys)[1] for view in views]
    return np.maximum(*agreement) >= ALIKE


def perceptual_repeats(thumbnails: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the hash, mirrored or not, is close to that of an earlier image."""
    keys = perceptual_hash(thumbnails)
    mirrored = perceptual_hash(thumbnails[..., ::-1])
    repeated = np.zeros(len(keys), bool)
    for start in range(0, len(keys), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(keys)))
        earlier = np.arange(rows[-1] + 1) < rows[:, None]
        for view in (keys, mirrored):
            close = view[rows] @ keys[: rows[-1] + 1].T >= ALIKE
            repeated[rows] |= (close & earlier).any(axis=1)
    return repeated
