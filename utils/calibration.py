"""Whether a classifier's probabilities are frequencies: calibration error and temperature.

Guo et al. 2017 (https://arxiv.org/abs/1706.04599). Shapes: N images, L labels, B bootstrap
resamples.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from utils.ranked_outcomes import ratio

NUM_BINS = 15  # as in Guo et al.
MAX_LOG_TEMPERATURE = math.log(20)  # T in [1/20, 20]
_GRID_POINTS = 121  # odd, so that T = 1 is one of them


def expected_calibration_error(
    probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, *, multi_label: bool
) -> np.ndarray:
    """Mean distance between confidence and share of right answers over 15 equal bins (ECE).

    Equation 3 of Guo et al., bins ``((k - 1) / 15, k / 15]``. Multi-class: confidence is the
    largest probability. Multi-label: the mean over labels of the binary error, which compares a
    label's probability with its frequency. In [0, 1], lower is better; few images give a
    perfectly calibrated classifier an error well above 0.

    Args:
        probabilities: (N, L) in [0, 1].
        targets: (N, L) bool.
        weights: (B, N), >= 0, how often an image counts.
        multi_label: Whether labels may occur together.

    Returns:
        (B,) float64; NaN where all weights are 0.
    """
    if multi_label:
        pairs = list(zip(np.asarray(probabilities, np.float64).T, targets.T))
    else:
        named = probabilities.argmax(axis=1)[:, None]
        right = np.take_along_axis(targets, named, axis=1)[:, 0]
        pairs = [(np.asarray(probabilities.max(axis=1), np.float64), right)]
    errors = []
    for confidence, right in pairs:
        bins = np.clip(np.ceil(confidence * NUM_BINS), 1, NUM_BINS) - 1
        members = bins[:, None] == np.arange(NUM_BINS)
        gaps = weights @ ((right - confidence)[:, None] * members)
        errors.append(np.abs(gaps).sum(axis=1))
    return ratio(np.mean(errors, axis=0), weights.sum(axis=1))


def fit_temperature(logits: np.ndarray, targets: np.ndarray, *, multi_label: bool) -> float:
    """The temperature T by which logits are divided so that probabilities become frequencies.

    Minimises ``NLL(logits / T) + log(T)^2 / 2`` over log T, where NLL is the sum over the images
    (and labels, where they may occur together). The second term, a standard normal prior of
    log T, weighs as little as one image: among hundreds of images it is not felt, but it keeps
    few or perfectly separated ones, whose likelihood grows without end as T falls to 0, near
    T = 1. As it is 0 at T = 1, the fitted T never has a larger NLL than T = 1 on these images.

    Args:
        logits: (N, L) of validation images, finite.
        targets: (N, L) bool; exactly one per row unless ``multi_label``.
        multi_label: Whether labels may occur together.

    Returns:
        T in [1/20, 20]; 1 without images.

    Raises:
        ValueError: If the shapes differ or a logit is not finite.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets, bool)
    if logits.shape != targets.shape or not np.isfinite(logits).all():
        raise ValueError(
            f"logits {logits.shape} and targets {targets.shape} differ, or a logit is not finite"
        )

    def loss(log_temperature: float) -> float:
        scaled = logits * math.exp(-log_temperature)
        return negative_log_likelihood(scaled, targets, multi_label) + log_temperature**2 / 2

    grid = np.linspace(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE, _GRID_POINTS)
    best = grid[np.argmin([loss(point) for point in grid])]
    step = grid[1] - grid[0]
    low, high = max(best - step, grid[0]), min(best + step, grid[-1])
    fitted = minimize_scalar(loss, bounds=(low, high), method="bounded").x
    return math.exp(min((fitted, best, 0.0), key=loss))


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    """Sum of ``-log p(target)`` over N images of logits (N, L), in nats."""
    return float(image_losses(logits, targets, multi_label=multi_label).sum())


def image_losses(logits: np.ndarray, targets: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """``-log p(target)`` of each of N images (and its labels, summed), (N,) in nats."""
    if multi_label:
        return -log_expit(np.where(targets, logits, -logits)).sum(axis=1)
    return -log_softmax(logits, axis=1)[targets]
