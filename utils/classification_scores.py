"""The table of classification scores, per diagnosis and macro, with bootstrap intervals.

Pure numpy. Shapes: N images, L labels, B bootstrap resamples. A resample is a row of integer
weights (how often each image was drawn), so one vectorised call per metric gives the whole
bootstrap distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.calibration import expected_calibration_error
from utils.classification_metrics import (
    count_outcomes,
    metric_from_counts,
    nan_mean,
    predicted_labels,
)
from utils.ranked_outcomes import (
    area_under_curve,
    average_precision,
    ranked_outcomes,
    ratio,
    specific_sensitivity,
)

RANKING_METRICS = {
    "auroc": area_under_curve,
    "auprc": average_precision,
    "sensitivity_at_95_specificity": specific_sensitivity,
}
DECISION_METRICS = ("accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity")
ECE = "ece"
METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "exact_match": "exact match",
    ECE: "calibration error",
}
LOWER_IS_BETTER = frozenset({ECE})
MACRO = "macro"
MIN_FINITE_SHARE = 0.5  # fewer defined resamples than this share: no interval is given
ONE_PATIENT = "one patient only: no interval"
INFLATED_ECE = "no interval: an image drawn twice looks like an error of calibration"
_CHUNK_ELEMENTS = 4_000_000  # B x N weights held at once (32 MB as float64)


@dataclass(frozen=True)
class Score:
    """One figure of the result table; ``reason`` says why a value or interval is NaN."""

    target: str
    metric: str
    value: float
    low: float
    high: float
    reason: str = ""


def bootstrap_weights(
    patients: Sequence[str] | None, num_images: int, *, num_resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Draw whole patients with replacement; yield how often each image was drawn, in chunks.

    Images of one patient are alike, so the patient is the unit (cluster bootstrap, Davison and
    Hinkley 1997, 3.8); resampling images instead would give intervals that are too narrow.

    Args:
        patients: (N,) names, or None when every image is its own patient.
        num_images: N.
        num_resamples: B in all.
        seed: Same seed, same weights, however the chunks fall.

    Yields:
        (B_chunk, N) float64 weights; the chunks add up to B rows.
    """
    if patients is None:
        owner = np.arange(num_images)
    else:
        owner = np.unique(np.asarray(patients), return_inverse=True)[1].reshape(-1)
    num_patients = int(owner.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // max(1, num_images))
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        drawn = rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=size)
        yield drawn[:, owner].astype(np.float64)


