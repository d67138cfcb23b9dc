"""Training samples of what a model knows already, mixed into those of what it learns.

A network trained on a new task forgets the old one; showing it a few of the old samples all along
(rehearsal, Robins 1995, https://doi.org/10.1080/09540099550039318) prevents most of it.
"""

from fractions import Fraction

import torch

from utils.training_data import TrainingSet

_FINEST_SHARE = 10_000  # shares are rounded to a fraction with at most this denominator


class RehearsalSet(TrainingSet):
    """`TrainingSet` with random numbers of its own, or its noise would be that of the new data."""

    _look_stream, _noise_stream = 7, 8


class RehearsedSet(torch.utils.data.Dataset):
    """Samples by position, an even share of them of the rehearsed data.

    Each part goes through its own epochs. Of any stretch of positions the share is exact, up or
    down to one, whatever the sizes of the two.
    """

    def __init__(self, images: TrainingSet, rehearsal: RehearsalSet, share: float) -> None:
        """Keep both.

        Args:
            images: What is learned.
            rehearsal: What is not to be forgotten.
            share: Of the positions that are rehearsed, in (0, 1).
        """
        self.images = images
        self.rehearsal = rehearsal
        self.latents = images.latents  # encoded both or none
        self._share = Fraction(share).limit_denominator(_FINEST_SHARE)

    def __getitem__(self, position: int) -> dict:
        before, after = (int(self._share * at) for at in (position, position + 1))
        if after > before:
            return self.rehearsal[before]
        return self.images[position - before]


def pass_length(num_images: int, share: float) -> int:
    """Positions of the stream until every image to be learned was shown once."""
    return round(num_images / (1 - share))
