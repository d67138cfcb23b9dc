"""Sections of the page of report models that show arms and baselines side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

from utils.classification_scores import MACRO
from utils.html_report import Page
from utils.report_scores import METRIC_NAMES
from utils.sweep_cells import (
    Cell,
    MainFigure,
    SweepScores,
    arm_name,
    place_name,
    shares_of,
    shown_cells,
    shown_shares,
)
from utils.sweep_curves import add_ratio_curves, add_share_curve
from utils.sweep_tables import arm_texts, metric_rows
from utils.verdicts import ALL

_FINDING_F1 = "finding_f1"
_UNDEFINED = "–"


def main_figure(metric: str) -> MainFigure:
    """What the page turns on: a metric of ``METRIC_NAMES`` over all test reports."""
    name = METRIC_NAMES[metric]
    return MainFigure(
        target=ALL,
        metric=metric,
        name=name,
        over_all=name,
        mean_over="seeds",
        subject="finding",
        unit="pair",
        share="share of the pairs",
        patients="real patients whose pairs are used",
        level="or baseline that does not depend on the share",
    )


def add_scores(page: Page, scores: SweepScores, figure: MainFigure) -> None:
    """A row per score, a column per arm and baseline, at the smallest and the largest share."""
    page.heading("Scores by arm")
    findings = {key: name for key, name in METRIC_NAMES.items() if key.startswith("finding")}
    others = {key: name for key, name in METRIC_NAMES.items() if key not in findings}
    macro = {_FINDING_F1: f"{METRIC_NAMES[_FINDING_F1]}, mean over findings"}
    for share in shown_shares(scores.estimates):
        cells = shown_cells(scores.estimates, share)
        rows = metric_rows(scores, cells, names=findings, target=ALL)
        rows += metric_rows(scores, cells, names=macro, target=MACRO)
        rows += metric_rows(scores, cells, names=others, target=ALL)
        _add_place(page, scores, share, figure)
        page.table(
            [row for row in rows if {*row.values()} - {row["score"], _UNDEFINED, None}],
            dense=True,
            caption="The mean over seeds, in brackets the 95 % interval; higher is better. "
            "Precision, recall and F1 count the findings of all test reports together.",
        )


def add_findings(
    page: Page, scores: SweepScores, figure: MainFigure, *, named: Mapping[str, int]
) -> None:
    """F1 of every finding by arm with intervals, then precision and recall.

    Args:
        page: To add to.
        scores: The statistics.
        figure: What the page turns on.
        named: Finding -> how many of the true test reports name it; none: no section.
    """
    if not named:
        return
    page.heading("Findings by arm")
    for share in shown_shares(scores.estimates):
        cells = shown_cells(scores.estimates, share)
        known = [name for name in named if _is_known(scores, cells, name)]
        _add_place(page, scores, share, figure)
        rows = [
            {"finding": name, "reports": count, **arm_texts(scores, cells, name, _FINDING_F1)}
            for name, count in named.items()
            if name in known
        ]
        page.table(
            rows,
            dense=True,
            caption="F1 of each finding that a report names, true or written. Reports: the true "
            "ones that name it.",
        )
        page.table(
            [
                {"finding": name}
                | {arm_name(arm): _precision_recall(scores, c, name) for arm, c in cells.items()}
                for name in known
            ],
            dense=True,
            caption="Precision / recall: which share of the findings that an arm names is right, "
            "and which share of those in the true reports it names.",
        )


def add_curves(page: Page, scores: SweepScores, figure: MainFigure) -> None:
    """The main figure against the share of the pairs and against the synthetic ratio."""
    if len(shares_of(scores.estimates)) > 1:
        page.heading("Shares of the pairs")
    add_share_curve(page, scores, figure)
    add_ratio_curves(page, scores, figure)


def _is_known(scores: SweepScores, cells: Mapping[str, Cell], finding: str) -> bool:
    """Whether a test report or one that was written names a finding."""
    found = [scores.find(cell, finding, _FINDING_F1) for cell in cells.values()]
    return any(one is not None and not math.isnan(one.value) for one in found)


def _add_place(page: Page, scores: SweepScores, share: float, figure: MainFigure) -> None:
    place = place_name(scores.estimates, share, figure)
    if place:
        page.heading(f"{place[0].upper()}{place[1:]}", level=3)


def _precision_recall(scores: SweepScores, cell: Cell, finding: str) -> str:
    found = [scores.find(cell, finding, f"finding_{name}") for name in ("precision", "recall")]
    return "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}".join(
        _UNDEFINED if one is None or math.isnan(one.value) else f"{one.value:.2f}" for one in found
    )
