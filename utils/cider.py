"""CIDEr: how like a written report is to its reference in n-grams that few references have.

Vedantam et al. 2015 (https://arxiv.org/abs/1411.5726). Shapes: N reports, V n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from utils.ranked_outcomes import ratio

MAX_ORDER = 4
LARGEST = 10.0  # the scale that the paper's authors use
_SIGMA = 6.0  # of the penalty on a difference in length, as there

Words = Sequence[Sequence[str]]  # N reports


def cider(*, references: Words, written: Words) -> tuple[np.ndarray, np.ndarray]:
    """CIDEr and CIDEr-D of each report, against one reference; higher is better.

    CIDEr is the cosine of two vectors of n-gram counts, each weighted with the logarithm of N over
    the number of references that have it; the mean over n = 1 to 4, times 10. CIDEr-D clips counts
    to the reference's and punishes a difference in length, so that repeating words does not pay:
    it is what pycocoevalcap calls CIDEr. Neither stems words. An n-gram that all references have
    weighs nothing, so values depend on the set of references, and a single pair scores 0.

    Args:
        references: Words of N references.
        written: Words of N reports.

    Returns:
        (N,) and (N,) float64 in [0, 10]; 0 where a text is empty.
    """
    cosines, clipped = np.zeros((2, len(references)))
    for order in range(1, MAX_ORDER + 1):
        real, new = ngram_counts(order, references, written)
        frequency = np.bincount(real.indices, minlength=real.shape[1])
        weights = np.log(len(references) / np.maximum(frequency, 1))
        real, new = (counts.multiply(weights).tocsr() for counts in (real, new))
        norms = np.sqrt(_row_sums(real.multiply(real)) * _row_sums(new.multiply(new)))
        cosines += np.nan_to_num(ratio(_row_sums(real.multiply(new)), norms))
        clipped += np.nan_to_num(ratio(_row_sums(real.multiply(real.minimum(new))), norms))
    lengths = [
        np.array([max(len(words) - 1, 0) for words in texts]) for texts in (references, written)
    ]
    penalty = np.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * _SIGMA**2))
    return cosines * LARGEST / MAX_ORDER, clipped * penalty * LARGEST / MAX_ORDER


def ngram_counts(order: int, *texts: Words) -> list[csr_array]:
    """How often each n-gram of any of the texts occurs in each report, (N, V) float64 a table."""
    numbers: dict[tuple[str, ...], int] = {}
    places = [
        [
            [numbers.setdefault(gram, len(numbers)) for gram in _ngrams(words, order)]
            for words in reports
        ]
        for reports in texts
    ]
    return [_count_table(columns, len(numbers)) for columns in places]


def _ngrams(words: Sequence[str], order: int) -> zip:
    return zip(*(words[start:] for start in range(order)))


def _count_table(columns: Sequence[Sequence[int]], width: int) -> csr_array:
    """(N, V) from the n-grams of each report."""
    rows = np.repeat(np.arange(len(columns)), [len(found) for found in columns])
    flat = np.fromiter((column for found in columns for column in found), np.int64, len(rows))
    return csr_array((np.ones(len(rows)), (rows, flat)), shape=(len(columns), width))


def _row_sums(table: csr_array) -> np.ndarray:
    return np.asarray(table.sum(axis=1)).reshape(-1)
