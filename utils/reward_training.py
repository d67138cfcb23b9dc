"""From an export of ratings to a reward, and to what it is worth on others' ratings."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.dataset import Dataset
from utils.reward_evaluation import RewardReport, report_held_out
from utils.reward_features import Inputs, RewardNetworks, reward_inputs
from utils.reward_fit import fit_reward, image_groups
from utils.reward_holdout import predict_held_out
from utils.reward_model import RewardConfig, RewardModel
from utils.reward_ratings import Ratings, read_ratings


@dataclass(frozen=True)
class RatedImages:
    """N images, what is known about them and what was said.

    Attributes:
        dataset: The images.
        inputs: What the networks and rules say.
        ratings: What the raters said.
        groups: (N,) int64, what must be held out together.
        by_text: Whether images of one text are in one group.
    """

    dataset: Dataset
    inputs: Inputs
    ratings: Ratings
    groups: np.ndarray
    by_text: bool


def load_rated(
    export_dir: Path,
    networks: RewardNetworks,
    *,
    cache_dir: Path,
    state,
    raters: Collection[str] | None = None,
    without_held_out: bool = False,
    batch_size: int = 64,
) -> RatedImages:
    """Read an export folder and look at its images.

    Args:
        export_dir: Of ``rate_images.py export``.
        networks: To look with.
        cache_dir: Where image features are kept.
        state: ``PartialState``; all processes call this and share the work.
        raters: Use their answers alone; None: all.
        without_held_out: See `read_ratings`.
        batch_size: Images at once on a GPU.

    Raises:
        UserError: If there is too little, or something unknown; see `read_ratings`.
    """
    dataset, ratings = read_ratings(export_dir, raters=raters, without_held_out=without_held_out)
    options = {"cache_dir": cache_dir, "state": state, "batch_size": batch_size}
    inputs = reward_inputs(dataset, networks, **options)
    groups, by_text = image_groups(ratings, [record.text for record in dataset])
    return RatedImages(dataset, inputs, ratings, groups, by_text)


def train_reward(rated: RatedImages, networks: RewardNetworks, *, seed: int = 0) -> RewardModel:
    """Fit a reward to all that was said; the same input gives the same bytes on a CPU.

    Args:
        rated: Of `load_rated`.
        networks: The same as there.
        seed: Of the folds that choose the penalty.
    """
    ratings = rated.ratings
    fit = fit_reward(rated.inputs, ratings, rated.groups, seed=seed)
    config = RewardConfig(
        questions=ratings.questions,
        raters=ratings.raters,
        networks=networks.facts,
        l2=fit.l2,
        num_images=int(ratings.judged().sum()),
        num_ratings=len(ratings.level),
        num_comparisons=len(ratings.win),
        seed=seed,
    )
    return RewardModel(config, fit, networks)


def evaluate_reward(
    rated: RatedImages, *, seed: int = 0, progress: Callable[[int], object] | None = None
) -> RewardReport:
    """What rewards learnt in this way are worth on held-out images and raters.

    Args:
        rated: Of `load_rated`.
        seed: Of folds and resampling.
        progress: Called with 1 after each of the `utils.reward_holdout.num_rewards` fits.
    """
    found = predict_held_out(
        rated.inputs, rated.ratings, rated.groups, seed=seed, progress=progress
    )
    return report_held_out(found, rated.groups, by_text=rated.by_text, seed=seed)
