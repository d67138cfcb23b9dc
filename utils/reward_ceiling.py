"""How well held-out scores, and raters in their place, go with the ratings of held-out raters.

Shapes: N images, R raters, G groups of raters, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.classification_metrics import nan_mean
from utils.rating_table import SCALE
from utils.reward_holdout import HeldOut

Correlation = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Grades:
    """Ratings of images, the mean over the questions; NaN where there is none.

    Attributes:
        by_rater: (R, N).
        by_group: (G, N), mean over the raters of a group.
        score: (G, N), of the reward that saw neither the image nor the group.
        rater_group: (R,).
    """

    by_rater: np.ndarray
    by_group: np.ndarray
    score: np.ndarray
    rater_group: np.ndarray


def grades_of(held_out: HeldOut) -> Grades:
    """Held-out predictions as tables."""
    told, groups = held_out.ratings, held_out.rater_group
    shape = len(told.raters), told.num_images
    by_rater = _means(shape, (told.rater, told.image), told.level + SCALE.start)
    num_groups = int(groups.max()) + 1
    places = groups[told.rater], told.image
    score = _means((num_groups, told.num_images), places, held_out.score)
    by_group = np.stack([nan_mean(by_rater[groups == number].T) for number in range(num_groups)])
    return Grades(by_rater, by_group, score, groups)


def group_correlations(grades: Grades, weights: np.ndarray, correlation: Correlation) -> np.ndarray:
    """Of the score with the ratings of each held-out group, (B, G)."""
    found = [
        _correlate(score, given, weights, correlation)
        for score, given in zip(grades.score, grades.by_group)
    ]
    return np.stack(found, axis=1)


def ceiling_correlations(
    grades: Grades, weights: np.ndarray, correlation: Correlation
) -> np.ndarray:
    """Of one other rater with the ratings of each group, the mean over the others, (B, G)."""
    found = []
    for number, given in enumerate(grades.by_group):
        others = grades.by_rater[grades.rater_group != number]
        each = [_correlate(other, given, weights, correlation) for other in others]
        nothing = np.full((len(weights), 1), np.nan)
        found.append(nan_mean(np.stack(each, axis=1) if each else nothing))
    return np.stack(found, axis=1)


def _correlate(
    one: np.ndarray, other: np.ndarray, weights: np.ndarray, correlation: Correlation
) -> np.ndarray:
    """Over the images that both have, (B,)."""
    both = ~np.isnan(one) & ~np.isnan(other)
    return correlation(one[both], other[both], weights[:, both])


def _means(
    shape: tuple[int, int], places: tuple[np.ndarray, np.ndarray], values: np.ndarray
) -> np.ndarray:
    """Mean of the values (M,) at each place, NaN where there is none."""
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, places, values)
    np.add.at(counts, places, 1)
    return np.divide(sums, counts, out=np.full(shape, np.nan), where=counts > 0)
