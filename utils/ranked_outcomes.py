"""Outcomes at every threshold of a score, for many weightings of the images at once.

What AUROC, AUPRC and sensitivity at a specificity have in common: the images sorted once, the
weights summed from the highest score down. Shapes: B weightings, N images, P positives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPECIFICITY = 0.95


@dataclass(frozen=True)
class RankedOutcomes:
    """Weighted outcomes at the scores of the P positives, from the highest score down.

    Attributes:
        gained: (B, P), weight of each positive.
        true: (B, P), positives that score as high or higher.
        false: (B, P), negatives that score as high or higher.
        false_above: (B, P), negatives that score higher.
        positives: (B,), all.
        negatives: (B,), all.
    """

    gained: np.ndarray
    true: np.ndarray
    false: np.ndarray
    false_above: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


def ranked_outcomes(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> RankedOutcomes:
    """Outcomes from scores (N,), positive (N,) bool and weight (B, N)."""
    order = np.argsort(-scores, kind="stable")
    parts = [order[positive[order]], order[~positive[order]]]
    lost = [-scores[part] for part in parts]  # rising
    gained = weight[:, parts[0]]
    sums = [np.zeros((len(weight), len(part) + 1), weight.dtype) for part in parts]
    np.cumsum(gained, axis=1, out=sums[0][:, 1:])
    np.cumsum(weight[:, parts[1]], axis=1, out=sums[1][:, 1:])
    return RankedOutcomes(
        gained,
        true=sums[0][:, np.searchsorted(lost[0], lost[0], side="right")],
        false=sums[1][:, np.searchsorted(lost[1], lost[0], side="right")],
        false_above=sums[1][:, np.searchsorted(lost[1], lost[0], side="left")],
        positives=sums[0][:, -1],
        negatives=sums[1][:, -1],
    )


def area_under_curve(ranked: RankedOutcomes) -> np.ndarray:
    """AUROC (B,)."""
    beaten = ranked.negatives[:, None] - (ranked.false + ranked.false_above) / 2
    won = (ranked.gained * beaten).sum(axis=1)
    return ratio(won, ranked.positives * ranked.negatives)


def average_precision(ranked: RankedOutcomes) -> np.ndarray:
    """AUPRC (B,)."""
    called = ranked.true + ranked.false
    precision = ranked.true / np.where(called > 0, called, 1)
    return ratio((ranked.gained * precision).sum(axis=1), ranked.positives)


def specific_sensitivity(ranked: RankedOutcomes) -> np.ndarray:
    """Sensitivity at 95 % specificity (B,)."""
    most = (1 - SPECIFICITY) * ranked.negatives + 1e-6  # 0.05 x 140 is 7.000000000000001
    allowed = ranked.false <= most[:, None]
    found = np.where(allowed, ranked.true, 0).max(axis=1, initial=0)
    return np.where(ranked.negatives > 0, ratio(found, ranked.positives), np.nan)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, np.nan)
