"""Sections of a sweep's page that show arms side by side; large sweeps show their main cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.arm_statistics import Difference
from utils.classification_scores import MACRO
from utils.html_report import Page
from utils.sweep_cells import (
    Comparison,
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


def add_comparisons(page: Page, scores: SweepScores) -> None:
    """Macro AUROC of arms against their reference; then by diagnosis at the smallest share."""
    pairs = scores.comparisons
    if len(pairs) > MAX_ROWS:
        shown = main_cells(scores.estimates)
        pairs = [pair for pair in pairs if pair.cell in shown and pair.reference in shown]
    rows = [_comparison_row(pair, d) for pair in pairs for d in _of(pair, MACRO)]
    if not rows:
        return
    page.heading("Arm against arm")
    missing = len(scores.comparisons) - len(pairs)
    page.table(
        rows,
        dense=True,
        caption="Macro AUROC, paired by seed and by test patient, with the 95 % interval of the "
        "difference; p (Holm) allows for the number of comparisons."
        + (f" {missing} more comparisons are in comparisons.csv." if missing else ""),
    )
    for share in shown_shares(scores.estimates)[:1]:
        cells = set(shown_cells(scores.estimates, share).values())
        _add_differences(page, [p for p in pairs if {p.cell, p.reference} <= cells], share, scores)


def _add_differences(
    page: Page, pairs: Sequence[Comparison], share: float, scores: SweepScores
) -> None:
    """A row per diagnosis, a column per comparison."""
    rows: dict[str, dict[str, object]] = {}
    for pair in pairs:
        name = f"{arm_name(pair.cell[0])} − {arm_name(pair.reference[0])}"
        for found in pair.differences:
            if found.metric == "auroc" and found.target != MACRO:
                row = rows.setdefault(found.target, {"diagnosis": found.target})
                row[name] = _difference_text(found)
    if rows:
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        page.table(
            list(rows.values()),
            columns,
            dense=True,
            caption="Difference in AUROC by diagnosis, "
            f"{place_name(scores.estimates, share)}, with "
            "its 95 % interval.",
        )


def _of(pair: Comparison, target: str) -> list[Difference]:
    return [d for d in pair.differences if (d.target, d.metric) == (target, "auroc")]


def _comparison_row(pair: Comparison, found: Difference) -> dict[str, object]:
    arm, share, ratio = pair.cell
    reference, reference_share, reference_ratio = pair.reference
    return {
        "arm": arm_name(arm),
        "reference": arm_name(reference),
        "labels": _percent(share, reference_share),
        "synthetic": _percent(ratio, reference_ratio),
        "AUROC": f"{found.value:.3f}",
        "reference AUROC": f"{found.reference_value:.3f}",
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
