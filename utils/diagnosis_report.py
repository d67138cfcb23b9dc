"""What a diagnosis run tells: tables for CSV and JSON, and a page that a person can read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from utils.classification_metrics import confusion_matrix, predicted_labels, roc_curve
from utils.classification_scores import MACRO, Score
from utils.diagnosis_evaluation import Evaluation
from utils.html_report import Page

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
    "target",
    "metric",
    "difference",
    "ci95_low",
    "ci95_high",
    "p",
    "p_holm",
)
METRIC_NAMES = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "exact_match": "exact match",
}
MAIN_METRICS = ("auroc", "accuracy", "f1")
MORE_METRICS = ("sensitivity", "specificity", "balanced_accuracy", "exact_match")
MAX_ROC_POINTS = 300  # per curve on the page


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
            "value": _six_digits(score.value),
            "ci95_low": _six_digits(score.low),
            "ci95_high": _six_digits(score.high),
            "n": len(targets),
            "n_positive": positives.get(score.target, ""),
            "reason": score.reason,
        }
        for score in scores
    ]


def result_entries(scores: Sequence[Score]) -> dict[str, dict[str, dict[str, object]]]:
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
    scores: Sequence[Score],
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
            rows[score.target] = {"diagnosis": _target_name(score.target), "images": count}
        if score.metric in metrics:
            rows[score.target][METRIC_NAMES[score.metric]] = with_interval(score)
    return list(rows.values())


def with_interval(score: Score) -> str:
    """``0.953 [0.91, 0.98]``; a dash for what is undefined."""
    if math.isnan(score.value):
        return "–"
    if math.isnan(score.low):
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.2f}, {score.high:.2f}]"


def write_page(
    path,
    *,
    title: str,
    facts: Mapping[str, object],
    notes: Sequence[str],
    evaluation: Evaluation,
    labels: Sequence[str],
    multi_label: bool,
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write ``report.html``.

    Args:
        path: Where.
        title: Of the page.
        facts: Name -> value: data, network, seed.
        notes: Sentences that must not be overlooked.
        evaluation: Of the test images.
        labels: L names.
        multi_label: Whether labels may occur together.
        history: One row an epoch.
    """
    scores, probs, targets = evaluation.scores, evaluation.probs, evaluation.targets
    macro = {score.metric: score for score in scores if score.target == MACRO}
    page = Page(
        title,
        lead=f"Macro AUROC {with_interval(macro['auroc'])}, accuracy "
        f"{with_interval(macro['accuracy'])} on {len(targets)} test images; in brackets the 95 % "
        "bootstrap interval over patients.",
    )
    page.notice("Research use only, not for diagnosis.")
    page.facts(facts)
    page.bullets(list(notes))
    _add_scores(page, scores, targets, labels)
    _add_confusion(page, probs, targets, labels, multi_label=multi_label)
    _add_roc(page, probs, targets, labels)
    page.heading("Smoothed images")
    page.paragraph(
        "Generators smooth the speckle of a scan. A classifier that judges synthetic images must "
        "not depend on it."
    )
    columns = {"images": "test images", "accuracy": "accuracy", "auroc": "AUROC"}
    page.table([{"images": name, **row} for name, row in evaluation.robustness.items()], columns)
    _add_training(page, history)
    page.write(path)


def _add_scores(
    page: Page, scores: Sequence[Score], targets: np.ndarray, labels: Sequence[str]
) -> None:
    page.heading("Scores by diagnosis")
    page.table(
        score_table(scores, targets, labels),
        caption="Each diagnosis against the rest. For all diagnoses: the mean, except accuracy, "
        "the share of images, where diagnoses exclude each other. A perfect score has the "
        "interval [1, 1]: resampling cannot draw an error that never happened.",
    )
    rows = score_table(scores, targets, labels, metrics=MORE_METRICS)
    page.table(
        rows,
        list(rows[-1]),
        caption="For all diagnoses: the mean; balanced accuracy is the mean sensitivity where "
        "diagnoses exclude each other; exact match, where they do not, is the share of images "
        "with every diagnosis right.",
    )
    reasons = {(score.target, score.reason): None for score in scores if score.reason}
    page.bullets([f"{_target_name(target)}: {reason}" for target, reason in reasons])


def _add_confusion(
    page: Page, probs: np.ndarray, targets: np.ndarray, labels: Sequence[str], *, multi_label: bool
) -> None:
    page.heading("Confusion matrix")
    decided = predicted_labels(probs, multi_label=multi_label)
    if multi_label:
        rows = [
            {
                "diagnosis": name,
                "found": int((decided[:, k] & targets[:, k]).sum()),
                "missed": int((~decided[:, k] & targets[:, k]).sum()),
                "false alarm": int((decided[:, k] & ~targets[:, k]).sum()),
                "rightly absent": int((~decided[:, k] & ~targets[:, k]).sum()),
            }
            for k, name in enumerate(labels)
        ]
        page.table(rows, caption="Images; a diagnosis counts as found at a probability of 0.5.")
        return
    counts = confusion_matrix(decided.argmax(axis=1), targets.argmax(axis=1), len(labels))
    rows = [
        {"true diagnosis": name, **dict(zip(labels, row.tolist()))}
        for name, row in zip(labels, counts)
    ]
    page.table(rows, caption="Images: a row per true diagnosis, a column per predicted one.")


def _add_roc(page: Page, probs: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> None:
    page.heading("ROC curves")
    curves = {}
    for k, name in enumerate(labels):
        if 0 < targets[:, k].sum() < len(targets):
            false, true = roc_curve(probs[:, k], targets[:, k])
            step = max(1, len(false) // MAX_ROC_POINTS)
            shown = np.unique(np.r_[np.arange(0, len(false), step), len(false) - 1])
            curves[name] = list(zip(false[shown].tolist(), true[shown].tolist()))
    page.curve(
        curves,
        title="ROC curve of each diagnosis against the rest",
        x_label="1 - specificity",
        y_label="sensitivity",
        caption="The nearer to the upper left corner, the better; the diagonal is chance.",
    )


def _add_training(page: Page, history: Sequence[Mapping[str, float]]) -> None:
    page.heading("Training")
    curves = {
        name: [(row["epoch"], row[key]) for row in history]
        for name, key in (("training images", "train_loss"), ("validation images", "val_loss"))
    }
    page.curve(
        curves,
        title="Loss",
        x_label="epoch",
        y_label="loss",
        caption="Training images are augmented, validation images are not, so the second curve "
        "may lie below the first.",
    )


def _target_name(target: str) -> str:
    return "all diagnoses" if target == MACRO else target


def _six_digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
