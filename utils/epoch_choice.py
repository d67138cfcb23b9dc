"""Which epoch of a training is kept, and when it is over."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIN_IMPROVEMENT = 0.002  # of the validation loss; less does not keep the training going


@dataclass
class EpochChoice:
    """The epochs of a training so far, judged by their validation loss.

    Of the epochs whose validation loss is within a standard error of the lowest the last is kept
    (the rule of Breiman et al. 1984, chapter 3): of a dozen validation images the lowest loss is
    chance, of hundreds it is not.

    Attributes:
        patience: Epochs after which training stops unless the loss has fallen by
            ``MIN_IMPROVEMENT``; 0: never.
        best_epoch: The one that is kept so far; the first is 1.
        lowest: Lowest loss so far.
        tolerated: Highest loss of an epoch that would be kept.
        mark: The loss that patience measures against.
        marked: Its epoch.
    """

    patience: int
    best_epoch: int = 0
    lowest: float = math.inf
    tolerated: float = math.inf
    mark: float = math.inf
    marked: int = 0

    def keeps(self, epoch: int, *, loss: float, error: float) -> bool:
        """Whether this epoch, the latest, is the one to keep so far.

        Args:
            epoch: Its number.
            loss: Mean over the validation examples.
            error: Standard error of that mean.
        """
        if loss < self.lowest:
            self.lowest, self.tolerated = loss, loss + error
        if loss < self.mark - MIN_IMPROVEMENT:
            self.mark, self.marked = loss, epoch
        if not loss <= self.tolerated:  # NaN is never kept
            return False
        self.best_epoch = epoch
        return True

    def is_over(self, epoch: int) -> bool:
        """Whether patience has run out after this epoch."""
        return bool(self.patience) and epoch - self.marked >= self.patience
