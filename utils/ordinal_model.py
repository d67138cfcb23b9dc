"""A latent score behind ratings of a scale and comparisons, fitted to both at once.

Ratings follow McCullagh's proportional odds (1980,
https://doi.org/10.1111/j.2517-6161.1980.tb01109.x): of a rater j and a question q the chance of
level k or less is ``sigma(t_qk - r_q(x) - b_jq)``, b the rater's leniency. Comparisons follow
Bradley and Terry (1952, https://doi.org/10.1093/biomet/39.3-4.324): x beats y with the chance
``sigma(r(x) - r(y))``; ties count half a win of either. The scores are linear and share what they
have in common (Evgeniou and Pontil 2004, https://doi.org/10.1145/1014052.1014067):
``r(x) = w x`` and, where there are several questions, ``r_q(x) = (w + d_q) x``.

The fit minimises ``-log likelihood + l2/2 (|w|^2 + sum |d_q|^2) + sum b^2 / 2``, plus a tenth of a
rating of each level for the average image, without which a level that nobody used has no finite
threshold. It is convex in w, d, b and t (Pratt 1981, https://doi.org/10.2307/2287052).
Shapes: N images, D features, R raters, Q questions, M ratings, P comparisons, K = 5 levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from utils.rating_table import SCALE
from utils.reward_ratings import Ratings

NUM_LEVELS = len(SCALE)
LENIENCY_PRECISION = 1.0  # a rater's leniency has a standard deviation of 1 logit beforehand
PSEUDO_RATINGS = 0.1  # of each level and question
_MAX_ITERATIONS = 1000
_GRADIENT_TOLERANCE = 1e-4
_MEMORY = 30  # steps that the curvature is made of


@dataclass(frozen=True)
class Latent:
    """The fitted scores.

    Attributes:
        weight: (D,) float64, common to all questions and the comparisons.
        deviations: (Q, D) of the questions; zeros where there is one only.
        thresholds: (Q, K - 1), increasing.
        leniency: (R, Q); positive rates higher.
    """

    weight: np.ndarray
    deviations: np.ndarray
    thresholds: np.ndarray
    leniency: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """``r_q`` of images (N, D), (N, Q)."""
        return features @ (self.weight + self.deviations).T

    def common(self, features: np.ndarray) -> np.ndarray:
        """``r`` of images (N, D), (N,): what comparisons go by."""
        return features @ self.weight

    def level_probs(self, features: np.ndarray) -> np.ndarray:
        """Chance of each level from an average rater, (N, Q, K), of images (N, D)."""
        return level_probs(self.scores(features), self.thresholds)


def level_probs(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Chance of each level, (N, Q, K), of scores (N, Q) and thresholds (Q, K - 1)."""
    below = expit(thresholds - scores[..., None])
    ones, zeros = np.ones((*scores.shape, 1)), np.zeros((*scores.shape, 1))
    return np.diff(np.concatenate([zeros, below, ones], axis=-1), axis=-1)


def rating_losses(latent: Latent, features: np.ndarray, ratings: Ratings) -> np.ndarray:
    """``-log p`` of each rating (M,), in nats, of an average rater."""
    scores = latent.scores(features)[ratings.image, ratings.question]
    bounds = _bounds(latent.thresholds)[ratings.question]
    return -_log_prob(scores, *_limits(bounds, ratings.level))


def comparison_losses(latent: Latent, features: np.ndarray, ratings: Ratings) -> np.ndarray:
    """``-log p`` of each comparison (P,), in nats; of a tie the mean of both outcomes."""
    margin = np.subtract(*latent.common(features)[ratings.pair].T)
    return -(ratings.win * log_expit(margin) + (1 - ratings.win) * log_expit(-margin))


def fit_path(
    features: np.ndarray, ratings: Ratings, *, strengths: Sequence[float]
) -> Iterator[Latent]:
    """The scores at the minimum, by L-BFGS in float64, each strength from the solution before.

    Args:
        features: (N, D) float64, centred on the average image.
        ratings: What was said; images without a rating do not count.
        strengths: Of the penalty on ``w`` and ``d``, > 0; from strong to weak is quickest.
    """
    problem = _Problem(features, ratings)
    options = {"maxiter": _MAX_ITERATIONS, "gtol": _GRADIENT_TOLERANCE, "ftol": 0.0}
    options["maxcor"] = _MEMORY
    flat = problem.start()
    for l2 in strengths:
        task = {"args": (l2,), "jac": True, "method": "L-BFGS-B", "options": options}
        flat = minimize(problem, flat, **task).x
        weight, deviations, cuts, leniency = problem.split(flat)
        if not len(deviations):
            deviations = np.zeros((len(ratings.questions), len(weight)))
        yield Latent(weight, deviations, _thresholds(cuts), leniency)


