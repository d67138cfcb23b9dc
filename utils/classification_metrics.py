"""How well scores and decisions match diagnoses: AUROC, AUPRC, accuracy, F1, ROC curve and kin.

Pure numpy. Shapes: N images, L labels, B bootstrap resamples. Every metric takes ``weights`` of
shape (N,) or (B, N), how often an image counts: a table of weights gives a whole bootstrap
distribution in one call (``utils/classification_scores.py``). What is undefined (a label without
a positive, say) is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from utils.ranked_outcomes import (
    RankedOutcomes,
    area_under_curve,
    average_precision,
    ranked_outcomes,
    ratio,
    specific_sensitivity,
)

MULTI_LABEL_THRESHOLD = 0.5


def auroc(
    scores: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Hanley and McNeil 1982 (the Mann-Whitney statistic). Higher is better, 0.5 is chance.

    Args:
        scores: (N,), finite, any scale; only the order counts.
        targets: (N,), truthy = positive.
        weights: (N,) or (B, N), >= 0; None counts every image once.

    Returns:
        The area in [0, 1], or (B,) of them; NaN where positives or negatives are missing.

    Raises:
        ValueError: If the lengths differ or a score is not finite.
    """
    return _of_ranking(area_under_curve, scores, targets, weights)


def auprc(
    scores: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Area under the precision-recall curve as average precision, ``sum (R_g - R_{g-1}) P_g``.

    Step-wise over the distinct scores, as scikit-learn's ``average_precision_score``; a straight
    line between the points would be too optimistic (Davis and Goadrich 2006). Higher is better;
    chance is the share of positives.

    Arguments and errors as ``auroc``. NaN without positives.
    """
    return _of_ranking(average_precision, scores, targets, weights)


def sensitivity_at_95_specificity(
    scores: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Largest sensitivity over all thresholds t (positive: score >= t) with specificity >= 0.95.

    Equal scores are called together or not at all; nothing is interpolated. A threshold above
    all scores counts, so that the value is 0 where no lower one is specific enough. The threshold
    is found on the images it is judged by: with few negatives the value is optimistic.

    Arguments and errors as ``auroc``.

    Returns:
        The sensitivity in [0, 1], or (B,) of them; NaN where positives or negatives are missing.
    """
    return _of_ranking(specific_sensitivity, scores, targets, weights)


def accuracy(
    predicted: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Share of images whose prediction equals the target.

    Args:
        predicted: (N,), class indices or booleans.
        targets: (N,), the same kind.
        weights: (N,) or (B, N), >= 0; None counts every image once.

    Returns:
        The share in [0, 1], or (B,) of them; NaN without images.
    """
    right = np.asarray(predicted) == np.asarray(targets)
    _, right, weight = _checked(right, right, weights)
    return _scalar_or_rows(ratio(weight @ right, weight.sum(axis=1)), weights)


def f1(
    predicted: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Harmonic mean of precision and sensitivity of one label, ``2 TP / (2 TP + FP + FN)``.

    Arguments as ``accuracy``, truthy = positive.

    Returns:
        F1 in [0, 1], or (B,) of them; NaN where the label neither occurs nor is predicted.
    """
    return _one_label("f1", predicted, targets, weights)


def balanced_accuracy(
    predicted: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Mean sensitivity over the classes that occur in ``targets`` (Brodersen et al. 2010).

    Arguments as ``accuracy``.

    Returns:
        The mean in [0, 1], or (B,) of them; NaN without images.
    """
    predicted, targets = np.asarray(predicted), np.asarray(targets)
    classes = np.unique(targets)
    recalls = [
        np.atleast_1d(_one_label("sensitivity", predicted == name, targets == name, weights))
        for name in classes
    ]
    rows = nan_mean(np.stack(recalls, axis=1)) if recalls else np.array([np.nan])
    return _scalar_or_rows(rows, weights)


def confusion_matrix(predicted: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (L, L): row = true class, column = predicted class.

    Args:
        predicted: (N,), integers in [0, L).
        targets: (N,), integers in [0, L).
        num_classes: L.

    Returns:
        (L, L) int64, summing to N.
    """
    cells = np.asarray(targets, np.int64) * num_classes + np.asarray(predicted, np.int64)
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def roc_curve(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve at every distinct score, from (0, 0) to (1, 1).

    Args:
        scores: (N,), finite.
        targets: (N,), truthy = positive; both kinds must occur.

    Returns:
        False positive rates and true positive rates, each (G + 1,) for G distinct scores.

    Raises:
        ValueError: If positives or negatives are missing.
    """
    scores, positive, _ = _checked(scores, targets, None)
    if positive.all() or not positive.any():
        raise ValueError("roc_curve: needs at least one positive and one negative")
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    true = np.r_[0, np.cumsum(positive[order])[last]]
    false = np.r_[0, np.cumsum(~positive[order])[last]]
    return false / false[-1], true / true[-1]


def predicted_labels(probabilities: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Probabilities to decisions: the largest one, or every one >= 0.5 when ``multi_label``.

    Args:
        probabilities: (N, L).
        multi_label: Whether labels may occur together.

    Returns:
        (N, L) bool.
    """
    if multi_label:
        return probabilities >= MULTI_LABEL_THRESHOLD
    return np.eye(probabilities.shape[1], dtype=bool)[probabilities.argmax(axis=1)]


def count_outcomes(
    predicted: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weighted outcomes of each label against the rest.

    Args:
        predicted: (N, L) bool.
        targets: (N, L) bool.
        weights: (B, N), >= 0.

    Returns:
        True positives, false positives, false negatives, true negatives, each (B, L).
    """
    cells = (predicted & targets, predicted & ~targets, ~predicted & targets, ~predicted & ~targets)
    return tuple(weights @ cell.astype(np.float64) for cell in cells)


def metric_from_counts(metric: str, counts: tuple[np.ndarray, ...]) -> np.ndarray:
    """One-against-rest metric, of any shape, from ``count_outcomes``; NaN where undefined."""
    tp, fp, fn, tn = counts
    if metric == "accuracy":
        return ratio(tp + tn, tp + fp + fn + tn)
    if metric == "sensitivity":
        return ratio(tp, tp + fn)
    if metric == "specificity":
        return ratio(tn, tn + fp)
    if metric == "f1":
        return ratio(2 * tp, 2 * tp + fp + fn)
    assert metric == "balanced_accuracy", metric
    return (ratio(tp, tp + fn) + ratio(tn, tn + fp)) / 2


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; NaN (and no warning) where nothing is."""
    finite = np.isfinite(values)
    return ratio(np.where(finite, values, 0).sum(axis=-1), finite.sum(axis=-1))


def _of_ranking(
    metric: Callable[[RankedOutcomes], np.ndarray],
    scores: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None,
) -> float | np.ndarray:
    """Metric of the order of the scores."""
    scores, positive, weight = _checked(scores, targets, weights)
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite")
    return _scalar_or_rows(metric(ranked_outcomes(scores, positive, weight)), weights)


def _one_label(
    metric: str, predicted: np.ndarray, targets: np.ndarray, weights: np.ndarray | None
) -> float | np.ndarray:
    """One-against-rest metric of one label."""
    called, positive, weight = _checked(np.asarray(predicted, bool), targets, weights)
    values = metric_from_counts(metric, count_outcomes(called[:, None], positive[:, None], weight))
    return _scalar_or_rows(values[:, 0], weights)


def _checked(
    values: np.ndarray, targets: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of matching length: values (N,), targets (N,) bool, weights (B, N)."""
    values, targets = np.asarray(values), np.asarray(targets, bool)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if values.ndim != 1 or values.shape != targets.shape or weight.shape[-1] != len(values):
        raise ValueError(
            f"shapes differ: values {values.shape}, targets {targets.shape}, weights {weight.shape}"
        )
    return values, targets, np.atleast_2d(weight)


def _scalar_or_rows(rows: np.ndarray, weights: np.ndarray | None) -> float | np.ndarray:
    """A float unless the caller gave a table (B, N) of weights."""
    return rows if weights is not None and np.ndim(weights) == 2 else float(rows[0])
