"""CSV files of a report sweep: scores, comparisons, runs, trainings, and the reports themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils import run_folder
from utils.diagnosis_report import COMPARISON_COLUMNS, six_digits
from utils.report_data import Pairs
from utils.report_scores import ReportStatistics
from utils.report_training import ReportResult
from utils.sweep_cells import SweepScores
from utils.sweep_plan import RunKey
from utils.sweep_tables import comparison_rows, run_rows

RESULT_COLUMNS = ("arm", "label_share", "synthetic_ratio", "seed", "target", "metric", "value")
RUN_COLUMNS = (
    *("arm", "label_share", "synthetic_ratio", "seed", "num_real", "num_synthetic"),
    *("num_patients", "num_val", "steps", "best_epoch", "val_loss"),
    *("val_loss_per_character", "num_cut_reports"),
)


def write_tables(
    folder: Path,
    runs: Sequence[ReportResult],
    statistics: Mapping[RunKey, ReportStatistics],
    scores: SweepScores,
) -> None:
    """Write results.csv, comparisons.csv, runs.csv and the training of each run."""
    rows = []
    for key, own in statistics.items():
        head = {"arm": key.arm, "label_share": f"{key.label_share:g}"}
        head |= {"synthetic_ratio": f"{key.synthetic_ratio:g}", "seed": key.seed}
        values = own.figures(np.ones((1, len(own.table))))[0]
        rows += [
            head | {"target": target, "metric": metric, "value": six_digits(value)}
            for (target, metric), value in zip(own.keys, values.tolist())
        ]
    run_folder.write_csv(folder / "results.csv", rows, RESULT_COLUMNS)
    compared = comparison_rows(scores.comparisons)
    run_folder.write_csv(folder / "comparisons.csv", compared, COMPARISON_COLUMNS)
    run_folder.write_csv(folder / "runs.csv", run_rows(runs, RUN_COLUMNS), RUN_COLUMNS)
    history = [{"run": run.key.name, **row} for run in runs for row in run.history]
    run_folder.write_csv(folder / "training.csv", history, list(history[0]))


def write_predictions(
    folder: Path, best: ReportResult, test: Pairs, *, with_references: bool
) -> None:
    """Write predictions.csv: what the kept captioner wrote; the true reports only if asked for."""
    rows = [
        {"file_name": record.file_name, "report": report.text, "confidence": report.confidence}
        | ({"reference": reference} if with_references else {})
        for record, report, reference in zip(test.images.records, best.reports, test.texts)
    ]
    run_folder.write_csv(folder / "predictions.csv", rows, list(rows[0]))
