"""Scores of an arm over its seeds, and arm against arm on the same test patients.

An arm is a way of training, run once per seed. Two sources of chance are counted: the test
patients and the luck of training (``utils/seed_variance.py``). What the patients cause comes from
DeLong's covariance for AUROC (``utils/delong.py``) and, for every other metric, from a bootstrap
over patients that draws the same patients for all arms and seeds.

Shapes: S seeds, N images, L labels, B bootstrap resamples, M figures (target and metric),
G patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.arm_estimates import (
    Difference,
    Estimate,
    infer_from_draws,
    make_difference,
    make_estimate,
    no_interval,
    seed_notes,
)
from utils.classification_scores import (
    LOWER_IS_BETTER,
    MACRO,
    ONE_PATIENT,
    bootstrap_weights,
    flat_table,
    metric_table,
    why_undefined,
)
from utils.delong import label_influences, macro_influences
from utils.intervals import mean_share_interval
from utils.seed_variance import SeedMean, infer_mean

TOO_FEW_WITH_LABEL = "fewer than two patients with or without this label: no interval"
BY_BOOTSTRAP = "interval from the bootstrap, as a label has a single patient"


@dataclass(frozen=True)
class ArmScores:
    """What estimates and comparisons need of an arm.

    Attributes:
        keys: M pairs (target, metric), labels first, then macro.
        values: (S, M).
        draws: (B, S, M) float32, the same on resampled patients.
        influences: Target -> (S, G), influence of each patient on its AUROC.
        patients: Label -> patients with it and without it.
        reasons: Target -> why something is undefined.
    """

    keys: tuple[tuple[str, str], ...]
    values: np.ndarray
    draws: np.ndarray
    influences: dict[str, np.ndarray]
    patients: dict[str, tuple[int, int]]
    reasons: dict[str, str]


def score_arm(
    probs: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    *,
    multi_label: bool,
    patients: Sequence[str] | None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> ArmScores:
    """Score every seed on the test images and on resampled patients.

    Args:
        probs: (S, N, L) in [0, 1], one table a seed; seeds in the same order in every arm.
        targets: (N, L) bool.
        labels: L names.
        multi_label: Whether labels may occur together.
        patients: (N,) names; None when every image is its own patient.
        num_resamples: Bootstrap draws, at least 2.
        seed: Of the bootstrap; arms to be compared need the same.

    Raises:
        ValueError: If the shapes disagree, there is no image or a probability is not finite.
    """
    probs, targets = np.asarray(probs, np.float64), np.asarray(targets, bool)
    if probs.ndim != 3 or probs.shape[1:] != targets.shape or len(labels) != targets.shape[1]:
        raise ValueError(
            f"probabilities {probs.shape}, targets {targets.shape} and {len(labels)} labels do "
            "not belong together"
        )
    names = np.arange(len(targets)) if patients is None else np.asarray(patients)

    def table(weights: np.ndarray) -> list[dict]:
        return [
            flat_table(metric_table(p, targets, weights, multi_label=multi_label), labels)
            for p in probs
        ]

    once = table(np.ones((1, len(targets))))
    drawn = bootstrap_weights(patients, len(targets), num_resamples=num_resamples, seed=seed)
    draws = [np.stack([_columns(row) for row in table(weights)], axis=1) for weights in drawn]
    areas, influences = label_influences(probs, targets, groups=names)
    influence_of = {name: influences[:, k] for k, name in enumerate(labels)}
    return ArmScores(
        keys=tuple(once[0]),
        values=np.concatenate([_columns(row) for row in once]).astype(np.float64),
        draws=np.concatenate(draws).astype(np.float32),
        influences=influence_of | {MACRO: macro_influences(areas, influences)[1]},
        patients={
            name: (len(np.unique(names[has])), len(np.unique(names[~has])))
            for name, has in zip(labels, targets.T)
        },
        reasons=why_undefined(targets, labels),
    )


def estimate_arm(scores: ArmScores) -> list[Estimate]:
    """Each figure of an arm: mean over its seeds with a 95 % interval, clipped to [0, 1]."""
    found = []
    for index, key in enumerate(scores.keys):
        values = scores.values[:, index]
        mean, notes = _infer(
            scores, index, values, influences=scores.influences[key[0]], draws=scores.draws
        )
        perfect = values.min() == 1 and key[1] not in LOWER_IS_BETTER
        bound = _perfect_low(scores, key[0]) if perfect else None
        found.append(make_estimate(key, mean, notes, num_seeds=len(values), perfect_low=bound))
    return found


def compare_arms(*, reference: ArmScores, other: ArmScores) -> list[Difference]:
    """Each figure of ``other`` minus that of ``reference``, paired by seed and patient.

    Args:
        reference: The arm that is compared with.
        other: The arm in question: as many seeds, the same test images, bootstrap draws and seed.

    Raises:
        ValueError: If the arms do not have the same figures, seeds and draws.
    """
    if reference.keys != other.keys or reference.draws.shape != other.draws.shape:
        raise ValueError("the arms do not have the same labels, seeds, or number of resamples")
    draws = other.draws - reference.draws
    found = []
    for index, key in enumerate(other.keys):
        pair = reference.values[:, index], other.values[:, index]
        influences = other.influences[key[0]] - reference.influences[key[0]]
        mean, notes = _infer(other, index, pair[1] - pair[0], influences=influences, draws=draws)
        found.append(make_difference(key, pair, mean, notes))
    return found


def _infer(
    scores: ArmScores,
    index: int,
    values: np.ndarray,
    *,
    influences: np.ndarray,
    draws: np.ndarray,
) -> tuple[SeedMean, list[str]]:
    """Mean of one figure over seeds, and what to know about it.

    Args:
        scores: The arm, for what the test set allows.
        index: Of the figure.
        values: (S,) of the figure, or differences.
        influences: (S, G) of the target's AUROC, or differences.
        draws: (B, S, M), or differences.
    """
    target, metric = scores.keys[index]
    told = target == MACRO or np.isnan(values).any()
    notes = [scores.reasons[target]] if told and target in scores.reasons else []
    nothing = no_interval(values)
    if math.isnan(nothing.mean):
        return nothing, notes
    if influences.shape[1] < 2:
        return nothing, [*notes, ONE_PATIENT]
    if target != MACRO and _too_few(metric, *scores.patients[target]):
        return nothing, [*notes, TOO_FEW_WITH_LABEL]
    if metric == "auroc" and np.isfinite(influences).all():
        mean, more = infer_mean(values, influences @ influences.T), seed_notes(values)
    else:
        mean, more = infer_from_draws(values, draws[:, :, index])
        by_draws = metric == "auroc" and not math.isnan(mean.low)
        more = [BY_BOOTSTRAP, *more] if by_draws else more
    return mean, notes + more


def _too_few(metric: str, num_with: int, num_without: int) -> bool:
    """Whether a label has too few patients for an interval of this metric."""
    needed = {"accuracy": (), "sensitivity": (num_with,), "specificity": (num_without,)}
    return min(needed.get(metric, (num_with, num_without)), default=2) < 2


def _perfect_low(scores: ArmScores, target: str) -> float:
    """Lower end of a score that is 1 in every seed: Wilson's for as many successes as patients.

    Of a label the smaller number counts, patients with it or without it. Macro: the mean over
    labels, put together as ``mean_share_interval`` does.
    """
    chosen = scores.patients if target == MACRO else (target,)
    units = np.array([min(scores.patients[name]) for name in chosen])
    bounds = mean_share_interval(units, units)
    return bounds[0] if bounds else math.nan


def _columns(row: dict[tuple[str, str], np.ndarray]) -> np.ndarray:
    """(B, M) of a flat table."""
    return np.stack(list(row.values()), axis=1)
