"""Fréchet distance of two feature sets, its interval, and its value at equal numbers of images.

Shapes: N images (N_r real, N_s synthetic), D features, B bootstrap resamples. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import scipy.linalg

from utils.classification_scores import bootstrap_weights
from utils.feature_sets import check_features, draw_subsets
from utils.intervals import NORMAL_QUANTILE

MIN_IMAGES = 2  # a covariance needs two
_BLOCK_ROWS = 4096  # features turned into float64 at a time

_OfWeights = Callable[[np.ndarray, np.ndarray], float]


def frechet_distance(*, real: np.ndarray, synthetic: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two feature sets (FID on Inception features).

    ``|mu_r - mu_s|^2 + Tr(C_r + C_s - 2 (C_r C_s)^{1/2})``, Heusel et al. 2017
    (https://arxiv.org/abs/1706.08500). Lower is closer. Not square-rooted. Biased upwards for
    small N: compare only equal N. Real and finite for any rank, also for N < D, where a matrix
    square root may be complex or NaN.

    Args:
        real: Features of the real images, (N_r, D), any float type, N_r >= 2.
        synthetic: Features of the synthetic images, (N_s, D), N_s >= 2.

    Returns:
        The distance in squared feature units, >= 0.

    Raises:
        ValueError: If the sets differ in D, one has fewer than two images, or a feature is NaN
            or infinite.
    """
    return frechet_of_weights(real, synthetic)(np.ones(len(real)), np.ones(len(synthetic)))


def frechet_distance_at_equal_n(
    *, real: np.ndarray, synthetic: np.ndarray, size: int, num_draws: int, seed: int
) -> tuple[float, float]:
    """Fréchet distance between random subsets of equal size, drawn without replacement.

    The distance is too large by an amount that depends on N, so sets of different size compare
    only like this. The extrapolation to infinite N of Chong and Forsyth 2020
    (https://arxiv.org/abs/1911.07023) is left out: it takes the bias as linear in 1 / N, which it
    is not for N < D.

    Args:
        real: (N_r, D).
        synthetic: (N_s, D).
        size: Images of each subset, 2 <= size <= min(N_r, N_s).
        num_draws: Pairs of subsets, >= 1.
        seed: Seed of the draws.

    Returns:
        Mean and standard deviation (divisor ``num_draws``) over the draws. The deviation is that of
        one draw; draws overlap, so it shrinks to 0 as ``size`` nears N and is no interval.

    Raises:
        ValueError: As ``frechet_distance``, or if a set has fewer than ``size`` images.
    """
    whole = size == len(real) == len(synthetic)  # every draw is the same two sets
    options = {"size": size, "num_draws": 1 if whole else num_draws, "seed": seed}
    values = [
        frechet_distance(real=real[first], synthetic=synthetic[second])
        for first, second in draw_subsets(len(real), len(synthetic), **options)
    ]
    return float(np.mean(values)), float(np.std(values))


