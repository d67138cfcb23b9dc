"""What rewards say of images by ratings of which they saw neither the image nor the rater.

Images are dealt out to folds, raters to groups; for each fold and group a reward is learnt, its
penalty chosen too, from the other images' ratings by the other raters, and asked about the ratings
of this fold by this group. Shapes: N images, M ratings, P comparisons, K = 5 levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.ordinal_model import NUM_LEVELS, PSEUDO_RATINGS, comparison_losses
from utils.reward_features import Inputs
from utils.reward_fit import NUM_FOLDS, Fit, fit_reward, folds_of
from utils.reward_model import expected_ratings
from utils.reward_ratings import Ratings

MAX_RATER_GROUPS = 5


@dataclass(frozen=True)
class HeldOut:
    """All ratings and comparisons, each with what a reward that had not seen it says.

    Attributes:
        ratings: What was said.
        probs: (M, K), chance of each level.
        constant_probs: (M, K), frequency of each level among the ratings that were seen.
        score: (M,), the image's expected rating over all questions.
        comparison_loss: (P,), ``-log p`` in nats.
        margin: (P,), score of the first image less that of the second, in logits.
        rater_group: (R,), which raters were held out together; all 0 where there is one rater.
        raters_held_out: Whether they were.
    """

    ratings: Ratings
    probs: np.ndarray
    constant_probs: np.ndarray
    score: np.ndarray
    comparison_loss: np.ndarray
    margin: np.ndarray
    rater_group: np.ndarray
    raters_held_out: bool


def predict_held_out(
    inputs: Inputs,
    ratings: Ratings,
    groups: np.ndarray,
    *,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> HeldOut:
    """Learn a reward for each fold of images and group of raters, and ask it about them.

    Args:
        inputs: Of N images.
        ratings: About them.
        groups: (N,), what must be held out together.
        seed: Of all folds.
        progress: Called with 1 after each reward, of `num_rewards`.
    """
    judged = ratings.judged()
    folds = np.full(len(judged), -1)
    folds[judged] = folds_of(groups[judged], NUM_FOLDS, seed=seed)
    rater_group = np.arange(len(ratings.raters)) % MAX_RATER_GROUPS
    held_out = len(ratings.raters) > 1
    size = len(ratings.level), NUM_LEVELS
    probs, constant, score = np.full(size, np.nan), np.full(size, np.nan), np.full(size[0], np.nan)
    loss, margin = np.full((2, len(ratings.win)), np.nan)
    for fold in range(NUM_FOLDS):
        for number in np.unique(rater_group):
            asked = rater_group == number
            seen = ~asked if held_out else ~np.zeros_like(asked)
            train = ratings.keep(judged & (folds != fold), seen)
            fit = fit_reward(inputs, train, groups, seed=seed)
            rows = (folds[ratings.image] == fold) & asked[ratings.rater]
            probs[rows] = _level_probs(fit, inputs, ratings)[rows]
            constant[rows] = _frequencies(train)[ratings.question[rows]]
            score[rows] = expected_ratings(fit, inputs)[ratings.image[rows]]
            pairs = (folds[ratings.pair[:, 0]] == fold) & asked[ratings.pair_rater]
            columns = fit.design(inputs)
            loss[pairs] = comparison_losses(fit.latent, columns, ratings)[pairs]
            common = fit.latent.common(columns)[ratings.pair[pairs]]
            margin[pairs] = common[:, 0] - common[:, 1]
            if progress is not None:
                progress(1)
    return HeldOut(ratings, probs, constant, score, loss, margin, rater_group, held_out)


def num_rewards(ratings: Ratings) -> int:
    """How many rewards `predict_held_out` learns."""
    return NUM_FOLDS * min(len(ratings.raters), MAX_RATER_GROUPS)


def _level_probs(fit: Fit, inputs: Inputs, ratings: Ratings) -> np.ndarray:
    """Chance of each level of each rating's image and question, (M, K)."""
    return fit.latent.level_probs(fit.design(inputs))[ratings.image, ratings.question]


def _frequencies(ratings: Ratings) -> np.ndarray:
    """Share of each level of each question, (Q, K), every level seen a tenth of a time more."""
    counts = np.full((len(ratings.questions), NUM_LEVELS), PSEUDO_RATINGS)
    np.add.at(counts, (ratings.question, ratings.level), 1)
    return counts / counts.sum(axis=1, keepdims=True)
