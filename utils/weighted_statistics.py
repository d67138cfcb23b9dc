"""Correlation and regression under weights, for many resamples at once.

Shapes: B resamples, N values; a weight tells how often a value was drawn.
"""

from __future__ import annotations

import numpy as np

from utils.ranked_outcomes import ratio


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks of the values in each resample, (B, N) of values (N,) and weights (B, N)."""
    place = np.unique(values, return_inverse=True)[1].reshape(-1)
    members = (place[:, None] == np.arange(place.max(initial=-1) + 1)).astype(np.float64)
    mass = weights @ members
    return (np.cumsum(mass, axis=1) - mass / 2)[:, place]


def weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation in each resample, (B,) of x, y (N,) or (B, N); NaN if constant."""
    x, y = _centred(x, weights), _centred(y, weights)
    products = [(weights * one * other).sum(axis=1) for one, other in ((x, y), (x, x), (y, y))]
    spread = np.sqrt(products[1] * products[2])
    return ratio(products[0], np.where(spread > 1e-12 * weights.sum(axis=1), spread, 0))


def weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation in each resample, (B,) of x and y (N,)."""
    return weighted_pearson(weighted_ranks(x, weights), weighted_ranks(y, weights), weights)


def weighted_line(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of y on x by least squares in each resample, both (B,)."""
    centred = _centred(x, weights)
    slope = ratio((weights * centred * y).sum(axis=1), (weights * centred**2).sum(axis=1))
    total = weights.sum(axis=1)
    return slope, ratio(weights @ y, total) - slope * ratio(weights @ x, total)


def _centred(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values less their weighted mean, (B, N)."""
    values = np.broadcast_to(values, weights.shape)
    return values - ratio((weights * values).sum(axis=1), weights.sum(axis=1))[:, None]
