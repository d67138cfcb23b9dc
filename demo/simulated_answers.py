"""Answers of simulated raters: the oracle's opinion, a rater's leniency, and an error each time.

Errors are drawn by the seed, the rater, the item and whether it is a repeat, so that a study gets
the same answers in whatever order and on whatever side it shows its images.
Shapes: N items, R raters, L diagnoses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import softmax

from demo.simulated_truth import Opinion
from utils.cli import UserError
from utils.kappas import cohen_kappa
from utils.rating_table import REAL_ARM, SCALE, UNSURE

SCALES = ("turing", "quality", "agreement")  # questions that a rater is lenient or strict on
LENIENCY_SHARE = 0.5  # deviation of a rater's leniency, of that of an error
PASSES_FOR_REAL = 3.0  # points of realness above which an image is called real
POOR = 2  # a rating of this or less has a reason, which is an error
TIE_POINTS = 0.25  # a smaller difference is none
ODDS_A_POINT = 3.0  # log-odds that weigh as much as a point of the scale
SURE = 0.5  # a lower chance is unsure
MAX_NOISE = 16.0  # points: nothing but chance is left
BISECTIONS = 40


@dataclass(frozen=True)
class Errors:
    """What a rater adds to the opinion of one item, in units of the noise.

    Attributes:
        scales: Question of ``SCALES`` to leniency and error together.
        odds: (L,), of the diagnoses.
        pair: (2,), of the item's first and second image.
    """

    scales: dict[str, float]
    odds: np.ndarray
    pair: np.ndarray


def draw_errors(*, seed: int, rater: int, item: int, is_repeat: bool, num_diagnoses: int) -> Errors:
    """Errors of one showing to the rater with this number."""
    lenient = np.random.default_rng([seed, rater]).normal(size=len(SCALES))
    chance = np.random.default_rng([seed, rater, item, int(is_repeat)])
    scales = LENIENCY_SHARE * lenient + chance.normal(size=len(SCALES))
    pair, odds = chance.normal(size=2), chance.normal(size=num_diagnoses)
    return Errors(dict(zip(SCALES, scales.tolist())), odds, pair)


def to_ratings(points: np.ndarray, errors: np.ndarray, noise: float) -> np.ndarray:
    """Points of the scale with errors, rounded to whole ratings in 1..5, int64."""
    found = np.rint(np.asarray(points) + noise * np.asarray(errors))
    return np.clip(found, SCALE[0], SCALE[-1]).astype(np.int64)


def judge_image(opinion: Opinion, errors: Errors, noise: float) -> dict[str, object]:
    """Answers to all questions on one image, as the page sends them."""
    points = {"quality": opinion.quality, "agreement": opinion.agreement}
    ratings = {
        name: int(to_ratings(value, errors.scales[name], noise)) for name, value in points.items()
    }
    chances = softmax(opinion.odds + ODDS_A_POINT * noise * errors.odds)
    named = opinion.diagnoses[int(chances.argmax())]
    looks_real = opinion.realness + noise * errors.scales["turing"] > PASSES_FOR_REAL
    kinds = []
    if ratings["agreement"] <= POOR:
        kinds = ["omission"] + ["commission"] * (named not in opinion.asked)
    return {
        "turing": REAL_ARM if looks_real else "synthetic",
        **ratings,
        "diagnosis": named if chances.max() >= SURE else UNSURE,
        "errors": kinds + ["artifact"] * (ratings["quality"] <= POOR),
    }


def compare(first: Opinion, second: Opinion, errors: Errors, noise: float) -> str:
    """``first``, ``second`` or ``tie``: which has more points of agreement and quality."""
    points = [(one.agreement + one.quality) / 2 for one in (first, second)]
    margin = float(points[0] - points[1] + noise * (errors.pair[0] - errors.pair[1]))
    if abs(margin) < TIE_POINTS:
        return "tie"
    return "first" if margin > 0 else "second"


def mean_kappa(points: np.ndarray, errors: np.ndarray, noise: float) -> float:
    """Mean over pairs of raters of Cohen's kappa of the ratings, weighted quadratically.

    Args:
        points: (N,) of the items.
        errors: (R, N).
        noise: Deviation of an error in points.
    """
    codes = to_ratings(points, errors, noise) - SCALE[0]
    pairs = [cohen_kappa(*pair, weighting="quadratic").value for pair in combinations(codes, 2)]
    return float(np.mean(pairs))


def find_noise(points: Sequence[float], errors: np.ndarray, *, kappa: float) -> float:
    """The deviation of errors, in points, at which `mean_kappa` is as asked; by bisection.

    Raises:
        UserError: If the items do not differ enough for any agreement beyond chance.
    """
    points = np.array(points)
    if len(np.unique(to_ratings(points, np.zeros(len(points)), 0))) < 2:
        raise UserError(
            "--kappa: the oracle says much the same of all images of this study; whatever the "
            "raters' errors, they cannot agree beyond chance"
        )
    low, high = 0.0, MAX_NOISE
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_kappa(points, errors, middle) > kappa else (low, middle)
    return high
