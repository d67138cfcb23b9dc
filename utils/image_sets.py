"""One side of a comparison: records, and how their images are brought to size, once."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from utils import images as pictures
from utils.dataset import Dataset, Record

READ_AHEAD = 64

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageSet:
    """Records, and how their images are brought to size: real and synthetic in the same way.

    Attributes:
        name: ``real`` or ``synthetic``.
        dataset: N records, already checked.
        resolution: Side in pixels beyond which no metric sees detail.
        resize_mode: See ``utils.images.resize``; one that draws nothing.
        num_workers: Threads that read; 0 reads in the main thread.
    """

    name: str
    dataset: Dataset
    resolution: int
    resize_mode: str
    num_workers: int = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def image(self, index: int, *, largest_px: int | None = None) -> Image.Image:
        """An image as a square, mode ``L`` or ``RGB``, by one antialiased resize.

        Args:
            index: Which.
            largest_px: Largest side that the caller can use, if smaller than the resolution.
        """
        side = min(self.resolution, largest_px or self.resolution)
        return pictures.resize(self.dataset[index].image(), side, self.resize_mode)

    def read(
        self, function: Callable[[Image.Image], Result], indices: Iterable[int], *, largest_px: int
    ) -> Iterator[Result]:
        """A function of each image, in order, read ahead by threads (Pillow frees Python's lock).

        Args:
            function: Of an image as ``image`` gives it.
            indices: Which images.
            largest_px: As for ``image``.
        """

        def one(index: int) -> Result:
            return function(self.image(int(index), largest_px=largest_px))

        if not self.num_workers:
            yield from map(one, indices)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            waiting: deque = deque()
            for index in indices:
                waiting.append(pool.submit(one, index))
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def having(self, label: str) -> np.ndarray:
        """Indices of the images with this label."""
        found = [i for i, record in enumerate(self.dataset) if label in record.labels]
        return np.array(found, np.int64)

    def patients(self) -> np.ndarray:
        """(N,) text: see `units_of`."""
        return np.array(units_of(self.dataset))

    def take(self, indices: np.ndarray) -> ImageSet:
        """A set of the images at these indices."""
        return replace(self, dataset=self.dataset.select(indices.tolist()))

    def draw(self, most: int, *, seed: int) -> ImageSet:
        """At most so many of the images, drawn without replacement, in their order."""
        if most >= len(self):
            return self
        chosen = np.random.default_rng(seed).choice(len(self), most, replace=False)
        return self.take(np.sort(chosen))


def units_of(records: Iterable[Record]) -> list[str]:
    """The patient of each image, or where there is none a name of its own: drawn as a whole."""
    return [record.patient_id or f"\0image {i}" for i, record in enumerate(records)]


def common_side(dataset: Dataset) -> int:
    """The most frequent shorter side of the images, in pixels."""
    headers = (pictures.inspect_image(record.image_source) for record in dataset)
    return Counter(min(h.width, h.height) for h in headers).most_common(1)[0][0]


def set_names(sources: Sequence[str]) -> list[str]:
    """A short name for each data source: its last part, with a number where that repeats."""
    names: list[str] = []
    for source in sources:
        last = Path(source).expanduser().resolve().name.removesuffix(".tar")
        stem = re.sub(r"[^\w.-]+", "_", last).strip("._") or "set"
        candidates = chain([stem], (f"{stem}-{number}" for number in count(2)))
        names.append(next(name for name in candidates if name not in names))
    return names
