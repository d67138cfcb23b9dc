"""95 % intervals of means and shares. Every interval contains its value."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from utils.classification_scores import bootstrap_weights

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959963984540054  # of (1 + CONFIDENCE) / 2
_TAILS = (50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE))  # percentiles
MIN_GROUPS = 5  # of fewer, resampled means are a handful of values and no interval


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
    drawn = bootstrap_weights(None, num_groups, num_resamples=num_resamples, seed=seed)
    means = np.concatenate([(weights @ sums) / (weights @ counts) for weights in drawn])
    low, high = np.percentile(means, _TAILS)
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


def mean_share_interval(successes: np.ndarray, totals: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the unweighted mean of several shares (macro average over labels).

    Wilson's intervals of the shares put together by squaring and adding, Zou and Donner 2008
    (https://doi.org/10.1002/sim.3095): with shares p, intervals [l, u] and mean m, from
    ``m - sqrt(sum (p - l)^2) / L`` to ``m + sqrt(sum (u - p)^2) / L``. Of one label it is Wilson's.
    It contains the mean always, ends at 1 where all succeed and, unlike a bootstrap, stays open
    below where all of few images do.

    Args:
        successes: (L,) integers.
        totals: (L,) integers; labels without images are left out.

    Returns:
        Lower and upper bound in [0, 1]; None if no label has images.
    """
    seen = [(int(s), int(n)) for s, n in zip(successes, totals) if n]
    if not seen:
        return None
    shares = np.array([s / n for s, n in seen])
    low, high = np.array([wilson_interval(s, n) for s, n in seen]).T
    mean = float(shares.mean())
    below = float(np.linalg.norm(shares - low)) / len(seen)
    above = float(np.linalg.norm(high - shares)) / len(seen)
    return mean - below, mean + above
