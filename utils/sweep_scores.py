"""The statistics of a sweep: every arm with its interval, every comparison with its p value."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from utils.arm_statistics import ArmScores, compare_arms, estimate_arm, score_arm
from utils.classification_scores import MACRO
from utils.sweep_cells import Cell, Comparison, SweepScores, arm_name, cell_of, runs_of
from utils.sweep_results import SweepResults
from utils.verdicts import correct_by_holm, sentence

MAIN_METRIC = "auroc"  # what the verdict in words is about


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
    pairs = [
        (cell, reference)
        for cell in cells
        if cell[0] != reference_arm
        for reference in references_of(cell, cells, reference_arm)
    ]
    return SweepScores(
        {cell: estimate_arm(scores) for cell, scores in found.items()}, _compared(pairs, found)
    )


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


def verdict(scores: SweepScores, *, only: Collection[Cell] | None = None) -> list[str]:
    """A sentence for each comparison, on the macro AUROC.

    Args:
        scores: Of the sweep.
        only: Cells to speak of; None: all.
    """
    return [
        sentence(
            found,
            arm=arm_name(pair.cell[0]) + _ratio(pair.cell, scores),
            reference_arm=arm_name(pair.reference[0]),
            label_share=pair.reference[1] or pair.cell[1],
        )
        for pair in scores.comparisons
        for found in pair.differences
        if (found.target, found.metric) == (MACRO, MAIN_METRIC)
        and (only is None or pair.cell in only)
    ]


def _ratio(cell: Cell, scores: SweepScores) -> str:
    """The synthetic ratio in words, where an arm was trained with several."""
    several = {ratio for arm, _, ratio in scores.estimates if arm == cell[0]}
    return f" (ratio {cell[2]:g} %)" if len(several) > 1 else ""


def _compared(pairs: Sequence[tuple[Cell, Cell]], found: dict[Cell, ArmScores]) -> list[Comparison]:
    differences = correct_by_holm(
        [compare_arms(reference=found[reference], other=found[cell]) for cell, reference in pairs]
    )
    return [Comparison(cell, reference, own) for (cell, reference), own in zip(pairs, differences)]
