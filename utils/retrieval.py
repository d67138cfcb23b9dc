"""Ranks of the first relevant item in a gallery, and what random ranking would give. Pure numpy.

Shapes: N queries, M items of the gallery, D dimensions, B bootstrap resamples. An item is relevant
to a query if they share a group: a label, or the text itself.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.special

from utils.classification_scores import bootstrap_weights
from utils.metrics import MIN_GROUPS

RELEVANCES = ("label", "text")
TIE = 1e-6  # cosines closer than this are equal: rounding of float32 decides nothing
_BLOCK_ELEMENTS = 4_000_000  # B x M similarities held at once (16 MB)

Groups = Sequence[Collection[Hashable]]


class Ranking(NamedTuple):
    """Where each query found what it looked for.

    Attributes:
        ranks: (N,) int, of the first relevant item, 1 is best; M + 1 where none is relevant.
        num_relevant: (N,) int, relevant items in the gallery.
    """

    ranks: np.ndarray
    num_relevant: np.ndarray


def relevance_groups(
    texts: Sequence[str], labels: Sequence[Sequence[str]], relevance: str
) -> list[tuple[str, ...]]:
    """The groups of each image in which others are relevant to it: its labels, or its text."""
    if relevance == "label":
        return [tuple(own) for own in labels]
    return [(text,) if text else () for text in texts]


def first_relevant_ranks(
    queries: np.ndarray, gallery: np.ndarray, *, query_groups: Groups, gallery_groups: Groups
) -> Ranking:
    """Rank of each query's nearest relevant item, by cosine similarity.

    Ties are broken pessimistically: an irrelevant item as similar as the first relevant one stands
    before it, so embeddings that are all alike find nothing. Works in blocks of queries: the
    M x N similarities are never held at once.

    Args:
        queries: (N, D) of unit length.
        gallery: (M, D) of unit length.
        query_groups: (N,) groups of each query; one may have none, or several.
        gallery_groups: (M,) groups of each item.

    Raises:
        ValueError: If the shapes disagree, or a vector is not finite.
    """
    shapes = (len(query_groups), len(gallery_groups), queries.shape[1:])
    if shapes != (len(queries), len(gallery), gallery.shape[1:]):
        raise ValueError(
            f"queries {queries.shape} with {shapes[0]} groups and gallery {gallery.shape} with "
            f"{shapes[1]} do not belong together"
        )
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise ValueError("an embedding holds NaN or infinite values")
    queries, gallery = queries.astype(np.float32), gallery.astype(np.float32)
    of_query, of_gallery = _memberships(query_groups, gallery_groups)
    ranks = np.empty(len(queries), np.int64)
    num_relevant = np.empty(len(queries), np.int64)
    rows = max(1, _BLOCK_ELEMENTS // max(1, len(gallery)))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        relevant = (of_query[block] @ of_gallery.T).toarray() > 0  # (B, M)
        similar = queries[block] @ gallery.T
        best = np.where(relevant, similar, -np.inf).max(axis=1, initial=-np.inf)
        ranks[block] = 1 + ((similar >= best[:, None] - TIE) & ~relevant).sum(axis=1)
        num_relevant[block] = relevant.sum(axis=1)
    return Ranking(ranks, num_relevant)


def _memberships(
    query_groups: Groups, gallery_groups: Groups
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """(N, G) and (M, G) sparse tables of ones: who is in which group."""
    names: dict[Hashable, int] = {}
    found = []
    for groups in (query_groups, gallery_groups):
        members = [[names.setdefault(name, len(names)) for name in set(own)] for own in groups]
        ends = np.cumsum([0, *map(len, members)])
        found.append((np.array([k for own in members for k in own], np.int64), ends))
    return tuple(
        scipy.sparse.csr_array(
            (np.ones(len(columns), np.int32), columns, ends), shape=(len(ends) - 1, len(names))
        )
        for columns, ends in found
    )


def chance_recall(k: int, *, gallery_size: int, num_relevant: np.ndarray) -> np.ndarray:
    """Probability that a random ranking has a relevant item among its first k.

    One minus the hypergeometric probability of none: ``1 - C(M - r, k) / C(M, k)``, exact.

    Args:
        k: Items looked at.
        gallery_size: M.
        num_relevant: (N,) relevant items r of each query, r <= M.

    Returns:
        (N,) probabilities; 1 where k leaves no room for irrelevant items only.
    """
    relevant = np.asarray(num_relevant, np.float64)
    others = gallery_size - relevant
    possible = others >= k
    rest = np.where(possible, others, k)  # where it is impossible, any valid number

    def log_factorial(n: np.ndarray) -> np.ndarray:
        return scipy.special.gammaln(n + 1)

    log_none = log_factorial(rest) - log_factorial(rest - k)
    k = min(k, gallery_size)
    log_none -= log_factorial(gallery_size) - log_factorial(gallery_size - k)
    return np.where(possible, -np.expm1(log_none), 1.0)


def chance_median_rank(*, gallery_size: int, num_relevant: np.ndarray) -> int:
    """Median rank under random ranking: the smallest k with mean ``chance_recall`` of one half.

    Args:
        gallery_size: M >= 1.
        num_relevant: (N,) relevant items of each query, N >= 1, each >= 1.
    """
    kinds, counts = np.unique(num_relevant, return_counts=True)
    low, high = 1, gallery_size
    while low < high:
        middle = (low + high) // 2
        chances = chance_recall(middle, gallery_size=gallery_size, num_relevant=kinds)
        if counts @ chances >= 0.5 * counts.sum() - 1e-9:  # rounding of the logarithms
            high = middle
        else:
            low = middle + 1
    return low


def median_rank(ranks: np.ndarray) -> int:
    """The smallest rank within which at least half of the queries succeed (lower median)."""
    return int(np.sort(ranks)[(len(ranks) - 1) // 2])


def median_rank_interval(
    ranks: np.ndarray, *, groups: Sequence[Hashable], num_resamples: int = 1000, seed: int = 0
) -> tuple[int, int] | None:
    """Percentile bootstrap interval (95 %) of ``median_rank``, drawing whole groups.

    Args:
        ranks: (N,).
        groups: (N,) unit that is drawn as a whole, such as the patient.
        num_resamples: B.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound; None with fewer than ``MIN_GROUPS`` groups.
    """
    if len(set(groups)) < MIN_GROUPS:
        return None
    order = np.argsort(ranks, kind="stable")
    names = [str(groups[index]) for index in order]
    medians = []
    for weights in bootstrap_weights(names, len(names), num_resamples=num_resamples, seed=seed):
        reached = np.cumsum(weights, axis=1)
        first = (reached >= reached[:, -1:] / 2).argmax(axis=1)
        medians.append(ranks[order][first])
    tails = np.percentile(np.concatenate(medians), [2.5, 97.5], method="nearest")
    return int(tails[0]), int(tails[1])
