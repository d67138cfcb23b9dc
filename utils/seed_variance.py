"""Is a mean over training seeds, measured on one set of patients, chance? Obuchowski-Rockette.

A trained model is to its test patients what a reader is to the cases of a reading study: scores of
several readers on the same cases vary with the readers and, together, with the cases. Obuchowski
and Rockette 1995 (https://doi.org/10.1080/03610919508813243) take both as random; the degrees of
freedom are those of Hillis 2007 (https://doi.org/10.1002/sim.2532). Here a reader is a seed: the
draw of labelled patients, initial weights and order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from utils.intervals import CONFIDENCE

_NO_VARIANCE = 1e-16  # below: rounding; two areas that differ at all differ by far more than 1e-8


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds, its 95 % interval, p of the mean being 0, and degrees of freedom.

    With no variance at all the interval is the mean alone, and p is 1 for 0 and NaN otherwise.
    """

    mean: float
    low: float
    high: float
    p: float
    variance: float
    degrees: float


def infer_mean(
    values: np.ndarray, patient_covariance: np.ndarray, *, patient_degrees: float = float("inf")
) -> SeedMean:
    """Mean of S seeds with an interval over new seeds and new patients.

    ``Var(mean) = s^2 / S + C``: s^2 is the variance between the seeds, which contains what each
    seed's own error owes to the patients, and C what all owe to them together, the mean
    covariance of two seeds, at least 0. Degrees of freedom:
    ``(s^2 / S + C)^2 / ((s^2 / S)^2 / (S - 1))``. For differences of two arms paired by seed,
    s^2 = 2 MS(T*R) and C = 2 max(Cov2 - Cov3, 0) of the papers; for one arm, s^2 = MS(R) and
    C = max(Cov2, 0).

    One thing is added: s^2 is at least V - C, V the mean variance that the patients cause in one
    seed, for the models' own variance cannot be negative. Without it few seeds that agree by
    accident are taken at their word: of 2 seeds 10 % of true nulls were rejected at p < 0.05, of
    3 seeds 6 %; with it 1 to 7 % and 1 to 5 %.

    With one seed only the patients' variance is known: it is all that the interval contains, with
    ``patient_degrees``.

    Args:
        values: (S,) scores, or differences of scores, finite.
        patient_covariance: (S, S), their covariance over draws of patients, the models fixed.
        patient_degrees: Degrees of freedom of that covariance, for one seed; infinite is the
            normal distribution.
    """
    num_seeds, mean = len(values), float(np.mean(values))
    own = float(np.diag(patient_covariance).mean())
    if num_seeds == 1:
        variance, degrees = own, patient_degrees
    else:
        apart = patient_covariance[~np.eye(num_seeds, dtype=bool)]
        common = max(float(apart.mean()), 0.0)
        between = max(float(np.var(values, ddof=1)), own - common) / num_seeds
        variance = between + common
        seen = between > _NO_VARIANCE
        degrees = variance**2 / (between**2 / (num_seeds - 1)) if seen else float("inf")
    if variance < _NO_VARIANCE:
        p = 1.0 if mean**2 < _NO_VARIANCE else float("nan")
        return SeedMean(mean, mean, mean, p, 0.0, float("nan"))
    error = float(np.sqrt(variance))
    half = float(student.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    p = 2 * float(student.sf(abs(mean) / error, degrees))
    return SeedMean(mean, mean - half, mean + half, p, variance, degrees)
