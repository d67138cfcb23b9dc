"""Cohen's kappa of two raters, its mean over pairs of raters, and Fleiss' kappa of several.

Conventions and shapes are those of ``utils/agreement_statistics.py``.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from utils.agreement_statistics import (
    NO_DISAGREEMENT,
    NO_OVERLAP,
    ONE_ANSWER,
    Agreement,
    problem_of,
    undefined,
    with_interval,
)
from utils.classification_metrics import nan_mean
from utils.intervals import NORMAL_QUANTILE

WEIGHTINGS = ("none", "linear", "quadratic")
CONSTANT = "one of the two gave one answer only: kappa is 0, however often they agree"
NOT_BY_ALL = "no item was judged by all raters"


def agreement_weights(num_answers: int, weighting: str) -> np.ndarray:
    """How much of an agreement answers i and j are: 1 the same, 0 the two ends of the scale.

    Args:
        num_answers: K.
        weighting: ``none``, ``linear`` (Cicchetti and Allison 1971) or ``quadratic`` (Fleiss and
            Cohen 1973).

    Returns:
        (K, K) in [0, 1].
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r} is none of {', '.join(WEIGHTINGS)}")
    if weighting == "none":
        return np.eye(num_answers)
    answers = np.arange(num_answers)
    steps = np.abs(answers[:, None] - answers) / max(num_answers - 1, 1)
    return 1 - steps ** (1 if weighting == "linear" else 2)


def cohen_kappa(first: np.ndarray, second: np.ndarray, *, weighting: str = "none") -> Agreement:
    """Cohen's kappa of two raters: 1960, weighted 1968.

    ``(Po - Pe) / (1 - Pe)`` with agreement weights; interval from the large-sample variance of
    Fleiss, Cohen and Everitt 1969 (https://doi.org/10.1037/h0028106).

    Args:
        first: (N,) codes of one rater.
        second: (N,) of the other; items that either lacks do not count.
        weighting: See `agreement_weights`.
    """
    both = (np.asarray(first) >= 0) & (np.asarray(second) >= 0)
    count = int(both.sum())
    if not count:
        return undefined(NO_OVERLAP, num_raters=2)
    one, other = np.asarray(first)[both], np.asarray(second)[both]
    size = int(max(one.max(), other.max())) + 1
    table = np.zeros((size, size))
    np.add.at(table, (one, other), 1 / count)
    weights = agreement_weights(size, weighting)
    value = float(_kappa_of_tables(table[None], weights)[0])
    if math.isnan(value):
        return undefined(ONE_ANSWER, num_items=count, num_raters=2)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    chance = float(rows @ weights @ columns)
    means = (weights @ columns)[:, None] + rows @ weights
    spread = (table * (weights - means * (1 - value)) ** 2).sum()
    variance = (spread - (value - chance * (1 - value)) ** 2) / ((1 - chance) ** 2 * count)
    if variance < 1e-12:
        reason = NO_DISAGREEMENT if value > 0.5 else CONSTANT
        return Agreement(value, math.nan, math.nan, count, 2, reason)
    half = NORMAL_QUANTILE * math.sqrt(variance)
    return Agreement(value, max(value - half, -1.0), min(value + half, 1.0), count, 2)


def _kappa_of_tables(tables: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) kappas of (B, K, K) tables of shares; NaN where chance agrees perfectly."""
    seen = (tables * weights).sum(axis=(1, 2))
    chance = np.einsum("bi,ij,bj->b", tables.sum(axis=2), weights, tables.sum(axis=1))
    undefined_at = 1 - chance < 1e-12
    return np.where(undefined_at, np.nan, (seen - chance) / np.where(undefined_at, 1, 1 - chance))


def light_kappa(
    codes: np.ndarray, *, weighting: str = "none", num_resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Mean of Cohen's kappas over all pairs of raters, Light 1971; bootstrap interval over items.

    Args:
        codes: (R, N).
        weighting: See `agreement_weights`.
        num_resamples: B.
        seed: Of the bootstrap.
    """
    codes = np.asarray(codes)
    if problem := problem_of(codes):
        return problem
    size = int(codes.max()) + 1
    weights = agreement_weights(size, weighting)
    cells_of_pairs = [_cells(*pair, size) for pair in combinations(codes, 2)]

    def kappas(drawn: np.ndarray) -> np.ndarray:
        # A pair whose kappa is undefined is left out of the mean.
        return nan_mean(
            np.stack([_resampled_kappa(drawn @ cells, weights) for cells in cells_of_pairs], axis=1)
        )

    return with_interval(kappas, codes, num_resamples=num_resamples, seed=seed)


def _cells(one: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    """(N, K * K): a 1 in the cell of the table that an item falls in, none if one lacks it."""
    both = np.flatnonzero((one >= 0) & (other >= 0))
    cells = np.zeros((len(one), size * size))
    cells[both, one[both] * size + other[both]] = 1
    return cells


def _resampled_kappa(tables: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) kappas of (B, K * K) counts; NaN of an empty table."""
    totals = tables.sum(axis=1, keepdims=True)
    shares = (tables / np.maximum(totals, 1)).reshape(-1, *weights.shape)
    return np.where(totals[:, 0] > 0, _kappa_of_tables(shares, weights), np.nan)


def fleiss_kappa(
    codes: np.ndarray, *, num_resamples: int = 1000, seed: int = 0, num_answers: int | None = None
) -> Agreement:
    """Kappa of several raters, Fleiss 1971 (https://doi.org/10.1037/h0031619), answers unordered.

    Every item needs the same number of answers: those that all raters judged count.

    Args:
        codes: (R, N).
        num_resamples: B of the bootstrap over items.
        seed: Of the bootstrap.
        num_answers: K, where not every answer occurs.
    """
    codes = np.asarray(codes)
    if problem := problem_of(codes):
        return problem
    complete = codes[:, (codes >= 0).all(axis=0)]
    if not complete.shape[1]:
        return undefined(NOT_BY_ALL, num_raters=len(codes))
    answers = np.arange(num_answers or int(complete.max()) + 1)
    counts = (complete[:, :, None] == answers).sum(axis=0)  # (N, K)

    def kappas(drawn: np.ndarray) -> np.ndarray:
        return fleiss_of_counts(counts, drawn)

    return with_interval(kappas, complete, num_resamples=num_resamples, seed=seed)


def fleiss_of_counts(counts: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Fleiss' kappa of items whose raters need not be the same persons.

    Args:
        counts: (N, K) how many raters gave an answer; rows have one sum, at least 2.
        weights: (B, N), >= 0; None: each item once.

    Returns:
        (B,); NaN where only one answer occurs.

    Raises:
        ValueError: If the items do not have the same number of answers, two or more.
    """
    counts = np.asarray(counts, np.float64)
    num_raters = counts.sum(axis=1)
    if len(set(num_raters.tolist())) != 1 or num_raters[0] < 2:
        raise ValueError("Fleiss' kappa needs the same number of answers, two or more, per item")
    weights = np.ones((1, len(counts))) if weights is None else np.asarray(weights, np.float64)
    raters, totals = num_raters[0], weights.sum(axis=1)
    agreeing = ((counts**2).sum(axis=1) - raters) / (raters * (raters - 1))
    shares = weights @ counts / (raters * totals[:, None])
    seen, chance = weights @ agreeing / totals, (shares**2).sum(axis=1)
    one_answer = 1 - chance < 1e-12
    return np.where(one_answer, np.nan, (seen - chance) / np.where(one_answer, 1, 1 - chance))
