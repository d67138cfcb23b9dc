"""Sections of a diagnosis page: scores, confusion matrix, ROC curves, smoothed images, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from utils.arm_statistics import Estimate
from utils.classification_metrics import confusion_matrix, predicted_labels, roc_curve
from utils.classification_scores import Score
from utils.diagnosis_report import MAIN_METRICS, score_table, target_name
from utils.html_report import Page

MORE_METRICS = (
    "sensitivity",
    "specificity",
    "sensitivity_at_95_specificity",
    "balanced_accuracy",
    "exact_match",
)
MAX_ROC_POINTS = 300  # per curve on the page


def add_scores(
    page: Page, scores: Sequence[Score | Estimate], targets: np.ndarray, labels: Sequence[str]
) -> None:
    """Every score of every diagnosis with its interval, and why some are missing."""
    page.table(
        score_table(scores, targets, labels),
        caption="Each diagnosis against the rest. For all diagnoses: the mean, except accuracy, "
        "the share of images, where diagnoses exclude each other.",
    )
    rows = score_table(scores, targets, labels, metrics=MORE_METRICS)
    page.table(
        rows,
        list(rows[-1]),
        dense=True,
        caption="For all diagnoses: the mean; balanced accuracy is the mean sensitivity where "
        "diagnoses exclude each other; exact match, where they do not, is the share of images "
        "with every diagnosis right.",
    )
    shown = {*MAIN_METRICS, *MORE_METRICS}
    told = [score for score in scores if score.reason and score.metric in shown]
    reasons: dict[str, dict[str, None]] = {}
    for score in told:
        reasons.setdefault(score.reason, {})[target_name(score.target)] = None
    page.bullets([f"{', '.join(targets)}: {reason}" for reason, targets in reasons.items()])


def add_confusion(
    page: Page, probs: np.ndarray, targets: np.ndarray, labels: Sequence[str], *, multi_label: bool
) -> None:
    """What was said of the images of each diagnosis."""
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
    caption = "Images: a row per true diagnosis, a column per predicted one."
    page.table(rows, dense=True, caption=caption)


def add_roc(page: Page, probs: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> None:
    """A curve for each diagnosis that some images have and some have not."""
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
        caption="The nearer to the upper left corner, the better.",
    )


def add_training(page: Page, history: Sequence[Mapping[str, float]]) -> None:
    """The loss, one row of the history an epoch."""
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


def add_robustness(page: Page, robustness: Mapping[str, Mapping[str, float]]) -> None:
    """How the scores bear smoothing: how the test images were smoothed -> accuracy and AUROC."""
    page.paragraph(
        "Generators smooth the speckle of a scan. A classifier that judges synthetic images must "
        "not depend on it."
    )
    columns = {"images": "test images", "accuracy": "accuracy", "auroc": "AUROC"}
    page.table([{"images": name, **row} for name, row in robustness.items()], columns)
