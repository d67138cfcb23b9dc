"""Intraclass correlations of raters' points on a scale, with intervals.

Shrout and Fleiss 1979 (https://doi.org/10.1037/0033-2909.86.2.420); names as there: the first
number is the model (1: each item has raters of its own; 2: raters drawn from many; 3: these raters
alone), the second the number of raters whose mean is taken. ICC(2,1) tells how well one rater's
points stand for another's, a constant bias counted as disagreement; ICC(3,1) does not count it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import f as fisher

from utils.intervals import CONFIDENCE

_TAIL = (1 + CONFIDENCE) / 2
TOO_FEW = "fewer than two raters, or fewer than two items that all of them judged"
NO_SPREAD = "all items got the same points: nothing to tell apart"


@dataclass(frozen=True)
class Intraclass:
    """One coefficient.

    Attributes:
        name: Such as ``ICC(2,1)``.
        value: NaN where undefined.
        low: 95 % interval; NaN without one, as ``high``.
        high: See above.
        num_items: That all raters judged.
        num_raters: Raters.
        reason: Why it is undefined.
    """

    name: str
    value: float
    low: float
    high: float
    num_items: int
    num_raters: int
    reason: str = ""


def intraclass_correlations(points: np.ndarray) -> list[Intraclass]:
    """ICC(1,1), ICC(2,1), ICC(3,1) and the same of the mean of k raters, in this order.

    Args:
        points: (R, N), NaN where missing; items that all raters judged count.
    """
    points = np.asarray(points, np.float64)
    table = points[:, np.isfinite(points).all(axis=0)].T  # (n, k)
    n, k = table.shape
    names = [f"ICC({model},{size})" for size in (1, max(k, 2)) for model in (1, 2, 3)]
    if n < 2 or k < 2:
        return [Intraclass(name, *(math.nan,) * 3, n, k, TOO_FEW) for name in names]
    bms, wms, jms, ems = mean_squares(table)
    if bms + wms < 1e-12:
        return [Intraclass(name, *(math.nan,) * 3, n, k, NO_SPREAD) for name in names]
    single = [
        ((bms - wms) / (bms + (k - 1) * wms), *_from_ratio(bms, wms, n - 1, n * (k - 1), k=k)),
        _two_way(bms, jms, ems, n=n, k=k),
        (
            (bms - ems) / (bms + (k - 1) * ems),
            *_from_ratio(bms, ems, n - 1, (n - 1) * (k - 1), k=k),
        ),
    ]
    # Spearman and Brown: the mean of k raters; monotone, so that it takes intervals along.
    averaged = [tuple(_of_mean(end, k) for end in ends) for ends in single]
    return [Intraclass(name, *ends, n, k) for name, ends in zip(names, [*single, *averaged])]


def mean_squares(table: np.ndarray) -> tuple[float, float, float, float]:
    """Between items, within items, between raters, and the rest, of (n, k) points."""
    n, k = table.shape
    grand, items, raters = table.mean(), table.mean(axis=1), table.mean(axis=0)
    between = k * ((items - grand) ** 2).sum()
    judges = n * ((raters - grand) ** 2).sum()
    within = ((table - items[:, None]) ** 2).sum()
    rest = ((table - items[:, None] - raters + grand) ** 2).sum()
    squares = (between / (n - 1), within / (n * (k - 1)))
    return (*squares, judges / (k - 1), rest / ((n - 1) * (k - 1)))


def _from_ratio(bms: float, error: float, df1: int, df2: int, *, k: int) -> tuple[float, float]:
    """Interval of a single rater's coefficient from F = BMS / error (pages 424 and 425)."""
    if error < 1e-12:
        return 1.0, 1.0
    ratio = bms / error
    low = ratio / fisher.ppf(_TAIL, df1, df2)
    high = ratio * fisher.ppf(_TAIL, df2, df1)
    return (low - 1) / (low + k - 1), (high - 1) / (high + k - 1)


def _two_way(bms: float, jms: float, ems: float, *, n: int, k: int) -> tuple[float, float, float]:
    """ICC(2,1) with its interval by Satterthwaite's degrees of freedom (page 424)."""
    value = (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n)
    if ems < 1e-12 and jms < 1e-12:
        return value, 1.0, 1.0
    raters = k * value * (jms / ems if ems > 1e-12 else math.inf)
    rest = n * (1 + (k - 1) * value) - k * value
    if math.isinf(raters):
        degrees = float(k - 1)
    else:
        degrees = (k - 1) * (n - 1) * (raters + rest) ** 2
        degrees /= (n - 1) * raters**2 + rest**2
    low_f, high_f = fisher.ppf(_TAIL, n - 1, degrees), fisher.ppf(_TAIL, degrees, n - 1)
    error = k * jms + (k * n - k - n) * ems
    low = n * (bms - low_f * ems) / (low_f * error + n * bms)
    high = n * (high_f * bms - ems) / (error + n * high_f * bms)
    return value, low, high


def _of_mean(value: float, k: int) -> float:
    """Coefficient of the mean of k raters from that of one."""
    divisor = 1 + (k - 1) * value
    return k * value / divisor if divisor > 1e-12 else -math.inf
