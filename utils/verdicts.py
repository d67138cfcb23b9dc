"""What the comparisons of a table say: Holm's correction, gain or not, and a sentence of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from utils.arm_estimates import ONE_SEED, Difference
from utils.classification_scores import LOWER_IS_BETTER, MACRO, METRIC_NAMES

ALL = "all"  # the target of scores over the whole test set, of whatever findings
SIGNIFICANCE = 0.05


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction, valid whatever the dependence (Holm 1979).

    Args:
        p: (T,) p values of one family; NaN is no test: it stays NaN and does not count.

    Returns:
        (T,) corrected p values: below 0.05 at most one family in twenty has a false one.
    """
    p = np.asarray(p, np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return corrected


def correct_by_holm(comparisons: Sequence[Sequence[Difference]]) -> list[list[Difference]]:
    """Fill ``p_holm`` of all comparisons of a table.

    A family is one metric in all comparisons: its macro figures are one, those over all another,
    those of the labels a third, so that the diagnoses do not blur the main question.

    Args:
        comparisons: What ``compare_arms`` returned, for each pair of arms of the table.
    """
    families: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row, differences in enumerate(comparisons):
        for column, found in enumerate(differences):
            family = found.target if found.target in (ALL, MACRO) else "label"
            families.setdefault((found.metric, family), []).append((row, column))
    filled = [list(differences) for differences in comparisons]
    for places in families.values():
        corrected = holm(np.array([comparisons[row][column].p for row, column in places]))
        for (row, column), p in zip(places, corrected):
            filled[row][column] = replace(filled[row][column], p_holm=float(p))
    return filled


def is_gain(difference: Difference) -> bool:
    """Whether the arm is shown to be better than its reference arm, after Holm's correction."""
    sign = -1 if difference.metric in LOWER_IS_BETTER else 1
    return difference.p_holm < SIGNIFICANCE and sign * difference.difference > 0


def sentence(
    difference: Difference,
    *,
    arm: str,
    reference_arm: str,
    label_share: float,
    names: Mapping[str, str] = METRIC_NAMES,
    share_of: str = "labels",
) -> str:
    """What a comparison says, in words.

    Args:
        difference: From ``correct_by_holm``.
        arm: Its name.
        reference_arm: Name of the arm that it is compared with.
        label_share: Of the labelled real patients, in percent.
        names: Metric -> what it is called.
        share_of: What the share is of, "pairs" for reports.
    """
    name = names[difference.metric]
    if difference.target != ALL:
        name = f"macro {name}" if difference.target == MACRO else f"{name} of {difference.target}"
    start = f"Without real {share_of}, "
    if label_share:
        start = f"With {label_share:g} % of the {share_of}, "
    if math.isnan(difference.p_holm):
        why = difference.reason or "no p value"
        return f"{start}{arm} and {reference_arm} cannot be compared by {name}: {why}."
    if difference.p_holm >= SIGNIFICANCE:
        verdict = f"no difference between {arm} and {reference_arm} is shown"
    else:
        verdict = f"{arm} is {'better' if is_gain(difference) else 'worse'} than {reference_arm}"
    p = "p < 0.001" if difference.p_holm < 0.001 else f"p = {difference.p_holm:.3f}"
    seeds = f"{difference.num_seeds} seeds" if difference.num_seeds > 1 else ONE_SEED
    return (
        f"{start}{verdict}: {name} {difference.value:.3f} against "
        f"{difference.reference_value:.3f}, difference {difference.difference:+.3f} "
        f"[{difference.low:.3f}, {difference.high:.3f}], {p} after Holm's correction, {seeds}."
    )