class _Problem:
    """Value and gradient of what is minimised, over one vector of all parameters.

    A pseudo-rating is one of a further image with the score 0 by a further rater who is not
    lenient; it counts a tenth.
    """

    def __init__(self, features: np.ndarray, ratings: Ratings) -> None:
        self.features, self.ratings = features, ratings
        num_questions, dim = len(ratings.questions), features.shape[1]
        own = num_questions if num_questions > 1 else 0
        raters = len(ratings.raters)
        self.shapes = ((dim,), (own, dim), (num_questions, NUM_LEVELS - 1), (raters, num_questions))
        self.ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        # Places in flat tables: of image and question, rater and question, question and bound.
        question, level = (one.ravel() for one in np.indices((num_questions, NUM_LEVELS)))
        question = np.concatenate([ratings.question, question])
        pseudo = np.ones(len(question) - len(ratings.level), np.int64)
        image = np.concatenate([ratings.image, ratings.num_images * pseudo])
        rater = np.concatenate([ratings.rater, raters * pseudo])
        self.cell, self.seat = (one * num_questions + question for one in (image, rater))
        self.low = question * (NUM_LEVELS + 1) + np.concatenate([ratings.level, level])
        self.mass = np.concatenate([np.ones(len(ratings.level)), PSEUDO_RATINGS * pseudo])

    def split(self, flat: np.ndarray) -> list[np.ndarray]:
        """Weight, deviations, cuts (first threshold, logarithms of the steps), leniency."""
        parts = np.split(flat, self.ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes)]

    def start(self) -> np.ndarray:
        """Zeros, and the thresholds that the frequencies of the levels give."""
        flat = np.zeros(self.ends[-1])
        cuts = self.split(flat)[2]
        for number in range(len(cuts)):
            levels = self.ratings.level[self.ratings.question == number]
            counts = np.bincount(levels, minlength=NUM_LEVELS) + 0.5
            share = (np.cumsum(counts) / counts.sum())[:-1]
            edges = np.log(share / (1 - share))
            cuts[number] = np.concatenate([edges[:1], np.log(np.diff(edges))])
        return flat

    def __call__(self, flat: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        weight, deviations, cuts, leniency = self.split(flat)
        common = self.features @ weight
        scores = common[:, None] + np.zeros(len(cuts))
        if len(deviations):
            scores += self.features @ deviations.T
        rated, to_scores, to_cuts, to_leniency = self._ratings(scores, cuts, leniency)
        compared, to_common = self._comparisons(common)
        to_common = to_common + to_scores.sum(axis=1)
        to_deviations = (to_scores.T @ self.features)[: len(deviations)] + l2 * deviations
        gradient = [
            to_common @ self.features + l2 * weight,
            to_deviations,
            to_cuts,
            to_leniency + LENIENCY_PRECISION * leniency,
        ]
        size = float(weight @ weight + (deviations**2).sum())
        lenient = float((leniency**2).sum())
        value = rated + compared + l2 / 2 * size + LENIENCY_PRECISION / 2 * lenient
        return value, np.concatenate([part.ravel() for part in gradient])

    def _ratings(
        self, scores: np.ndarray, cuts: np.ndarray, leniency: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """``-log p`` of all ratings, its slopes along scores (N, Q), cuts and leniency."""
        nobody = np.zeros(len(cuts))
        score = np.append(scores, nobody)[self.cell] + np.append(leniency, nobody)[self.seat]
        bounds = _bounds(_thresholds(cuts))
        low, high = bounds.ravel()[self.low], bounds.ravel()[self.low + 1]
        value = -float(self.mass @ _log_prob(score, low, high))
        to_high, to_low = (self.mass * slope for slope in _bound_slopes(score, low, high))
        slope = -(to_high + to_low)
        to_scores = np.bincount(self.cell, slope, scores.size + len(cuts))[: scores.size]
        to_leniency = np.bincount(self.seat, slope, leniency.size + len(cuts))[: leniency.size]
        to_bounds = np.bincount(self.low, to_low, bounds.size)
        to_bounds = to_bounds + np.bincount(self.low + 1, to_high, bounds.size)
        to_thresholds = to_bounds.reshape(bounds.shape)[:, 1:-1]
        return (
            value,
            to_scores.reshape(scores.shape),
            _to_cuts(to_thresholds, cuts),
            to_leniency.reshape(leniency.shape),
        )

    def _comparisons(self, common: np.ndarray) -> tuple[float, np.ndarray]:
        """``-log p`` of all comparisons, its slope along the common score (N,)."""
        (first, second), win = self.ratings.pair.T, self.ratings.win
        margin = common[first] - common[second]
        value = -float(win @ log_expit(margin) + (1 - win) @ log_expit(-margin))
        slope = expit(margin) - win
        size = len(common)
        return value, np.bincount(first, slope, size) - np.bincount(second, slope, size)


def _thresholds(cuts: np.ndarray) -> np.ndarray:
    """Increasing thresholds (Q, K - 1) of the first one and the logarithms of the steps."""
    return np.cumsum(np.concatenate([cuts[:, :1], np.exp(cuts[:, 1:])], axis=1), axis=1)


def _to_cuts(to_thresholds: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The chain rule of `_thresholds`."""
    onward = np.cumsum(to_thresholds[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([onward[:, :1], onward[:, 1:] * np.exp(cuts[:, 1:])], axis=1)


def _bounds(thresholds: np.ndarray) -> np.ndarray:
    """(Q, K + 1): the thresholds between minus and plus infinity."""
    return np.pad(thresholds, ((0, 0), (1, 1)), constant_values=(-np.inf, np.inf))


def _limits(bounds: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound (M,) of each level (M,), of bounds (M, K + 1)."""
    rows = np.arange(len(level))
    return bounds[rows, level], bounds[rows, level + 1]


def _log_prob(score: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """``log(sigma(high - score) - sigma(low - score))`` without cancellation.

    ``sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a))``.
    """
    a, b = high - score, low - score
    return log_expit(a) + log_expit(-b) + np.log1p(-np.exp(b - a))


def _bound_slopes(
    score: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slope of ``-log p`` along the upper and the lower bound."""
    with np.errstate(over="ignore"):  # an infinite step has the slope 0
        inner = 1 / np.expm1(high - low)
    return -(expit(score - high) + inner), expit(low - score) + inner
