"""What diagnosis scores look like in tables: columns, rows and cells for CSV, JSON and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from utils.arm_statistics import Estimate
from utils.classification_metrics import predicted_labels
from utils.classification_scores import MACRO, METRIC_NAMES, Score

RESULT_COLUMNS = (
    "arm",
    "label_share",
    "synthetic_ratio",
    "seed",
    "target",
    "metric",
    "value",
    "ci95_low",
    "ci95_high",
    "n",
    "n_positive",
    "reason",
)
COMPARISON_COLUMNS = (
    "arm",
    "reference_arm",
    "label_share",
    "synthetic_ratio",
    "reference_label_share",
    "reference_synthetic_ratio",
    "target",
    "metric",
    "reference_value",
    "value",
    "difference",
    "ci95_low",
    "ci95_high",
    "p",
    "p_holm",
    "num_seeds",
    "reason",
)
MAIN_METRICS = ("auroc", "auprc", "accuracy", "f1")


def result_rows(
    scores: Sequence[Score],
    targets: np.ndarray,
    labels: Sequence[str],
    **run: object,
) -> list[dict[str, object]]:
    """Rows of ``results.csv``.

    Args:
        scores: From ``score_classification``.
        targets: (N, L) bool, what was scored against.
        labels: L names.
        run: ``arm``, ``label_share`` and ``synthetic_ratio`` in percent, ``seed``.
    """
    positives = dict(zip(labels, np.asarray(targets).sum(axis=0).tolist()))
    return [
        {
            **run,
            "target": score.target,
            "metric": score.metric,
            "value": six_digits(score.value),
            "ci95_low": six_digits(score.low),
            "ci95_high": six_digits(score.high),
            "n": len(targets),
            "n_positive": positives.get(score.target, ""),
            "reason": score.reason,
        }
        for score in scores
    ]


def result_entries(
    scores: Sequence[Score | Estimate],
) -> dict[str, dict[str, dict[str, object]]]:
    """Target -> metric -> ``{"value", "ci95", "reason"}`` for ``results.json``."""
    entries: dict[str, dict[str, dict[str, object]]] = {}
    for score in scores:
        entry = {"value": score.value, "ci95": [score.low, score.high]}
        if score.reason:
            entry["reason"] = score.reason
        entries.setdefault(score.target, {})[score.metric] = entry
    return entries


def prediction_rows(
    records: Sequence, probs: np.ndarray, labels: Sequence[str], *, multi_label: bool
) -> list[dict[str, object]]:
    """Rows of ``predictions.csv``: what each test image has, what was said, how sure."""
    decided = predicted_labels(probs, multi_label=multi_label)
    return [
        {
            "file_name": record.file_name,
            "patient_id": record.patient_id,
            "label": ";".join(record.labels),
            "predicted": ";".join(name for name, yes in zip(labels, chosen) if yes),
            **{f"prob_{name}": f"{p:.6f}" for name, p in zip(labels, row)},
        }
        for record, row, chosen in zip(records, probs, decided)
    ]


def score_table(
    scores: Sequence[Score | Estimate],
    targets: np.ndarray,
    labels: Sequence[str],
    *,
    metrics: Sequence[str] = MAIN_METRICS,
) -> list[dict[str, object]]:
    """One row per diagnosis and one for all, each score with its interval as text."""
    positives = dict(zip(labels, np.asarray(targets).sum(axis=0).tolist()))
    rows = {}
    for score in scores:
        if score.target not in rows:
            count = positives.get(score.target, len(targets))
            rows[score.target] = {"diagnosis": target_name(score.target), "images": count}
        if score.metric in metrics:
            rows[score.target][METRIC_NAMES[score.metric]] = with_interval(score)
    return list(rows.values())


def with_interval(score: Score | Estimate) -> str:
    """``0.953 [0.91, 0.98]``, unbroken inside the brackets; a dash for what is undefined."""
    if math.isnan(score.value):
        return "–"
    if math.isnan(score.low):
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.2f},\N{NO-BREAK SPACE}{score.high:.2f}]"


def target_name(target: str) -> str:
    """What a reader is told instead of ``macro``."""
    return "all diagnoses" if target == MACRO else target


def six_digits(value: float) -> str:
    """A figure of a CSV; empty where it is undefined."""
    return "" if math.isnan(value) else f"{value:.6f}"
