"""Inception score of class logits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.special


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
