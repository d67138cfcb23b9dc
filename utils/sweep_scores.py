"""The statistics of a sweep: every arm with its interval, every comparison with its p value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from utils.arm_estimates import Difference
from utils.arm_statistics import compare_arms, estimate_arm, score_arm
from utils.classification_scores import METRIC_NAMES
from utils.sweep_cells import (
    DIAGNOSIS,
    Cell,
    Comparison,
    MainFigure,
    SweepScores,
    arm_name,
    cell_of,
    runs_of,
)
from utils.sweep_results import SweepResults
from utils.verdicts import correct_by_holm, sentence


def score_sweep(
    results: SweepResults, *, reference_arm: str, num_resamples: int, seed: int
) -> SweepScores:
    """Estimates of all cells, and every other arm against the reference arm.

    An arm is compared with the reference at the same label share and, if that has one, the same
    synthetic ratio; an arm that uses no label with the reference at every share.

    Args:
        results: The runs.
        reference_arm: What the others are compared with.
        num_resamples: Bootstrap draws of patients, at least 2.
        seed: Of the draws.
    """
    cells = list(dict.fromkeys(cell_of(run.key) for run in results.runs))
    found = {
        cell: score_arm(
            np.stack([run.probs for run in runs_of(results, cell)]),
            results.targets,
            results.labels,
            multi_label=results.multi_label,
            patients=results.patients,
            num_resamples=num_resamples,
            seed=seed,
        )
        for cell in cells
    }
    estimates = {cell: estimate_arm(scores) for cell, scores in found.items()}
    return SweepScores(estimates, compare_cells(found, reference_arm, compare_arms))


def compare_cells(
    found: Mapping[Cell, Any],
    reference_arm: str,
    compare: Callable[..., Sequence[Difference]],
    *,
    apart: Collection[str] = (),
) -> list[Comparison]:
    """Every other arm against the reference arm, corrected for their number.

    Args:
        found: Cell -> what ``compare`` needs of it.
        reference_arm: What the others are compared with.
        compare: Makes the differences of ``other`` from ``reference``.
        apart: Arms that ask another question: their comparisons are corrected among themselves.
    """
    pairs = [
        (cell, reference)
        for cell in found
        if cell[0] != reference_arm
        for reference in references_of(cell, found, reference_arm)
    ]
    corrected = []
    for family in ([p for p in pairs if (p[0][0] in apart) == asked] for asked in (False, True)):
        differences = correct_by_holm(
            [compare(reference=found[reference], other=found[cell]) for cell, reference in family]
        )
        corrected += [Comparison(*pair, own) for pair, own in zip(family, differences)]
    return corrected


def references_of(cell: Cell, cells: Collection[Cell], reference_arm: str) -> list[Cell]:
    """The cells of the reference arm that a cell is compared with."""
    _, share, ratio = cell
    return [
        other
        for other in cells
        if other[0] == reference_arm
        and (share == other[1] or 0 in (share, other[1]))
        and (ratio == other[2] or 0 in (ratio, other[2]))
    ]


def verdict(
    scores: SweepScores,
    *,
    figure: MainFigure = DIAGNOSIS,
    names: Mapping[str, str] = METRIC_NAMES,
    only: Collection[Cell] | None = None,
) -> list[str]:
    """A sentence for each comparison, on the main figure.

    Args:
        scores: Of the sweep.
        figure: What it turns on.
        names: Metric -> what it is called.
        only: Cells to speak of; None: all.
    """
    return [
        sentence(
            found,
            arm=arm_name(pair.cell[0]) + _ratio(pair.cell, scores),
            reference_arm=arm_name(pair.reference[0]),
            label_share=pair.reference[1] or pair.cell[1],
            names=names,
            share_of=f"{figure.unit}s",
        )
        for pair in scores.comparisons
        for found in pair.differences
        if (found.target, found.metric) == (figure.target, figure.metric)
        and (only is None or pair.cell in only)
    ]


def _ratio(cell: Cell, scores: SweepScores) -> str:
    """The synthetic ratio in words, where an arm was trained with several."""
    several = {ratio for arm, _, ratio in scores.estimates if arm == cell[0]}
    return f" (ratio {cell[2]:g} %)" if len(several) > 1 else ""
