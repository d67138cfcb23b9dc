"""How well raters agree beyond chance: what the coefficients share, and Krippendorff's alpha.

1 is perfect agreement, 0 what chance gives, below 0 less than that. All depend on how often each
answer occurs: where nearly all images get one answer, agreement is high and kappa low (Feinstein
and Cicchetti 1990, https://doi.org/10.1016/0895-4356(90)90158-L), so the share of equal answers
belongs beside it. Kappas are in ``utils/kappas.py``.

Pure numpy. Shapes: R raters, N items, K answers, B bootstrap resamples. Codes are integers from 0
in the order of the answers, ``MISSING`` where a rater gave none. A resample is a row of weights,
how often each item was drawn (``bootstrap_weights``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from utils.classification_scores import MIN_FINITE_SHARE, bootstrap_weights
from utils.intervals import MIN_GROUPS

MISSING = -1
LEVELS = ("nominal", "ordinal", "interval")

ONE_RATER = "fewer than two raters"
NO_OVERLAP = "no item was judged by two raters"
ONE_ANSWER = "only one answer was ever given: chance agrees perfectly too"
NO_DISAGREEMENT = "no disagreement: no interval"
FEW_ITEMS = f"fewer than {MIN_GROUPS} items: no interval"
UNDEFINED_DRAWS = "undefined in most bootstrap resamples: too few items"


@dataclass(frozen=True)
class Agreement:
    """A coefficient with a 95 % interval over items.

    Attributes:
        value: At most 1; NaN where undefined.
        low: NaN without interval, as ``high``.
        high: See above.
        num_items: Items that count.
        num_raters: Raters.
        reason: Why there is no value, or no interval.
    """

    value: float
    low: float
    high: float
    num_items: int
    num_raters: int
    reason: str = ""


def undefined(reason: str, *, num_items: int = 0, num_raters: int = 0) -> Agreement:
    """No value, and why."""
    return Agreement(math.nan, math.nan, math.nan, num_items, num_raters, reason)


def krippendorff_alpha(
    codes: np.ndarray, *, level: str = "nominal", num_resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Krippendorff's alpha, ``1 - Do / De``; missing answers allowed, and any number of raters.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability"
    (https://repository.upenn.edu/asc_papers/43). The interval resamples items.

    Args:
        codes: (R, N).
        level: ``nominal``, ``ordinal`` or ``interval``.
        num_resamples: B.
        seed: Of the bootstrap.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is none of {', '.join(LEVELS)}")
    codes = np.asarray(codes)
    if problem := problem_of(codes):
        return problem
    counts = (codes[:, :, None] == np.arange(int(codes.max()) + 1)).sum(axis=0).astype(float)
    counts = counts[counts.sum(axis=1) >= 2]  # (N, K)
    size = counts.shape[1]
    ordered = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(size)
    coincidences = ordered / (counts.sum(axis=1) - 1)[:, None, None]

    def alphas(drawn: np.ndarray) -> np.ndarray:
        return alpha_of_tables(np.tensordot(drawn, coincidences, axes=1), level)

    paired = codes[:, (codes >= 0).sum(axis=0) >= 2]
    return with_interval(alphas, paired, num_resamples=num_resamples, seed=seed)


def alpha_of_tables(tables: np.ndarray, level: str) -> np.ndarray:
    """(B,) alphas of (B, K, K) coincidence matrices."""
    totals = tables.sum(axis=2)  # (B, K)
    answers = np.arange(tables.shape[1])
    if level == "nominal":
        distances = (1.0 - np.eye(len(answers)))[None]
    elif level == "interval":
        distances = ((answers[:, None] - answers) ** 2.0)[None]
    else:  # all answers from the one to the other, the ends by half
        ranks = np.cumsum(totals, axis=1) - totals / 2
        distances = (ranks[:, :, None] - ranks[:, None, :]) ** 2
    seen = (tables * distances).sum(axis=(1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * distances).sum(axis=(1, 2))
    one_answer = expected <= 0
    factor = totals.sum(axis=1) - 1
    return np.where(one_answer, np.nan, 1 - factor * seen / np.where(one_answer, 1, expected))


def problem_of(codes: np.ndarray) -> Agreement | None:
    """Why no coefficient can be computed; None if one can."""
    num_raters = int((codes >= 0).any(axis=1).sum()) if codes.size else 0
    if num_raters < 2:
        return undefined(ONE_RATER, num_raters=num_raters)
    if ((codes >= 0).sum(axis=0) < 2).all():
        return undefined(NO_OVERLAP, num_raters=num_raters)
    return None


def with_interval(
    coefficients: Callable[[np.ndarray], np.ndarray],
    codes: np.ndarray,
    *,
    num_resamples: int,
    seed: int,
) -> Agreement:
    """The coefficient of all items, with the percentiles of resampled ones."""
    num_raters, count = codes.shape
    value = float(coefficients(np.ones((1, count)))[0])
    if math.isnan(value):
        return undefined(ONE_ANSWER, num_items=count, num_raters=num_raters)
    bare = Agreement(value, math.nan, math.nan, count, num_raters)
    if value > 1 - 1e-12:
        return replace(bare, reason=NO_DISAGREEMENT)
    if count < MIN_GROUPS:
        return replace(bare, reason=FEW_ITEMS)
    weights = bootstrap_weights(None, count, num_resamples=num_resamples, seed=seed)
    drawn = np.concatenate([coefficients(rows) for rows in weights])
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < MIN_FINITE_SHARE * len(drawn):
        return replace(bare, reason=UNDEFINED_DRAWS)
    low, high = (float(end) for end in np.percentile(finite, [2.5, 97.5]))
    return replace(bare, low=min(low, value), high=max(high, value))
