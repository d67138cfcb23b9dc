"""Tables of a sweep: rows of its CSV files and of its page, and entries of results.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils import run_folder
from utils.arm_statistics import Difference
from utils.classification_scores import MACRO, METRIC_NAMES, score_classification
from utils.diagnosis_report import (
    COMPARISON_COLUMNS,
    RESULT_COLUMNS,
    result_entries,
    result_rows,
    six_digits,
    target_name,
    with_interval,
)
from utils.source_scores import SOURCE_COLUMNS, source_rows
from utils.sweep_cells import (
    Cell,
    Comparison,
    SweepScores,
    arm_name,
    cells_at,
    shares_of,
)
from utils.sweep_results import Result, SweepResults

RUN_COLUMNS = (
    "arm",
    "label_share",
    "synthetic_ratio",
    "seed",
    "num_real",
    "num_synthetic",
    "num_unlabeled",
    "num_patients",
    "steps",
    "best_epoch",
    "temperature",
    "val_loss",
    "val_auroc",
)


def write_tables(
    folder: Path, results: SweepResults, scores: SweepScores, *, num_resamples: int, seed: int
) -> None:
    """Write results.csv, comparisons.csv, runs.csv and, of several sources, sources.csv.

    Args:
        folder: Of the sweep.
        results: Its runs.
        scores: Their statistics.
        num_resamples: Bootstrap draws of patients for the intervals of each run; 0: none.
        seed: Of the draws, the same for every run.
    """
    rows = run_score_rows(results, num_resamples=num_resamples, seed=seed)
    run_folder.write_csv(folder / "results.csv", rows, RESULT_COLUMNS)
    compared = comparison_rows(scores.comparisons)
    run_folder.write_csv(folder / "comparisons.csv", compared, COMPARISON_COLUMNS)
    run_folder.write_csv(folder / "runs.csv", run_rows(results.runs), RUN_COLUMNS)
    if sources := source_rows(results):
        percent = ("label_share", "synthetic_ratio")
        rows = [row | {name: f"{row[name]:g}" for name in percent} for row in sources]
        run_folder.write_csv(folder / "sources.csv", rows, SOURCE_COLUMNS)


def run_score_rows(
    results: SweepResults, *, num_resamples: int, seed: int
) -> list[dict[str, object]]:
    """Rows of results.csv: every score of every run with its own interval over patients."""
    rows = []
    for run in results.runs:
        scores = score_classification(
            run.probs,
            results.targets,
            results.labels,
            multi_label=results.multi_label,
            patients=results.patients,
            num_resamples=num_resamples,
            seed=seed,
        )
        key = run.key
        rows += result_rows(
            scores,
            results.targets,
            results.labels,
            arm=key.arm,
            label_share=f"{key.label_share:g}",
            synthetic_ratio=f"{key.synthetic_ratio:g}",
            seed=key.seed,
        )
    return rows


def comparison_rows(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """Rows of comparisons.csv; share and ratio are those of the arm and those of its reference."""
    rows = []
    for pair in comparisons:
        arm, share, ratio = pair.cell
        reference_arm, reference_share, reference_ratio = pair.reference
        head = {
            "arm": arm,
            "reference_arm": reference_arm,
            "label_share": f"{share:g}",
            "synthetic_ratio": f"{ratio:g}",
            "reference_label_share": f"{reference_share:g}",
            "reference_synthetic_ratio": f"{reference_ratio:g}",
        }
        rows += [head | _difference_row(found) for found in pair.differences]
    return rows


def _difference_row(found: Difference) -> dict[str, object]:
    return {
        "target": found.target,
        "metric": found.metric,
        "reference_value": six_digits(found.reference_value),
        "value": six_digits(found.value),
        "difference": six_digits(found.difference),
        "ci95_low": six_digits(found.low),
        "ci95_high": six_digits(found.high),
        "p": three_digits(found.p),
        "p_holm": three_digits(found.p_holm),
        "num_seeds": found.num_seeds,
        "reason": found.reason,
    }


def three_digits(p: float) -> str:
    """A p value with three significant digits; empty where it is undefined."""
    return "" if math.isnan(p) else f"{p:.3g}"


def run_rows(
    runs: Sequence[Result], columns: Sequence[str] = RUN_COLUMNS
) -> list[dict[str, object]]:
    """Rows of runs.csv: what each run was trained on and how it went.

    Args:
        runs: Of the sweep.
        columns: The four of the key, then facts.
    """
    rows = []
    for run in runs:
        named = {name: getattr(run.key, name) for name in RUN_COLUMNS[:4]}
        named |= {name: f"{named[name]:g}" for name in ("label_share", "synthetic_ratio")}
        rows.append({name: run.facts.get(name) for name in columns} | named)
    return rows


def sweep_entries(scores: SweepScores) -> dict[str, object]:
    """Parts of results.json: ``arms`` (arm -> its cells with their scores), ``comparisons``."""
    arms: dict[str, list[dict[str, object]]] = {}
    for (arm, share, ratio), estimates in scores.estimates.items():
        cell = {"label_share": share, "synthetic_ratio": ratio}
        cell["num_seeds"] = max((e.num_seeds for e in estimates), default=0)
        arms.setdefault(arm, []).append(cell | {"scores": result_entries(estimates)})
    places = ("arm", "label_share", "synthetic_ratio")
    comparisons = [
        dict(zip(places, pair.cell))
        | {"reference": dict(zip(places, pair.reference)), "differences": list(pair.differences)}
        for pair in scores.comparisons
    ]
    return {"arms": arms, "comparisons": comparisons}


def diagnosis_rows(
    scores: SweepScores,
    cells: Mapping[str, Cell],
    results: SweepResults,
    *,
    metric: str = "auroc",
) -> list[dict[str, object]]:
    """A row per diagnosis and one for all, a column per arm: ``0.912 [0.87, 0.95]``.

    Args:
        scores: The estimates.
        cells: Arm -> the cell to show, in order.
        results: Labels and the number of test images with each.
        metric: Of ``METRIC_NAMES``.
    """
    positives = dict(zip(results.labels, results.targets.sum(axis=0).tolist()))
    return [
        {
            "diagnosis": target_name(target),
            "images": positives.get(target, len(results.targets)),
            **arm_texts(scores, cells, target, metric),
        }
        for target in [*results.labels, MACRO]
    ]


def metric_rows(
    scores: SweepScores,
    cells: Mapping[str, Cell],
    *,
    names: Mapping[str, str] = METRIC_NAMES,
    target: str = MACRO,
) -> list[dict[str, object]]:
    """A row per score of a target that was computed, a column per arm.

    Args:
        scores: The estimates.
        cells: Arm -> the cell to show, in order.
        names: Metric -> what it is called, in order.
        target: Over the whole test set.
    """
    known = {e.metric for c in cells.values() for e in scores.estimates[c] if e.target == target}
    return [
        {"score": name, **arm_texts(scores, cells, target, metric)}
        for metric, name in names.items()
        if metric in known
    ]


def arm_texts(
    scores: SweepScores, cells: Mapping[str, Cell], target: str, metric: str
) -> dict[str, str | None]:
    """Name of each arm -> a score of its cell, with the interval."""
    return {arm_name(arm): _cell_text(scores, c, target, metric) for arm, c in cells.items()}


def share_rows(
    scores: SweepScores,
    results: SweepResults,
    *,
    arms: Sequence[str],
    ratio: float,
    metric: str = "auroc",
) -> list[dict[str, object]]:
    """A row per label share, a column per arm: a score over all diagnoses."""
    rows = []
    for share in shares_of(scores.estimates):
        cells = cells_at(scores.estimates, share, ratio)
        runs = [run for run in results.runs if run.key.label_share == share]
        patients = [run.facts.get("num_patients") for run in runs]
        row = {
            "labels": f"{share:g}\N{NO-BREAK SPACE}%",
            "patients": min((n for n in patients if n is not None), default=None),
        }
        row |= {arm_name(arm): _cell_text(scores, cells.get(arm), MACRO, metric) for arm in arms}
        rows.append(row)
    return rows


def _cell_text(scores: SweepScores, cell: Cell | None, target: str, metric: str) -> str | None:
    found = scores.find(cell, target, metric)
    return None if found is None else with_interval(found)
