"""A figure of an arm, or of two arms, with its interval over training seeds and test patients.

What the statistics of diagnoses and of reports share. Shapes: S seeds, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.classification_scores import MIN_FINITE_SHARE
from utils.seed_variance import SeedMean, infer_mean

ONE_SEED = "one seed: the luck of training is not in the interval"
NO_ERROR = "no error in any seed: the lower end is a bound from the number of patients"
CONSTANT = "the same in every seed and resample: no interval"
AGREEMENT = "no difference in any seed and resample"
TOO_FEW_DEFINED = "undefined in most bootstrap resamples: too few patients"


@dataclass(frozen=True)
class Estimate:
    """One figure of one arm: mean over seeds, 95 % interval over new seeds and patients.

    ``low`` and ``high`` are NaN where there is no interval; ``reason`` says why.
    """

    target: str
    metric: str
    value: float
    low: float
    high: float
    num_seeds: int
    reason: str


@dataclass(frozen=True)
class Difference:
    """An arm minus its reference arm, paired by seed and by test patient, with 95 % interval.

    ``p`` is two-sided; ``p_holm`` is NaN until ``utils.verdicts.correct_by_holm`` has seen the
    whole table.
    """

    target: str
    metric: str
    reference_value: float
    value: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    num_seeds: int
    reason: str


def infer_from_draws(
    values: np.ndarray, drawn: np.ndarray, *, patient_degrees: float = math.inf
) -> tuple[SeedMean, list[str]]:
    """Mean over seeds of a figure whose covariance over patients a bootstrap tells.

    Args:
        values: (S,), or differences.
        drawn: (B, S) of the same on resampled patients; NaN where undefined.
        patient_degrees: See ``infer_mean``.

    Returns:
        The mean, and what to know about it.
    """
    finite = drawn[np.isfinite(drawn).all(axis=1)]
    if len(finite) < max(2, MIN_FINITE_SHARE * len(drawn)):
        return no_interval(values), [TOO_FEW_DEFINED]
    covariance = np.cov(finite, rowvar=False).reshape(len(values), len(values))
    mean = infer_mean(values, covariance, patient_degrees=patient_degrees)
    return mean, seed_notes(values)


def no_interval(values: np.ndarray) -> SeedMean:
    """The mean alone."""
    return SeedMean(float(values.mean()), *(math.nan,) * 5)


def seed_notes(values: np.ndarray) -> list[str]:
    """What to know about an interval over (S,) seeds."""
    return [ONE_SEED] if len(values) == 1 else []


def make_estimate(
    key: tuple[str, str],
    mean: SeedMean,
    notes: Sequence[str],
    *,
    num_seeds: int,
    perfect_low: float | None,
    limits: tuple[float, float] = (0, 1),
) -> Estimate:
    """A figure of an arm in its final form.

    Args:
        key: Target and metric.
        mean: Over the seeds.
        notes: What to know about it.
        num_seeds: S.
        perfect_low: Lower end where nothing varies because all is right; None if not all is.
        limits: Least and largest value that the metric can have.
    """
    low, high = mean.low, mean.high
    if mean.variance == 0 and not math.isnan(low):
        perfect = perfect_low is not None
        low, high = (perfect_low, limits[1]) if perfect else (math.nan,) * 2
        notes = [*notes, NO_ERROR if perfect else CONSTANT]
    if math.isnan(low) or math.isnan(high):
        low = high = math.nan
    low, high = (float(np.clip(end, *limits)) for end in (low, high))
    return Estimate(*key, mean.mean, low, high, num_seeds, "; ".join(notes))


def make_difference(
    key: tuple[str, str],
    pair: tuple[np.ndarray, np.ndarray],
    mean: SeedMean,
    notes: Sequence[str],
    *,
    largest: float = 1,
) -> Difference:
    """A figure of two arms in its final form.

    Args:
        key: Target and metric.
        pair: (S,) values of the reference arm and of the other.
        mean: Of the difference over the seeds.
        notes: What to know about it.
        largest: Difference that the metric can have.
    """
    low, high = mean.low, mean.high
    if mean.variance == 0 and not math.isnan(low):
        same = mean.p == 1
        low, high = (0.0, 0.0) if same else (math.nan,) * 2
        notes = [*notes, AGREEMENT if same else CONSTANT]
    low, high = (float(np.clip(end, -largest, largest)) for end in (low, high))
    figures = (float(pair[0].mean()), float(pair[1].mean()), mean.mean, low, high, mean.p)
    return Difference(*key, *figures, math.nan, len(pair[0]), "; ".join(notes))
