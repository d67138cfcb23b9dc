"""Reports of an arm over its seeds, and arm against arm on the same test patients.

The inference is that of ``utils/arm_statistics.py``: two sources of chance, the test patients (by a
bootstrap that draws the same patients for all arms and seeds) and the luck of training.

Shapes: S seeds, N reports, B bootstrap resamples, M figures (target and metric).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.arm_estimates import (
    Difference,
    Estimate,
    infer_from_draws,
    make_difference,
    make_estimate,
    no_interval,
)
from utils.classification_scores import MACRO, bootstrap_weights
from utils.intervals import MIN_GROUPS, mean_share_interval
from utils.report_scores import DISTINCT_METRICS, RANGES, ReportStatistics
from utils.seed_variance import SeedMean
from utils.verdicts import ALL

FEW_PATIENTS = f"fewer than {MIN_GROUPS} test patients: no interval"
TOO_FEW = "fewer than two patients with it: no interval"

Key = tuple[str, str]  # target and metric


@dataclass(frozen=True)
class ArmFigures:
    """What estimates and comparisons need of an arm.

    Attributes:
        keys: M pairs (target, metric).
        values: (S, M).
        draws: (B, S, M) float32, the same on resampled patients.
        patients: (target, metric) -> patients whose reports it is about, in the seed with fewest.
        reasons: (target, metric) -> why it is undefined, or what it leaves out.
        num_patients: In the test set.
    """

    keys: tuple[Key, ...]
    values: np.ndarray
    draws: np.ndarray
    patients: Mapping[Key, int]
    reasons: Mapping[Key, str]
    num_patients: int


def score_arm(
    statistics_of_seeds: Sequence[ReportStatistics],
    patients: Sequence[str],
    *,
    num_resamples: int,
    seed: int,
) -> ArmFigures:
    """Figures of every seed, on the test reports and on resampled patients.

    Args:
        statistics_of_seeds: S of one ``ReportScorer``; seeds in the same order in every arm.
        patients: (N,) names.
        num_resamples: Bootstrap draws, at least 2.
        seed: Of the bootstrap; arms to be compared need the same.

    Raises:
        ValueError: If there are not as many patients as reports, or the seeds differ in figures.
    """
    first = statistics_of_seeds[0]
    if any(
        one.keys != first.keys or len(one.table) != len(patients) for one in statistics_of_seeds
    ):
        raise ValueError("the seeds do not have the same figures, or not a report for each patient")
    once = np.ones((1, len(patients)))
    drawn = bootstrap_weights(patients, len(patients), num_resamples=num_resamples, seed=seed)
    draws = [
        np.stack([one.figures(weights) for one in statistics_of_seeds], axis=1) for weights in drawn
    ]
    names = np.asarray(patients)
    counting = [one.counting() for one in statistics_of_seeds]
    reasons = [one.reasons for one in statistics_of_seeds]
    return ArmFigures(
        keys=first.keys,
        values=np.concatenate([one.figures(once) for one in statistics_of_seeds]),
        draws=np.concatenate(draws).astype(np.float32),
        patients={
            key: min(len(np.unique(names[chosen[key]])) for chosen in counting)
            for key in first.keys
        },
        reasons={key: why for found in reasons[::-1] for key, why in found.items()},
        num_patients=len(np.unique(names)),
    )


def estimate(figures: ArmFigures) -> list[Estimate]:
    """Each figure of an arm: mean over its seeds with a 95 % interval, clipped to its range."""
    found = []
    for index, key in enumerate(figures.keys):
        values = figures.values[:, index]
        mean, notes = _infer(figures, index, values, figures.draws[:, :, index])
        limits = _limits(key)
        perfect = values.min() == limits[1]
        found.append(
            make_estimate(
                key,
                mean,
                notes,
                num_seeds=len(values),
                perfect_low=limits[1] * _perfect_share(figures, key) if perfect else None,
                limits=limits,
            )
        )
    return found


def compare(*, reference: ArmFigures, other: ArmFigures) -> list[Difference]:
    """Each figure of ``other`` minus that of ``reference``, paired by seed and patient.

    Args:
        reference: The arm that is compared with.
        other: The arm in question: as many seeds, the same test reports, bootstrap draws and seed.

    Raises:
        ValueError: If the arms do not have the same figures, seeds and draws.
    """
    if reference.keys != other.keys or reference.draws.shape != other.draws.shape:
        raise ValueError("the arms do not have the same figures, seeds, or number of resamples")
    both = replace(
        other,
        patients={key: min(arm.patients[key] for arm in (reference, other)) for key in other.keys},
        reasons={**reference.reasons, **other.reasons},
    )
    found = []
    for index, key in enumerate(other.keys):
        pair = reference.values[:, index], other.values[:, index]
        draws = other.draws[:, :, index] - reference.draws[:, :, index]
        mean, notes = _infer(both, index, pair[1] - pair[0], draws)
        low, high = _limits(key)
        found.append(make_difference(key, pair, mean, notes, largest=high - low))
    return found


def _infer(
    figures: ArmFigures, index: int, values: np.ndarray, drawn: np.ndarray
) -> tuple[SeedMean, list[str]]:
    """Mean of one figure over seeds, and what to know about it.

    Args:
        figures: The arm, for what the test set allows.
        index: Of the figure.
        values: (S,) of the figure, or differences.
        drawn: (B, S) of the figure, or differences.
    """
    key = figures.keys[index]
    nothing = no_interval(values)
    told = key[0] == MACRO or key[1] in DISTINCT_METRICS or math.isnan(nothing.mean)
    notes = [figures.reasons[key]] if told and key in figures.reasons else []
    if math.isnan(nothing.mean) or key[1] in DISTINCT_METRICS:
        return nothing, notes
    if figures.num_patients < MIN_GROUPS:
        return nothing, [*notes, FEW_PATIENTS]
    if figures.patients[key] < 2:
        return nothing, [*notes, TOO_FEW]
    degrees = figures.num_patients - 1
    mean, more = infer_from_draws(values, drawn, patient_degrees=degrees)
    return mean, notes + more


def _limits(key: Key) -> tuple[float, float]:
    return RANGES.get(key[1], (0.0, 1.0))


def _perfect_share(figures: ArmFigures, key: Key) -> float:
    """Lower end of the share of patients who are all right, if all of the test set are: Wilson's.

    Macro: the mean over findings, put together as ``mean_share_interval`` does.
    """
    target, metric = key
    chosen = [key]
    if target == MACRO:
        chosen = [k for k in figures.keys if k[0] not in (ALL, MACRO) and k[1] == metric]
    units = np.array([figures.patients[one] for one in chosen])
    bounds = mean_share_interval(units, units)
    return bounds[0] if bounds else math.nan