def metric_table(
    probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, *, multi_label: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every metric per label and over all labels, for every row of weights.

    Args:
        probabilities: (N, L), finite.
        targets: (N, L) bool.
        weights: (B, N), >= 0.
        multi_label: Whether labels may occur together.

    Returns:
        ``per_label``: metric -> (B, L), one label against the rest; ``macro``: metric -> (B,),
        the mean over the labels that are defined. In the multi-class task macro ``accuracy`` is
        the share of images named right and macro ``balanced_accuracy`` the mean sensitivity (as
        scikit-learn); the multi-label task adds ``exact_match`` (all labels of an image right).
        ``ece`` (``expected_calibration_error``) is in macro only.

    Raises:
        ValueError: If there is no image or a probability is not finite.
    """
    if not len(targets) or not np.isfinite(probabilities).all():
        raise ValueError("no image to score, or a probability is NaN or infinite")
    targets = np.asarray(targets, bool)
    predicted = predicted_labels(probabilities, multi_label=multi_label)
    counts = count_outcomes(predicted, targets, weights)
    ranked = [ranked_outcomes(p, t, weights) for p, t in zip(probabilities.T, targets.T)]
    per_label = {
        name: np.stack([metric(outcomes) for outcomes in ranked], axis=1)
        for name, metric in RANKING_METRICS.items()
    }
    per_label |= {name: metric_from_counts(name, counts) for name in DECISION_METRICS}
    macro = {name: nan_mean(values) for name, values in per_label.items()}
    exact = ratio(weights @ (predicted == targets).all(axis=1), weights.sum(axis=1))
    if multi_label:
        macro["exact_match"] = exact
    else:
        macro["accuracy"] = exact
        macro["balanced_accuracy"] = macro["sensitivity"]
    macro[ECE] = expected_calibration_error(
        probabilities, targets, weights, multi_label=multi_label
    )
    return per_label, macro


def score_classification(
    probabilities: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    *,
    multi_label: bool,
    patients: Sequence[str] | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Score]:
    """All metrics per label and macro, with percentile bootstrap intervals over patients.

    A perfect score has the interval [1, 1]: a bootstrap cannot draw an error that never happened.
    The calibration error has none: a resample's is larger than that of its images.

    Args:
        probabilities: (N, L) in [0, 1].
        targets: (N, L) bool; exactly one per row unless ``multi_label``.
        labels: L names.
        multi_label: Whether labels may occur together.
        patients: (N,) names, or None when every image is its own patient.
        num_resamples: Bootstrap draws; 0 gives no intervals.
        confidence: Coverage of the interval in (0, 1).
        seed: Seed of the bootstrap.

    Returns:
        Scores in the order of ``labels``, then ``macro``.

    Raises:
        ValueError: If the shapes disagree, there is no image, a probability is not finite, or
            a label is called "macro".
    """
    probabilities = np.asarray(probabilities, np.float64)
    targets = np.asarray(targets, bool)
    if probabilities.shape != targets.shape or targets.shape[1:] != (len(labels),):
        raise ValueError(
            f"probabilities {probabilities.shape}, targets {targets.shape} and "
            f"{len(labels)} labels do not belong together"
        )
    if not len(targets) or MACRO in labels:
        raise ValueError(f"no image to score, or a label is called {MACRO!r}")
    num_images = len(targets)
    value = flat_table(
        metric_table(probabilities, targets, np.ones((1, num_images)), multi_label=multi_label),
        labels,
    )
    drawn = [
        flat_table(metric_table(probabilities, targets, weights, multi_label=multi_label), labels)
        for weights in bootstrap_weights(
            patients, num_images, num_resamples=num_resamples, seed=seed
        )
    ]
    reasons = why_undefined(targets, labels)
    if patients is not None and len(set(patients)) < 2:
        drawn = []  # one patient, resampled, is always the same
        reasons = dict.fromkeys([*labels, MACRO], ONE_PATIENT) | reasons
    return [
        _score(key, float(row[0]), [table[key] for table in drawn], confidence, reasons)
        for key, row in value.items()
    ]


def _score(
    key: tuple[str, str],
    value: float,
    drawn: list[np.ndarray],
    confidence: float,
    reasons: dict[str, str],
) -> Score:
    """One Score from its value, its bootstrap draws and the reasons per target."""
    target, metric = key
    if metric == ECE:
        return Score(target, metric, value, float("nan"), float("nan"), INFLATED_ECE)
    told = target == MACRO or np.isnan(value) or reasons.get(target) == ONE_PATIENT
    reason = reasons.get(target, "") if told else ""
    resampled = np.concatenate(drawn) if drawn else np.empty(0)
    finite = resampled[np.isfinite(resampled)]
    low = high = float("nan")
    if not np.isnan(value) and len(resampled):
        if len(finite) >= MIN_FINITE_SHARE * len(resampled):
            tail = 50 * (1 - confidence)
            low, high = (float(q) for q in np.percentile(finite, [tail, 100 - tail]))
        else:
            reason = "undefined in most bootstrap resamples: too few patients"
    return Score(target, metric, value, low, high, reason)


def why_undefined(targets: np.ndarray, labels: Sequence[str]) -> dict[str, str]:
    """Label -> why its AUROC is undefined; ``macro`` -> which labels its mean leaves out."""
    reasons = {}
    for name, positive in zip(labels, targets.T):
        if not positive.any():
            reasons[name] = "no image of the test set has this label"
        elif positive.all():
            reasons[name] = "every image of the test set has this label"
    if reasons:
        reasons[MACRO] = "where undefined, left out of the mean: " + ", ".join(reasons)
    return reasons


def flat_table(
    tables: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], labels: Sequence[str]
) -> dict[tuple[str, str], np.ndarray]:
    """(target, metric) -> (B,), labels first, then macro."""
    per_label, macro = tables
    rows = {
        (name, metric): values[:, k]
        for k, name in enumerate(labels)
        for metric, values in per_label.items()
    }
    return rows | {(MACRO, metric): values for metric, values in macro.items()}