def frechet_interval(
    *,
    real: np.ndarray,
    synthetic: np.ndarray,
    num_resamples: int,
    seed: int,
    real_groups: Sequence[Hashable] | None = None,
    synthetic_groups: Sequence[Hashable] | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[float, float]:
    """95 % interval of the Fréchet distance at these N, from a bootstrap of both sets.

    The distance plus and minus 1.96 bootstrap standard deviations, not the percentiles: a
    resample repeats images, has fewer different ones and so a larger distance, and percentiles
    would lie above the value. The interval speaks of the spread at these N, not of the bias.

    Args:
        real: (N_r, D).
        synthetic: (N_s, D).
        num_resamples: B >= 2; the standard deviation is known to about 1 / sqrt(2 B).
        seed: Seed of the resampling.
        real_groups: (N_r,) unit that is drawn as a whole, such as the patient; None: the image.
        synthetic_groups: (N_s,).
        progress: Called with 1 after each resample, as ``tqdm.update``.

    Returns:
        Lower (>= 0) and upper bound.

    Raises:
        ValueError: As ``frechet_distance``.
    """
    distance = frechet_of_weights(real, synthetic)
    drawn_r = _resamples(real_groups, len(real), num_resamples, seed)
    drawn_s = _resamples(synthetic_groups, len(synthetic), num_resamples, seed + 1)
    values = []
    for weights in zip(drawn_r, drawn_s):
        values.append(distance(*weights))
        if progress is not None:
            progress(1)
    half = NORMAL_QUANTILE * float(np.std(values, ddof=1))
    value = distance(np.ones(len(real)), np.ones(len(synthetic)))
    return max(0.0, value - half), value + half


def _resamples(
    groups: Sequence[Hashable] | None, num_images: int, num_resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """How often each image was drawn, (N,), resample after resample."""
    names = None if groups is None else [str(group) for group in groups]
    for chunk in bootstrap_weights(names, num_images, num_resamples=num_resamples, seed=seed):
        yield from chunk


def frechet_of_weights(real: np.ndarray, synthetic: np.ndarray) -> _OfWeights:
    """The distance as a function of how often each image counts, (N_r,) and (N_s,) weights."""
    check_features(real, synthetic, min_images=MIN_IMAGES, purpose="a Fréchet distance")
    few = min(len(real), len(synthetic)) <= real.shape[1]
    return (_of_few_images if few else _of_many_images)(real, synthetic)


def _of_few_images(real: np.ndarray, synthetic: np.ndarray) -> _OfWeights:
    """For N <= D: from the products of real with synthetic images, which weights leave as they are.

    With ``C = X^T X`` of centred and scaled features X, the eigenvalues of ``C_r C_s`` are the
    squared singular values of ``X_r X_s^T``, so the trace of the root is their sum. Weights scale
    and re-centre rows and columns: a resample costs one decomposition and no product over D.
    """
    centre_r, centre_s = (np.mean(x, axis=0, dtype=np.float64) for x in (real, synthetic))
    x_r, x_s = real - centre_r, synthetic - centre_s
    squares_r, squares_s = (np.einsum("nd,nd->n", x, x) for x in (x_r, x_s))
    products = x_r @ x_s.T

    def distance(weights_r: np.ndarray, weights_s: np.ndarray) -> float:
        used_r, used_s = np.flatnonzero(weights_r), np.flatnonzero(weights_s)
        total_r, total_s = weights_r.sum(), weights_s.sum()
        mean_r, mean_s = weights_r @ x_r / total_r, weights_s @ x_s / total_s
        trace_r = (weights_r @ squares_r - total_r * mean_r @ mean_r) / (total_r - 1)
        trace_s = (weights_s @ squares_s - total_s * mean_s @ mean_s) / (total_s - 1)
        kept_r, kept_s = weights_r[used_r], weights_s[used_s]
        overlap = products[np.ix_(used_r, used_s)]
        overlap -= kept_r @ overlap / total_r
        overlap -= (overlap @ kept_s / total_s)[:, None]
        overlap *= np.sqrt(kept_r / (total_r - 1))[:, None]
        overlap *= np.sqrt(kept_s / (total_s - 1))
        root = scipy.linalg.svdvals(overlap, overwrite_a=True, check_finite=False).sum()
        shift = centre_r + mean_r - centre_s - mean_s
        return max(0.0, float(shift @ shift + trace_r + trace_s - 2 * root))

    return distance


def _of_many_images(real: np.ndarray, synthetic: np.ndarray) -> _OfWeights:
    """For N > D of both sets: from the D x D covariances, so that memory does not grow with N.

    With ``C_r = L L^T`` the eigenvalues of ``C_r C_s`` are those of the symmetric ``L^T C_s L``.
    """

    def distance(weights_r: np.ndarray, weights_s: np.ndarray) -> float:
        mean_r, cov_r = _gaussian(real, weights_r)
        mean_s, cov_s = _gaussian(synthetic, weights_s)
        root = _lower_root(cov_r)
        squares = scipy.linalg.eigvalsh(root.T @ cov_s @ root, overwrite_a=True, check_finite=False)
        shift = mean_r - mean_s
        trace = np.trace(cov_r) + np.trace(cov_s) - 2 * np.sqrt(np.maximum(squares, 0)).sum()
        return max(0.0, float(shift @ shift + trace))

    return distance


def _gaussian(features: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (D,) and covariance (D, D)."""
    used = np.flatnonzero(weights)
    total = weights.sum()
    centre = features[used[:_BLOCK_ROWS]].mean(axis=0, dtype=np.float64)  # against cancellation
    drift = np.zeros(features.shape[1])
    products = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(used), _BLOCK_ROWS):
        rows = used[start : start + _BLOCK_ROWS]
        block = features[rows] - centre
        drift += weights[rows] @ block / total
        block *= np.sqrt(weights[rows])[:, None]
        products += block.T @ block
    products -= total * np.outer(drift, drift)
    return centre + drift, products / (total - 1)


def _lower_root(covariance: np.ndarray) -> np.ndarray:
    """L (D, rank) with ``L L^T`` the covariance, by Cholesky with pivots: it may be singular."""
    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
    root = np.empty_like(packed)
    root[pivots - 1] = np.tril(packed)
    return root[:, :rank]
