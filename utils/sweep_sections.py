"""Sections of a sweep's page that show arms side by side; large sweeps show their main cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.arm_statistics import Difference
from utils.classification_scores import MACRO
from utils.html_report import Page
from utils.sweep_cells import (
    DIAGNOSIS,
    Comparison,
    MainFigure,
    SweepScores,
    arm_name,
    arms_of,
    main_cells,
    main_ratio,
    place_name,
    shares_of,
    shown_cells,
    shown_shares,
)
from utils.sweep_results import SweepResults
from utils.sweep_tables import diagnosis_rows, metric_rows, share_rows

MAX_ROWS = 40  # of a table on the page; the CSV files have every row


def add_diagnoses(page: Page, results: SweepResults, scores: SweepScores) -> None:
    """AUROC of every diagnosis by arm, and the other scores over all diagnoses."""
    page.heading("Diagnoses by arm")
    for share in shown_shares(scores.estimates):
        page.table(
            diagnosis_rows(scores, shown_cells(scores.estimates, share), results),
            dense=True,
            caption="AUROC of each diagnosis against the rest, "
            f"{place_name(scores.estimates, share)}; the mean over seeds, in brackets the 95 % "
            "interval.",
        )
    share = shown_shares(scores.estimates)[-1]
    page.table(
        metric_rows(scores, shown_cells(scores.estimates)),
        dense=True,
        caption=f"Scores over all diagnoses, {place_name(scores.estimates, share)}. Higher is "
        "better, except of the calibration error.",
    )


def add_shares(page: Page, results: SweepResults, scores: SweepScores) -> None:
    """Macro AUROC by label share and arm; nothing for a single share."""
    shares, ratio = shares_of(scores.estimates), main_ratio(scores.estimates)
    if len(shares) < 2:
        return
    page.heading("Label shares")
    at = f", synthetic ratio {ratio:g} %" if ratio else ""
    page.table(
        share_rows(scores, results, arms=arms_of(scores.estimates), ratio=ratio),
        dense=True,
        caption=f"Macro AUROC by share of labelled patients{at}; mean over seeds, in brackets the "
        "95 % interval.",
    )


def add_comparisons(page: Page, scores: SweepScores, figure: MainFigure = DIAGNOSIS) -> None:
    """The main figure of arms against their reference; then by target at the smallest share."""
    pairs = scores.comparisons
    if len(pairs) > MAX_ROWS:
        shown = main_cells(scores.estimates)
        pairs = [pair for pair in pairs if pair.cell in shown and pair.reference in shown]
    rows = [_comparison_row(pair, d, figure) for pair in pairs for d in _of(pair, figure)]
    if not rows:
        return
    page.heading("Arm against arm")
    missing = len(scores.comparisons) - len(pairs)
    page.table(
        rows,
        dense=True,
        caption=f"{figure.over_all[0].upper()}{figure.over_all[1:]}, paired by seed and by test "
        "patient, with the 95 % interval of the difference; p (Holm) allows for the number of "
        "comparisons."
        + (f" {missing} more comparisons are in comparisons.csv." if missing else ""),
    )
    for share in shown_shares(scores.estimates)[:1]:
        cells = set(shown_cells(scores.estimates, share).values())
        own = [pair for pair in pairs if {pair.cell, pair.reference} <= cells]
        place = place_name(scores.estimates, share, figure)
        _add_differences(page, own, place, figure)


def _add_differences(
    page: Page, pairs: Sequence[Comparison], place: str, figure: MainFigure
) -> None:
    """A row per target, a column per comparison."""
    rows: dict[str, dict[str, object]] = {}
    for pair in pairs:
        name = f"{arm_name(pair.cell[0])} − {arm_name(pair.reference[0])}"
        for found in pair.differences:
            undefined = math.isnan(found.difference)
            of_all = found.target in (MACRO, figure.target)
            if found.metric == figure.metric and not of_all and not undefined:
                row = rows.setdefault(found.target, {figure.subject: found.target})
                row[name] = _difference_text(found)
    if rows:
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        page.table(
            list(rows.values()),
            columns,
            dense=True,
            caption=f"Difference in {figure.name} by {figure.subject}, {place}, with its 95 % "
            "interval.",
        )


def _of(pair: Comparison, figure: MainFigure) -> list[Difference]:
    wanted = figure.target, figure.metric
    return [d for d in pair.differences if (d.target, d.metric) == wanted]


def _comparison_row(pair: Comparison, found: Difference, figure: MainFigure) -> dict[str, object]:
    arm, share, ratio = pair.cell
    reference, reference_share, reference_ratio = pair.reference
    return {
        "arm": arm_name(arm),
        "reference": arm_name(reference),
        f"{figure.unit}s": _percent(share, reference_share),
        "synthetic": _percent(ratio, reference_ratio),
        figure.name: f"{found.value:.3f}",
        f"reference {figure.name}": f"{found.reference_value:.3f}",
        "difference": _difference_text(found),
        "p": _p_text(found.p),
        "p (Holm)": _p_text(found.p_holm),
    }


def _percent(own: float, other: float) -> str:
    """A share of the arm and of its reference; one of them if they are equal or one is 0."""
    known = list(dict.fromkeys(f"{value:g}\N{NO-BREAK SPACE}%" for value in (own, other) if value))
    return " / ".join(known) or "–"


def _difference_text(found: Difference) -> str:
    """``+0.032 [+0.010, +0.055]``."""
    if math.isnan(found.difference):
        return "–"
    text = f"{found.difference:+.3f}"
    if not math.isnan(found.low):
        text += f" [{found.low:+.3f},\N{NO-BREAK SPACE}{found.high:+.3f}]"
    return text.replace("-", "\N{MINUS SIGN}")


def _p_text(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"
