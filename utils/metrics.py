"""Scores of a synthetic image set against a real one: features in, numbers out. Pure numpy/scipy.

Shapes: N images (N_r real, N_s synthetic), D features, K classes, L labels, B bootstrap
resamples. Networks are in ``utils.features``, scores of a diagnosis classifier in
``utils.classification_metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise

import numpy as np
import scipy.linalg
import scipy.special

from utils.classification_scores import bootstrap_weights
from utils.ms_ssim import choose_pairs, ms_ssim, pairwise_ms_ssim

__all__ = [
    "bootstrap_interval",
    "choose_pairs",
    "frechet_distance",
    "frechet_interval",
    "inception_score",
    "mean_share_interval",
    "ms_ssim",
    "pairwise_ms_ssim",
    "split_halves",
    "wilson_interval",
]

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959963984540054  # of (1 + CONFIDENCE) / 2
_TAILS = (50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE))  # percentiles
MIN_IMAGES = 2  # a covariance needs two
MIN_GROUPS = 5  # of fewer, resampled means are a handful of values and no interval


def frechet_distance(
    *,
    real: np.ndarray,
    synthetic: np.ndarray,
    real_weights: np.ndarray | None = None,
    synthetic_weights: np.ndarray | None = None,
) -> float:
    """Fréchet distance between Gaussians fitted to two feature sets (FID on Inception features).

    ``|mu_r - mu_s|^2 + Tr(C_r + C_s - 2 (C_r C_s)^{1/2})``, Heusel et al. 2017
    (https://arxiv.org/abs/1706.08500). Lower is closer. Not square-rooted. Biased upwards for
    small N: compare only equal N.

    With ``C = R^T R``, the eigenvalues of ``C_r C_s`` are the squared singular values of
    ``R_r R_s^T``, so the trace of the root is their sum: real and finite for any rank, also for
    N < D, where a matrix square root may be complex or NaN.

    Args:
        real: Features of the real images, (N_r, D), any float type, N_r >= 2.
        synthetic: Features of the synthetic images, (N_s, D), N_s >= 2.
        real_weights: (N_r,) how often an image counts, for resampling; None counts each once.
        synthetic_weights: (N_s,).

    Returns:
        The distance in squared feature units, >= 0.

    Raises:
        ValueError: If the sets differ in D, one has fewer than two images, or a feature is NaN
            or infinite.
    """
    if real.ndim != 2 or synthetic.ndim != 2 or real.shape[1] != synthetic.shape[1]:
        raise ValueError(
            f"features must be (N, D) with one D; real is {real.shape}, "
            f"synthetic is {synthetic.shape}"
        )
    mean_r, trace_r, root_r = _gaussian("real", real, real_weights)
    mean_s, trace_s, root_s = _gaussian("synthetic", synthetic, synthetic_weights)
    overlap = scipy.linalg.svdvals(root_r @ root_s.T, overwrite_a=True, check_finite=False).sum()
    shift = mean_r - mean_s
    return max(0.0, float(shift @ shift + trace_r + trace_s - 2 * overlap))


def _gaussian(
    name: str, features: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, float, np.ndarray]:
    """Mean (D,), trace of the covariance, and R (<= D rows, D) with covariance ``R^T R``."""
    values = np.asarray(features, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"the {name} features hold NaN or infinite values")
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    values, counts = values[counts > 0], counts[counts > 0]
    total = counts.sum()
    if total < MIN_IMAGES:
        raise ValueError(
            f"a Fréchet distance needs {MIN_IMAGES} {name} images or more, got {total:.0f}"
        )
    mean = counts @ values / total
    root = np.sqrt(counts / (total - 1))[:, None] * (values - mean)
    trace = float(np.square(root).sum())
    if len(root) > root.shape[1]:
        root = scipy.linalg.qr(root, mode="r", overwrite_a=True, check_finite=False)[0]
        root = root[: root.shape[1]]
    return mean, trace, root


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
    """
    drawn_r = _resamples(real_groups, len(real), num_resamples, seed)
    drawn_s = _resamples(synthetic_groups, len(synthetic), num_resamples, seed + 1)
    values = []
    for weight_r, weight_s in zip(drawn_r, drawn_s):
        weights = {"real_weights": weight_r, "synthetic_weights": weight_s}
        values.append(frechet_distance(real=real, synthetic=synthetic, **weights))
        if progress is not None:
            progress(1)
    half = NORMAL_QUANTILE * float(np.std(values, ddof=1))
    value = frechet_distance(real=real, synthetic=synthetic)
    return max(0.0, value - half), value + half


def _resamples(
    groups: Sequence[Hashable] | None, num_images: int, num_resamples: int, seed: int
) -> np.ndarray:
    """(B, N) how often each image was drawn."""
    names = None if groups is None else [str(group) for group in groups]
    tables = bootstrap_weights(names, num_images, num_resamples=num_resamples, seed=seed)
    return np.concatenate(list(tables))


def split_halves(groups: Sequence[Hashable], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of a set that share no group, for a real-against-real floor.

    Args:
        groups: (N,) the patient of each image, or any value that is different for each image.
        seed: Seed of the order in which groups are dealt.

    Returns:
        Indices of the two halves, each sorted; as equal in size as whole groups allow.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    sets = list(members.values())
    halves: tuple[list[int], list[int]] = ([], [])
    for k in np.random.default_rng(seed).permutation(len(sets)):
        min(halves, key=len).extend(sets[k])
    return np.sort(np.array(halves[0], np.int64)), np.sort(np.array(halves[1], np.int64))


def inception_score(
    logits: np.ndarray, *, splits: int = 10, seed: int | None = None
) -> tuple[float, float]:
    """Inception score: ``exp(mean_x KL(p(y|x) || p(y)))`` per split, Salimans et al. 2016.

    https://arxiv.org/abs/1606.03498. Higher means surer and more varied class predictions, from 1
    to K. It sees no real image. Depends on N, on ``splits`` and on the order, hence the shuffle.

    Args:
        logits: (N, K) of a classifier: of Inception the unbiased logits over its 1008 classes,
            never the pool features. Logarithms of probabilities are logits too.
        splits: Number of parts whose scores are averaged, 1 <= splits <= N.
        seed: Seed of the shuffle before the split; None keeps the order.

    Returns:
        Mean and standard deviation (divisor ``splits``) over the splits.

    Raises:
        ValueError: If ``splits`` is not in [1, N] or a logit is NaN.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"logits {logits.shape} cannot be split into {splits} parts")
    if np.isnan(logits).any():
        raise ValueError("the logits hold NaN")
    if seed is not None:
        logits = logits[np.random.default_rng(seed).permutation(len(logits))]
    edges = np.arange(splits + 1) * len(logits) // splits
    scores = []
    for start, end in pairwise(edges):
        log_p = scipy.special.log_softmax(logits[start:end], axis=1)
        p = np.exp(log_p)
        entropies = -scipy.special.xlogy(p, p).sum(axis=1)
        marginal = p.mean(axis=0)
        scores.append(np.exp(-scipy.special.xlogy(marginal, marginal).sum() - entropies.mean()))
    return float(np.mean(scores)), float(np.std(scores))


def bootstrap_interval(
    values: np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval (95 %) of a mean, drawing whole groups.

    Args:
        values: (N,) float.
        groups: (N,) unit that is drawn as a whole, such as the prompt; None: each value.
        num_resamples: B.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound; None with fewer than ``MIN_GROUPS`` groups.
    """
    values = np.asarray(values, np.float64)
    owners = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    num_groups = int(owners.max(initial=-1)) + 1
    if num_groups < MIN_GROUPS:
        return None
    sums = np.bincount(owners, weights=values)
    counts = np.bincount(owners)
    weights = _resamples(None, num_groups, num_resamples, seed)
    low, high = np.percentile((weights @ sums) / (weights @ counts), _TAILS)
    return float(low), float(high)


def wilson_interval(successes: int, total: int) -> tuple[float, float] | None:
    """95 % interval of a share, Wilson 1927; sound near 0 and 1 and for small ``total``.

    Returns:
        Lower and upper bound in [0, 1]; None for ``total`` 0.
    """
    if not total:
        return None
    share, z2 = successes / total, NORMAL_QUANTILE**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = np.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    half = float(NORMAL_QUANTILE * spread)
    # Exactly 0 and 1 in theory; rounding would leave 1e-17.
    low = centre - half if successes else 0.0
    return low, centre + half if successes < total else 1.0


def mean_share_interval(
    successes: np.ndarray, totals: np.ndarray, *, num_draws: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the unweighted mean of several shares (macro average over labels).

    Each share is drawn from its Jeffreys posterior Beta(s + 1/2, n - s + 1/2), which, unlike a
    bootstrap, stays wide where all of few images succeed.

    Args:
        successes: (L,) integers.
        totals: (L,) integers; labels without images are left out.
        num_draws: Draws.
        seed: Their seed.

    Returns:
        Lower and upper bound in [0, 1]; None if no label has images.
    """
    successes, totals = np.asarray(successes), np.asarray(totals)
    seen = totals > 0
    if not seen.any():
        return None
    hits, misses = successes[seen] + 0.5, (totals - successes)[seen] + 0.5
    draws = np.random.default_rng(seed).beta(hits, misses, size=(num_draws, int(seen.sum())))
    low, high = np.percentile(draws.mean(axis=1), _TAILS)
    return float(low), float(high)
