"""Which image stands at each position of the training stream: a pure function of seed and position.

Single files are shuffled as a whole. Shards are shuffled in blocks: their order is drawn, then the
images within each window of neighbouring shards. Reads stay in the window's files, as with a
shuffle buffer, but there is no buffer to fill, and any position is found at once.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

WINDOW_BLOCKS = 16  # shards whose images are mixed, at least
WINDOW_IMAGES = 10_000  # images that are mixed, on average at least

_ORDER = 0  # the stream of random numbers; `utils.training_data` has the others


class SampleOrder:
    """The order of all epochs; each shows every image once.

    Attributes:
        num_images: Images in the data set.
    """

    def __init__(self, seed: int, num_images: int, blocks: Sequence[int] | None = None) -> None:
        """Keep what the order follows from.

        Args:
            seed: Of everything random.
            num_images: Images in the data set, > 0.
            blocks: Sizes of the runs of images that lie in one file each, summing to
                ``num_images``; None where every image is a file.
        """
        assert blocks is None or sum(blocks) == num_images, "blocks must cover the data set"
        self.num_images = num_images
        self._seed = seed
        self._sizes = np.array(blocks or (), np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._num_windows = min(len(self._sizes) // WINDOW_BLOCKS, num_images // WINDOW_IMAGES)
        self._forget()

    def _forget(self) -> None:
        # Of neighbouring positions, so few: two epochs, and two windows that a batch may touch.
        self._windows = lru_cache(maxsize=2)(self._windows_of)
        self._images = lru_cache(maxsize=2)(self._images_of)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in _CACHES}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._forget()

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Epoch and index of the image at a position of the stream."""
        epoch, place = divmod(position, self.num_images)
        if self._num_windows < 2:
            return epoch, int(epoch_order(self._seed, epoch, self.num_images)[place])
        _, ends = self._windows(epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        images = self._images(epoch, window)
        return epoch, int(images[place - ends[window]])  # from the end: negative

    def epoch(self, epoch: int) -> np.ndarray:
        """Indices of an epoch's images in its order, (num_images,) int64."""
        if self._num_windows < 2:
            return epoch_order(self._seed, epoch, self.num_images)
        return np.concatenate([self._images_of(epoch, n) for n in range(self._num_windows)])

    def _windows_of(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The blocks of each window, and where each window ends in the epoch."""
        rng = np.random.default_rng((self._seed, _ORDER, epoch))
        windows = np.array_split(rng.permutation(len(self._sizes)), self._num_windows)
        return windows, np.cumsum([self._sizes[blocks].sum() for blocks in windows])

    def _images_of(self, epoch: int, window: int) -> np.ndarray:
        """Indices of a window's images, shuffled."""
        blocks = self._windows(epoch)[0][window]
        runs = [np.arange(self._starts[n], self._starts[n] + self._sizes[n]) for n in blocks]
        rng = np.random.default_rng((self._seed, _ORDER, epoch, 1 + window))
        return rng.permutation(np.concatenate(runs))


_CACHES = ("_windows", "_images")


@lru_cache(maxsize=6)  # images, pairs and what is rehearsed, two epochs each
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order in which an epoch goes through images without blocks, (num_images,) int64."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(num_images)
