"""Sections of a sweep's page that look closely: decisions, calibration, sources, single runs."""

from __future__ import annotations

from collections.abc import Sequence

from utils import diagnosis_sections as sections
from utils.classification_scores import MACRO
from utils.diagnosis_report import with_interval
from utils.html_report import Page
from utils.reliability import reliability_rows
from utils.source_scores import shortcut_warnings, source_rows
from utils.sweep_cells import (
    Cell,
    SweepScores,
    arm_name,
    cell_name,
    cell_of,
    main_cells,
    mean_probs,
    runs_of,
    shown_cells,
)
from utils.sweep_results import RunResult, SweepResults
from utils.sweep_tables import RUN_COLUMNS, run_rows

MAX_ROWS = 40  # of the table of runs; runs.csv has all
MAX_SOURCES = 6
RUN_HEADS = {
    "arm": "arm",
    "label_share": "labels, %",
    "synthetic_ratio": "ratio, %",
    "seed": "seed",
    "num_real": "real",
    "num_synthetic": "synthetic",
    "num_unlabeled": "unlabeled",
    "num_patients": "patients",
    "steps": "steps",
    "best_epoch": "epoch kept",
    "temperature": "T",
    "val_loss": "loss",
}


def add_decisions(page: Page, results: SweepResults, scores: SweepScores) -> None:
    """What each arm says of the test images at the largest label share, the mean over seeds."""
    cells = shown_cells(scores.estimates)
    several = len(cells) > 1
    page.heading("Confusion matrices and ROC curves" if several else "Confusion matrix")
    if max(len(runs_of(results, cell)) for cell in cells.values()) > 1:
        page.paragraph("Decided by the mean of the seeds' probabilities.")
    for cell in cells.values():
        if several:
            page.heading(cell_name(cell), level=3)
        probs = mean_probs(results, cell)
        sections.add_confusion(
            page, probs, results.targets, results.labels, multi_label=results.multi_label
        )
        if not several:
            page.heading("ROC curves")
        sections.add_roc(page, probs, results.targets, results.labels)


def add_calibration(page: Page, results: SweepResults, scores: SweepScores, *, best: Cell) -> None:
    """Calibration error of each arm, and how often the best is right where it says it is."""
    page.heading("Calibration")
    rows = []
    for arm, cell in shown_cells(scores.estimates).items():
        found = scores.macro(cell, "ece")
        rows.append(
            {
                "arm": arm_name(arm),
                "calibration error": None if found is None else with_interval(found),
                "temperature": _mean(
                    [run.facts.get("temperature") for run in runs_of(results, cell)]
                ),
            }
        )
    page.table(
        rows,
        caption="Mean distance between probability and share of right decisions (ECE), 0 is best; "
        "temperature: what the logits were divided by, fitted on the validation images.",
    )
    page.table(
        reliability_rows(
            [run.probs for run in runs_of(results, best)],
            results.targets,
            multi_label=results.multi_label,
        ),
        {
            "probability": "probability",
            "decisions": "decisions",
            "mean_probability": "mean probability",
            "share_right": "share right",
        },
        caption=f"{cell_name(best)}, decisions of all its seeds: the last two columns would agree "
        "if probabilities were frequencies.",
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def add_sources(page: Page, results: SweepResults, scores: SweepScores) -> None:
    """AUROC within each source of images; nothing where there is one source only."""
    cells = set(shown_cells(scores.estimates).values())
    rows = [
        row
        for row in source_rows(results)
        if row["target"] == MACRO and tuple(row[key] for key in RUN_COLUMNS[:3]) in cells
    ]
    if not rows:
        return
    page.heading("Sources")
    if warnings := shortcut_warnings(results):
        page.notice(warnings, kind="warning", title="Shortcut")
    sizes = {row["source"]: row["n"] for row in rows}
    largest = sorted(sizes, key=lambda source: -sizes[source])[:MAX_SOURCES]
    shown = [
        {
            "arm": arm_name(row["arm"]),
            "source": row["source"],
            "images": row["n"],
            "within": _three_decimals(_number(row["value"])),
            "all": _three_decimals(_number(row["value_all_sources"])),
        }
        for row in sorted(rows, key=lambda row: largest.index(row["source"]))
        if row["source"] in largest
    ]
    page.table(
        shown,
        {
            "arm": "arm",
            "source": "source",
            "images": "images",
            "within": "AUROC within the source",
            "all": "AUROC over all sources",
        },
        caption="Macro AUROC over the diagnoses that some images of the source have and some have "
        "not, the same diagnoses in both columns; mean over seeds. Where the second is much larger "
        "the source is recognised, not the diagnosis. By diagnosis: sources.csv.",
    )


def add_training(page: Page, results: SweepResults, scores: SweepScores) -> None:
    """The loss by epoch of each arm's first seed at the largest label share."""
    firsts = {arm: runs_of(results, cell)[0] for arm, cell in shown_cells(scores.estimates).items()}
    # A probe is fitted at once and has no curve.
    firsts = {a: run for a, run in firsts.items() if run.history and "train_loss" in run.history[0]}
    if not firsts:
        return
    page.heading("Training")
    if len(firsts) == 1:
        sections.add_training(page, next(iter(firsts.values())).history)
        return
    for key, images in (("train_loss", "training"), ("val_loss", "validation")):
        page.curve(
            {
                arm_name(arm): [(n, row.get(key)) for n, row in enumerate(run.history, start=1)]
                for arm, run in firsts.items()
            },
            title=f"Loss on {images} images",
            x_label="epoch",
            y_label="loss",
            caption="One seed of each arm, at the largest label share.",
        )


def add_runs(page: Page, results: SweepResults, scores: SweepScores) -> None:
    """What every run was trained on and how it went; of a large sweep, of the shown cells."""
    runs: Sequence[RunResult] = results.runs
    if len(runs) > MAX_ROWS:
        cells = main_cells(scores.estimates)
        runs = [run for run in runs if cell_of(run.key) in cells][:MAX_ROWS]
    rows = [
        row | {"arm": arm_name(row["arm"]), "val_loss": _three_decimals(row["val_loss"])}
        for row in run_rows(runs)
    ]
    # A column of which nothing is known, or of images that no run has, says nothing.
    known = {
        key: head
        for key, head in RUN_HEADS.items()
        if key == "seed" or any(row[key] not in (None, 0) for row in rows)
    }
    page.heading("Runs")
    more = len(results.runs) - len(runs)
    page.table(
        rows,
        known,
        dense=True,
        caption="Label share, synthetic ratio and images of each kind that a run was trained on, "
        "the epoch that is kept, its temperature T and its validation loss at that temperature."
        + (f" {more:,} more runs are in runs.csv." if more else ""),
    )


def _three_decimals(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _number(cell: str) -> float | None:
    return float(cell) if cell else None
