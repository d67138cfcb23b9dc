"""Images shown as often as their weights say, in place of weighing their loss."""

from collections.abc import Sequence

import numpy as np

from utils.sample_order import epoch_order
from utils.training_data import TrainingSet

_OFFSET = 6  # the stream of random numbers; see `utils.training_data`


class WeightedOrder:
    """The order of all epochs; in each, image i stands ``N w_i / sum(w)`` times, up or down to one.

    Systematic sampling: N points at equal distances, moved by a chance of the epoch, on the line of
    the weights put end to end; then shuffled.
    """

    def __init__(self, seed: int, weights: Sequence[float]) -> None:
        """Keep what the order follows from.

        Args:
            seed: Of everything random.
            weights: (N,) > 0.
        """
        ends = np.cumsum(np.asarray(weights, np.float64))
        self._ends = ends / ends[-1]
        self._seed = seed

    def __getitem__(self, position: int) -> tuple[int, int]:
        """A number that no other position has, and the index of the image."""
        num_images = len(self._ends)
        epoch, place = divmod(position, num_images)
        rank = int(epoch_order(self._seed, epoch, num_images)[place])
        offset = np.random.default_rng((self._seed, _OFFSET, epoch)).random()
        index = int(np.searchsorted(self._ends, (rank + offset) / num_images, side="right"))
        return position, min(index, num_images - 1)  # the last end may be rounded below 1


class FrequencySet(TrainingSet):
    """`TrainingSet` in the order of `WeightedOrder`; every showing has the factor 1.

    An epoch is as many showings as there are images, some of which are not among them.
    """

    def __init__(self, dataset, options, captions, latents=None, weights=None) -> None:
        super().__init__(dataset, options, captions, latents)
        self._frequencies = weights
        self._order = WeightedOrder(options.seed, weights)

    def encoded(self, captions, latents) -> "FrequencySet":
        """The same samples with what encoders made of captions and images."""
        return type(self)(self.dataset, self.options, captions, latents, self._frequencies)
