"""Which epoch is kept, and when a training is over."""

import math

from utils.epoch_choice import EpochChoice


def test_the_last_epoch_within_an_error_of_the_lowest_is_kept():
    choice = EpochChoice(patience=0)
    losses = [1.0, 0.5, 0.58, 0.7]
    kept = [choice.keeps(epoch, loss=loss, error=0.1) for epoch, loss in enumerate(losses, 1)]
    assert kept == [True, True, True, False]
    assert choice.best_epoch == 3


def test_a_loss_that_is_not_a_number_is_never_kept():
    choice = EpochChoice(patience=3)
    assert choice.keeps(1, loss=1.0, error=0.1)
    assert not choice.keeps(2, loss=math.nan, error=math.nan)
    assert choice.best_epoch == 1


def test_patience_counts_from_the_last_gain_that_is_worth_the_name():
    choice = EpochChoice(patience=2)
    for epoch, loss in enumerate([1.0, 0.999, 0.9985], 1):
        assert not choice.is_over(epoch - 1)
        choice.keeps(epoch, loss=loss, error=0.0)
    assert choice.is_over(3)
