"""The cells of a sweep, an arm at a label share and a synthetic ratio each, and their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.arm_statistics import Difference, Estimate
from utils.classification_scores import MACRO
from utils.sweep_plan import RunKey
from utils.sweep_results import RunResult, SweepResults

Cell = tuple[str, float, float]  # arm, label share in percent, synthetic ratio in percent


@dataclass(frozen=True)
class MainFigure:
    """The figure that the page of a sweep turns on, and the words for it.

    Attributes:
        target: Over the whole test set, as estimates name it.
        metric: As estimates name it.
        name: Of the metric: ``AUROC``.
        over_all: Name of the figure: ``macro AUROC``.
        mean_over: What it is a mean of.
        subject: What else is a target: ``diagnosis``.
        unit: What the label share is a share of: ``label``.
        share: What the label share is called.
        patients: Whom it counts.
        level: Which arm does not depend on the label share.
    """

    target: str
    metric: str
    name: str
    over_all: str
    mean_over: str
    subject: str
    unit: str
    share: str
    patients: str
    level: str


DIAGNOSIS = MainFigure(
    target=MACRO,
    metric="auroc",
    name="AUROC",
    over_all="macro AUROC",
    mean_over="all diagnoses and seeds",
    subject="diagnosis",
    unit="label",
    share="label share",
    patients="labelled patients in training",
    level="that uses no real label",
)


@dataclass(frozen=True)
class Comparison:
    """An arm against another: ``differences`` of ``cell`` minus ``reference``."""

    cell: Cell
    reference: Cell
    differences: Sequence[Difference]


@dataclass(frozen=True)
class SweepScores:
    """The statistics of a sweep.

    Attributes:
        estimates: Cell -> its scores, the mean over its seeds; arms in the order to show them.
        comparisons: Arms against their reference.
    """

    estimates: Mapping[Cell, Sequence[Estimate]]
    comparisons: Sequence[Comparison]

    def find(self, cell: Cell | None, target: str, metric: str) -> Estimate | None:
        """One score of a cell; None if it was not computed."""
        found = self.estimates.get(cell, ())
        return next((e for e in found if (e.target, e.metric) == (target, metric)), None)

    def macro(self, cell: Cell | None, metric: str) -> Estimate | None:
        """One score of a cell over all diagnoses."""
        return self.find(cell, MACRO, metric)


def cell_of(key: RunKey) -> Cell:
    """The cell that a run belongs to; runs of a cell differ in their seed."""
    return key.arm, key.label_share, key.synthetic_ratio


def arm_name(arm: str) -> str:
    """An arm as a reader sees it: ``real + synthetic``, ``mae → probe``."""
    return arm.replace("+", " + ").replace("->", " → ")


def arms_of(cells: Iterable[Cell]) -> list[str]:
    """Every arm once, in order."""
    return list(dict.fromkeys(arm for arm, _, _ in cells))


def shares_of(cells: Iterable[Cell]) -> list[float]:
    """Label shares, ascending, without the 0 of arms that use no label."""
    return sorted({share for _, share, _ in cells if share})


def ratios_of(cells: Iterable[Cell]) -> list[float]:
    """Synthetic ratios, ascending, without the 0 of arms that use no synthetic image."""
    return sorted({ratio for _, _, ratio in cells if ratio})


def main_ratio(cells: Iterable[Cell]) -> float:
    """The ratio that most cells have, of equals the smallest; 0 where no arm is synthetic.

    Not the one of the best scores: to choose by the test images would flatter.
    """
    counts = Counter(ratio for _, _, ratio in cells if ratio)
    return min(counts, key=lambda ratio: (-counts[ratio], ratio), default=0.0)


def cells_at(cells: Iterable[Cell], share: float, ratio: float) -> dict[str, Cell]:
    """Arm -> its cell at a label share and ratio; arms that use no label, or no image, have 0."""
    cells = list(cells)
    wanted = ((share, ratio), (share, 0.0), (0.0, ratio), (0.0, 0.0))
    found = {}
    for arm in arms_of(cells):
        matching = [(arm, *place) for place in wanted if (arm, *place) in cells]
        found |= {arm: matching[0]} if matching else {}
    return found


def runs_of(results: SweepResults, cell: Cell) -> list[RunResult]:
    """The runs of a cell, one per seed."""
    return [run for run in results.runs if cell_of(run.key) == cell]


def mean_probs(results: SweepResults, cell: Cell) -> np.ndarray:
    """Probabilities (N, L) of a cell, the mean over its seeds."""
    return np.mean([run.probs for run in runs_of(results, cell)], axis=0)


def cell_name(cell: Cell, figure: MainFigure = DIAGNOSIS) -> str:
    """A cell in words: ``real + synthetic, 10 % of the labels, synthetic ratio 100 %``."""
    arm, share, ratio = cell
    return ", ".join([arm_name(arm), *_place(share, ratio, figure)])


def shown_shares(cells: Iterable[Cell]) -> list[float]:
    """The smallest and the largest label share; 0 where no arm uses labels."""
    shares = shares_of(cells)
    return list(dict.fromkeys(shares[:1] + shares[-1:])) or [0.0]


def shown_cells(cells: Collection[Cell], share: float | None = None) -> dict[str, Cell]:
    """Arm -> its cell at a label share (None: the largest) and the main ratio."""
    share = shown_shares(cells)[-1] if share is None else share
    return cells_at(cells, share, main_ratio(cells))


def main_cells(cells: Collection[Cell]) -> set[Cell]:
    """The cells that a page shows of a large sweep: those of ``shown_shares``."""
    return {cell for share in shown_shares(cells) for cell in shown_cells(cells, share).values()}


def place_name(cells: Iterable[Cell], share: float, figure: MainFigure = DIAGNOSIS) -> str:
    """Label share and ratio of a table in words."""
    return ", ".join(_place(share, main_ratio(cells), figure))


def _place(share: float, ratio: float, figure: MainFigure) -> list[str]:
    parts = [f"{share:g} % of the {figure.unit}s"] if share else []
    return parts + ([f"synthetic ratio {round(ratio, 1):g} %"] if ratio else [])
