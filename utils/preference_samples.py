"""Preference pairs as training samples, alone or beside the images of the usual loss.

As with single images, a sample is a pure function of the seed and its position; the two images of
a pair share flip, crop, noise and timestep.
"""

import torch

from utils.rehearsal import RehearsedSet
from utils.sample_order import SampleOrder
from utils.training_data import TrainingSet


class PairSet(TrainingSet):
    """Pairs by position: (preferred, rejected), each a sample as `TrainingSet` describes it.

    Its data set is `utils.preference_pairs.load_pairs`': pair k is the images 2 k, preferred, and
    2 k + 1.
    """

    _look_stream, _noise_stream = 4, 5

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._order = SampleOrder(self.options.seed, len(self.dataset) // 2)

    def __getitem__(self, position: int) -> tuple[dict, dict]:
        epoch, pair = self._order[position]
        noise = self._draw_noise(position)
        # Two generators in the same state: what is drawn for one image is drawn for the other.
        preferred, rejected = (
            self._show(index, self._look(epoch, pair)) for index in (2 * pair, 2 * pair + 1)
        )
        return preferred | noise, rejected | noise


class MixedSet(torch.utils.data.Dataset):
    """An image and a pair by position: (image, preferred, rejected)."""

    def __init__(self, images: TrainingSet | RehearsedSet, pairs: PairSet) -> None:
        """Keep both; each goes through its own epochs."""
        self.images = images
        self.pairs = pairs
        self.latents = pairs.latents  # encoded both or none

    def __getitem__(self, position: int) -> tuple[dict, dict, dict]:
        return (self.images[position], *self.pairs[position])


def trained_samples(
    images: TrainingSet | RehearsedSet | None, pairs: PairSet | None
) -> TrainingSet | RehearsedSet | MixedSet:
    """What is trained on: images, pairs, or both."""
    if images is None or pairs is None:
        return pairs if images is None else images
    return MixedSet(images, pairs)
