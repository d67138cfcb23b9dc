"""Means over raters and images, and differences of them, with both taken as drawn by chance.

Several raters judge the same images: answers of one rater share the rater's bias, answers to one
image share what is peculiar to the image, so answers are no independent trials. What a reading
study does about it, Obuchowski and Rockette 1995 (``utils/seed_variance.py`` has the sources), is
done here: one figure for each rater, and the covariance that the images cause between them, which
for means has a closed form.

Shapes: R raters, N images of an arm, A arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from utils.intervals import CONFIDENCE, wilson_interval
from utils.seed_variance import infer_mean
from utils.verdicts import holm

ONE_RATER = "one rater: it holds for this rater, not for others"
TOO_FEW_IMAGES = "no rater judged two images of each arm"
FEW_IMAGES = "fewer than 12 images of an arm: interval and p are rough"
ONE_ANSWER_EACH = "each rater gave one answer to all images: no interval"
EXTREME = "one answer to all images of an arm: interval from the number of images alone"
_NO_VARIANCE = 1e-12  # below: rounding
ENOUGH_IMAGES = 12  # of 8, up to 8 % of true nulls are rejected at p < 0.05
MIN_IMAGES = 2  # of an arm, for a rater's figure to have an error


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arms' means, averaged over raters, with a 95 % interval.

    Attributes:
        value: The figure; NaN where nothing can be told.
        low: Lower end; NaN without interval, as ``high``.
        high: See above.
        p: Two-sided, of the figure being the null; NaN without one.
        p_holm: NaN until the family is corrected.
        num_raters: Raters it rests on.
        num_images: Images it rests on.
        per_rater: Rater's row -> own figure.
        reason: What to know about it.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float
    num_raters: int
    num_images: int
    per_rater: Mapping[int, float]
    reason: str


def contrast(
    scores: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    *,
    null: float | None = None,
    offset: float = 0.0,
    limits: tuple[float, float] = (0.0, 1.0),
    fixed_raters: bool = False,
) -> Contrast:
    """``offset + sum_a w_a mean_a`` of each rater, and the mean over raters.

    Rater r's mean of arm a is over the images that r judged. With ``y`` less the rater's mean,
    ``cov_a(r, s) = n_rs / (n_r n_s) * sum_i y_ri y_si / (n_rs - 1)`` over the ``n_rs`` images
    that both judged, and ``Cov(r, s) = sum_a w_a^2 cov_a(r, s)``, as the arms hold different
    images. `infer_mean` adds what the raters differ by. Images of one text in two arms are not
    paired, which makes intervals of differences wider rather than narrower.

    Args:
        scores: Arm -> (R, N_a); NaN where a rater did not judge an image.
        weights: Arm -> its weight; arms of weight 0 or without weight do not count.
        null: Value to test against; None: no test.
        offset: See above.
        limits: Least and largest value the figure can have; the interval ends there.
        fixed_raters: Whether it is about these raters alone: other images, the same raters.

    Returns:
        The figure of all raters who judged at least ``MIN_IMAGES`` images of each arm.
    """
    used = {arm: weight for arm, weight in weights.items() if weight}
    tables = {arm: np.asarray(scores[arm], np.float64) for arm in used}
    judged = [np.isfinite(table).sum(axis=1) for table in tables.values()]
    raters = np.flatnonzero((np.stack(judged) >= MIN_IMAGES).all(axis=0))
    if not len(raters):
        return Contrast(*(math.nan,) * 5, 0, 0, {}, TOO_FEW_IMAGES)
    tables = {arm: table[raters] for arm, table in tables.items()}
    values = offset + sum(w * np.nanmean(tables[arm], axis=1) for arm, w in used.items())
    covariance = sum(w**2 * mean_covariance(tables[arm]) for arm, w in used.items())
    counts = [int(np.isfinite(table).any(axis=0).sum()) for table in tables.values()]
    found = Contrast(
        *(float(values.mean()), math.nan, math.nan, math.nan, math.nan),
        *(len(raters), sum(counts)),
        dict(zip(raters.tolist(), values.tolist())),
        _join(*_cautions(len(raters), min(counts))),
    )
    if max(np.ptp(values), np.abs(covariance).max()) < _NO_VARIANCE:
        return _without_variance(found, tables, used, null=null)
    if fixed_raters:
        error, degrees = math.sqrt(max(covariance.mean(), _NO_VARIANCE)), min(counts) - 1
    else:
        error, degrees = _error_and_degrees(values, covariance, image_degrees=min(counts) - 1)
    half = float(student.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    low, high = (float(np.clip(end, *limits)) for end in (found.value - half, found.value + half))
    p = math.nan
    if null is not None:
        p = 2 * float(student.sf(abs(found.value - null) / error, degrees))
    return replace(found, low=low, high=high, p=p)


def _error_and_degrees(
    values: np.ndarray, covariance: np.ndarray, *, image_degrees: int
) -> tuple[float, float]:
    """Standard error of the mean over raters, and its degrees of freedom by Satterthwaite.

    Of `infer_mean`'s variance ``V = B + C`` (raters, images) its degrees count the raters' part
    alone, ``V^2 / (B^2 / (R - 1))``, which is right where images are many. Of 12 images and 12
    raters 8 % of true nulls were rejected at p < 0.05. So the images' part is added:
    ``V^2 / (B^2 / (R - 1) + C^2 / image_degrees)``.
    """
    mean = infer_mean(values, covariance, patient_degrees=image_degrees)
    if len(values) == 1:
        return math.sqrt(mean.variance), image_degrees
    of_raters = mean.variance**2 / mean.degrees  # B^2 / (R - 1); 0 for infinite degrees
    of_images = (mean.variance - math.sqrt(of_raters * (len(values) - 1))) ** 2 / image_degrees
    return math.sqrt(mean.variance), mean.variance**2 / (of_raters + of_images)


def mean_covariance(table: np.ndarray) -> np.ndarray:
    """Covariance of raters' means that the draw of images causes.

    Args:
        table: (R, N), NaN where a rater did not judge an image.

    Returns:
        (R, R); 0 for two raters who share fewer than two images.
    """
    seen = np.isfinite(table)
    deviations = np.where(seen, table - np.nanmean(table, axis=1, keepdims=True), 0.0)
    shared = seen.astype(np.float64) @ seen.T  # (R, R)
    counts = np.diag(shared)
    products = deviations @ deviations.T / np.maximum(shared - 1, 1)
    return np.where(shared >= MIN_IMAGES, products * shared / np.outer(counts, counts), 0.0)


def _without_variance(
    found: Contrast,
    tables: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    *,
    null: float | None,
) -> Contrast:
    """Every rater gave one answer to all images of an arm; shares of 0 and 1 still have a bound.

    Each image counts once, whoever judged it. The interval puts Wilson's intervals [l, u] of the
    arms' shares m together, Zou and Donner 2008 (https://doi.org/10.1002/sim.3095), for a positive
    weight ``low = value - sqrt(sum_a (w_a (m_a - l_a))^2)``. The p value is twice the largest
    chance of such answers where they do not depend on the arm: ``prod_a (n_a / n)^n_a`` with n_a
    images of an arm, ``1 / 2^n`` of a single one.
    """
    shares = {arm: float(np.nanmean(table)) for arm, table in tables.items()}
    if not set(shares.values()) <= {0.0, 1.0}:
        return replace(found, reason=_join(found.reason, ONE_ANSWER_EACH))
    counts = {arm: int(np.isfinite(table).any(axis=0).sum()) for arm, table in tables.items()}
    reach = np.zeros(2)  # squares, downwards and upwards
    for arm, weight in weights.items():
        low, high = wilson_interval(int(shares[arm]) * counts[arm], counts[arm])
        sides = np.array([shares[arm] - low, high - shares[arm]])
        reach += (weight * (sides if weight > 0 else sides[::-1])) ** 2
    below, above = np.sqrt(reach).tolist()
    p = math.nan
    if null is not None:
        total = sum(counts.values())
        parts = [count / total for count in counts.values()] if len(counts) > 1 else [0.5]
        chance = math.prod(part**count for part, count in zip(parts, counts.values()))
        p = 1.0 if found.value == null else min(1.0, 2 * chance)
    reason = _join(found.reason, EXTREME)
    return replace(found, low=found.value - below, high=found.value + above, p=p, reason=reason)


def _cautions(num_raters: int, num_images: int) -> list[str]:
    notes = [ONE_RATER] if num_raters == 1 else []
    return [*notes, FEW_IMAGES] if num_images < ENOUGH_IMAGES else notes


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def correct_family(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The same with ``p_holm``, Holm's correction over these tests."""
    corrected = holm(np.array([found.p for found in contrasts]))
    return [replace(found, p_holm=float(p)) for found, p in zip(contrasts, corrected)]
