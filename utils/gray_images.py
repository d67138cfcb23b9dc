"""Decoded 8-bit gray images at the network's size, held in memory where they fit.

Shapes: N images, B images of a batch, H = W = resolution.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from utils.augmentation import REFERENCE_PX, gaussian_blur
from utils.classifier import to_gray, to_unit
from utils.dataset import Record
from utils.images import share_lost

MEMORY_LIMIT_BYTES = 4 << 30
_STATISTICS_IMAGES = 1000
_QUEUED_BATCHES = 2  # read ahead while the network works


class GrayImages:
    """The pixels of records, read once if they fit into memory, else batch by batch.

    Reading uses threads: Pillow decodes and resizes without Python's lock.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        resolution: int,
        resize_mode: str,
        num_workers: int = 0,
        memory_limit: int = MEMORY_LIMIT_BYTES,
        progress: Callable[[int], object] | None = None,
    ):
        """Read the images, unless they would take more than ``memory_limit`` bytes.

        Args:
            records: N of them, already checked.
            resolution: Side in pixels.
            resize_mode: See ``utils.images.resize``; ``random_crop`` keeps the long side until
                a batch is drawn.
            num_workers: Threads that read; 0 reads in the main thread.
            memory_limit: Most bytes to hold; more images than that are read for each batch.
            progress: Called with 1 after each image, as ``tqdm.update``.
        """
        self.records = records
        self.resolution = resolution
        self.resize_mode = resize_mode
        self.num_workers = num_workers
        self.in_memory = len(records) * resolution**2 <= memory_limit
        self.shares_lost: list[float] = []  # of each image read so far, to the crop
        self._held: list[np.ndarray] = []
        if self.in_memory:
            for pixels in self._map(range(len(records))):
                self._held.append(pixels)
                if progress is not None:
                    progress(1)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every image in order, (H, W) uint8; of a random crop, the central one."""
        held = self._held if self.in_memory else self._map(range(len(self)))
        for pixels in held:
            yield self._crop(pixels, None)

    def take(self, indices: Iterable[int]) -> GrayImages:
        """Some of the images, in this order; none is read again."""
        chosen = [int(index) for index in indices]
        part = copy.copy(self)
        part.records = [self.records[index] for index in chosen]
        part._held = [self._held[index] for index in chosen] if self.in_memory else []
        return part

    def joined(self, other: GrayImages) -> GrayImages:
        """These images and then another's, which have the same size; none is read again."""
        assert (self.resolution, self.resize_mode) == (other.resolution, other.resize_mode)
        both = copy.copy(self)
        both.records = [*self.records, *other.records]
        both.in_memory = self.in_memory and other.in_memory
        both._held = [*self._held, *other._held] if both.in_memory else []
        return both

    def blurred(self, sigma_px: float) -> Iterator[np.ndarray]:
        """Every image after a Gaussian blur, (H, W) uint8; ``sigma_px`` is meant at 128 px."""
        sigma = torch.tensor([sigma_px * self.resolution / REFERENCE_PX])
        for pixels in self:
            image = to_unit(torch.from_numpy(pixels)[None])
            yield (gaussian_blur(image, sigma) * 255).round().byte()[0, 0].numpy()

    def gray_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the gray values of up to 1,000 images, in [0, 1]."""
        step = -(-len(self) // _STATISTICS_IMAGES)
        chosen = [
            self._held[i] if self.in_memory else self._read(i) for i in range(0, len(self), step)
        ]
        sums = np.array([(p.size, p.sum(), (p.astype(np.float64) ** 2).sum()) for p in chosen])
        count, total, squares = sums.sum(axis=0)
        mean = total / count
        std = max(1.0, float(squares / count - mean**2)) ** 0.5  # a flat image has none
        return float(mean) / 255, std / 255

    def batches(
        self, plan: Iterable[np.ndarray], *, rng: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Batches in the order of a plan, read ahead if they are not in memory.

        Args:
            plan: Indices (B,) of each batch.
            rng: Draws the crops of ``random_crop``, in the order of the plan; None: central ones.

        Yields:
            The indices and the images (B, H, W) uint8.
        """
        reads = (
            self._read_ahead(plan)
            if not self.in_memory
            else ((indices, [self._held[index] for index in indices]) for indices in plan)
        )
        for indices, pixels in reads:
            crops = [self._crop(one, rng) for one in pixels]
            yield indices, torch.from_numpy(np.stack(crops))

    def _read_ahead(
        self, plan: Iterable[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        if not self.num_workers:
            yield from ((indices, [self._read(index) for index in indices]) for indices in plan)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            waiting: deque = deque()
            for indices in plan:
                waiting.append((indices, [pool.submit(self._read, index) for index in indices]))
                if len(waiting) > _QUEUED_BATCHES:
                    done, futures = waiting.popleft()
                    yield done, [future.result() for future in futures]
            while waiting:
                done, futures = waiting.popleft()
                yield done, [future.result() for future in futures]

    def _map(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        if not self.num_workers:
            yield from map(self._read, indices)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            yield from pool.map(self._read, indices)

    def _read(self, index: int) -> np.ndarray:
        """One image as (H, W) uint8; for ``random_crop`` only its shorter side is final."""
        image = self.records[int(index)].image()
        self.shares_lost.append(share_lost(*image.size, self.resize_mode))
        if self.resize_mode != "random_crop":
            return to_gray(image, resolution=self.resolution, resize_mode=self.resize_mode)
        side = min(image.size)
        size = [max(1, round(length * self.resolution / side)) for length in image.size]
        return np.array(image.convert("L").resize(size, Image.Resampling.LANCZOS), dtype=np.uint8)

    def _crop(self, pixels: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """The square of a longer image: drawn, or central without ``rng``."""
        rooms = [length - self.resolution for length in pixels.shape]
        if not any(rooms):
            return pixels
        top, left = (room // 2 if rng is None else int(rng.integers(room + 1)) for room in rooms)
        return pixels[top : top + self.resolution, left : left + self.resolution]
