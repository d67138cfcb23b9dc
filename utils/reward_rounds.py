"""Mode rlhf: a generator learns what doctors rate well, by way of a reward model.

Two rewards are learnt from the ratings: one that training uses, and one from other raters and
another network that only measures. Where the first rises and the second does not, the pictures have
learnt to please the first one.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState

from utils.cli import UserError
from utils.dataset import Dataset, load_dataset
from utils.extractor_names import CLASSIFIER_PREFIX
from utils.improvement import Improvement
from utils.improvement_data import modality_of
from utils.rating_flags import ANSWERS_NAME
from utils.rating_table import read_answers
from utils.reward_evaluation import NOT_SHOWN, RewardReport
from utils.reward_features import RewardNetworks, load_networks
from utils.reward_model import RewardModel
from utils.reward_ratings import is_held_out
from utils.reward_training import RatedImages, evaluate_reward, load_rated, train_reward
from utils.round_material import Material
from utils.round_record import round_dir
from utils.run_folder import FEATURE_CACHE, atomic_folder, get_logger, write_csv
from utils.training_mix import Part, bring_images

_logger = get_logger("improve")
SIDES = ("preferred", "rejected")
PAIR_COLUMNS = ("text", *SIDES, "weight", "modality")


@dataclass(frozen=True)
class Reward:
    """A reward model that looks at data sets.

    Attributes:
        model: The reward.
        rated: What it was learnt from.
        report: What it is worth on images and raters that were held out.
        cache_dir: Where features are kept.
        batch_size: Images at once on a GPU.
    """

    model: RewardModel
    rated: RatedImages
    report: RewardReport
    cache_dir: Path
    batch_size: int

    def __call__(self, dataset: Dataset) -> np.ndarray:
        """Expected rating of each image, (N,) in [1, 5]."""
        options = {"cache_dir": self.cache_dir, "batch_size": self.batch_size}
        return self.model.score(dataset, state=PartialState(), **options)


def learn_rewards(args: argparse.Namespace, device: str) -> dict[str, Reward]:
    """``reward``, which training uses, and ``held_out_reward``, which only measures.

    Args:
        args: Of self_improve.py.
        device: Where the networks run.

    Raises:
        UserError: If there are fewer than two raters, or too few ratings.
    """
    mine, others = divide_raters(args)
    other = f"{CLASSIFIER_PREFIX}{args.judge}" if args.judge else args.feature_extractor
    networks = {
        "reward": (_networks(args, f"{CLASSIFIER_PREFIX}{args.classifier}", device), mine),
        "held_out_reward": (_networks(args, other, device), others),
    }
    options = {
        "cache_dir": args.output_dir.parent / FEATURE_CACHE,
        "batch_size": args.batch_size,
    }
    found = {}
    for name, (each, raters) in networks.items():
        rated = load_rated(
            args.ratings,
            each,
            state=PartialState(),
            raters=raters,
            without_held_out=True,
            **options,
        )
        model = train_reward(rated, each, seed=args.seed)
        model.save(args.output_dir / name)
        report = evaluate_reward(rated, seed=args.seed)
        for warning in report.warnings:
            _logger.warning("%s: %s", name, warning)
        if NOT_SHOWN in report.warnings and not args.accept_weak_reward:
            raise UserError(
                f"--ratings {args.ratings}: the {name.replace('_', ' ')} foresees nothing that is "
                "shown (above): collect more ratings, or train on it all the same with "
                "--accept_weak_reward"
            )
        found[name] = Reward(model, rated, report, **options)
    return found


def divide_raters(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Raters that the reward learns from, and those that only measure; at least one of either.

    Raises:
        UserError: If there are fewer than two.
    """
    path = args.ratings / ANSWERS_NAME
    raters = sorted({answer.rater for answer in read_answers(path)})
    if len(raters) < 2:
        raise UserError(
            f"{path}: {len(raters)} rater; at least two are needed, so that one who had no part in "
            "the reward can tell whether the images are better"
        )
    order = np.random.default_rng(args.seed).permutation(len(raters))
    count = min(max(1, round(args.held_out_raters * len(raters))), len(raters) - 1)
    held_out = sorted(raters[place] for place in order[:count])
    return [rater for rater in raters if rater not in held_out], held_out


def _networks(args: argparse.Namespace, extractor: str, device: str) -> RewardNetworks:
    return load_networks(
        [extractor],
        weights={extractor: args.feature_weights} if args.feature_weights else None,
        rules=args.finding_rules,
        resize_mode=args.resize_mode,
        device=device,
        offline=args.offline,
    )


def gather(work: Improvement, number: int, model: str) -> Material:
    """Draw several images of each prompt and weigh or compare them by their reward.

    Args:
        work: The loop.
        number: Of the round; the images of each have other seeds.
        model: Draws.
    """
    args, name = work.args, round_dir(work.folder, number).name
    folder = work.stages.draw(
        f"{name}/drawn",
        model=model,
        prompts=work.prompts("train"),
        num_images=args.num_images,
        per_prompt=args.images_per_prompt,
        seed=args.seed + number,
        gated=True,
    )
    drawn = load_dataset(folder, check_pixels=False)
    rewards = work.judge.rewards["reward"](drawn)
    found = {"drawn": len(drawn), "mean_reward_of_drawn": float(rewards.mean())}
    if args.method == "reward_weighted":
        weights = reward_weights(rewards, args.reward_temperature)
        found["effective_images"] = float(weights.sum() ** 2 / np.square(weights).sum())
        texts = [record.text for record in drawn]
        return Material([Part("synthetic", drawn.records, texts, weights)], found)
    rows = best_and_worst(drawn, rewards, folder=folder.name)
    found["reward_pairs"] = len(rows)
    if number == 1:
        rated = rated_pairs(args.ratings, divide_raters(args)[0], folder.parent)
        rated = [row | {"modality": work.data.modality} for row in rated]
        found["pairs_of_raters"] = len(rated)
        rows += rated
    if not rows:
        raise UserError(f"{folder}: no prompt has images of different reward to choose from")
    path = folder.parent / "pairs.csv"
    write_csv(path, rows, PAIR_COLUMNS)
    return Material((), found, path)


def reward_weights(rewards: np.ndarray, temperature: float) -> np.ndarray:
    """``exp(reward / T)``, scaled to the mean 1 (N,).

    Weighted maximum likelihood with exponential weights is one step towards the distribution that
    a reward with a penalty on the divergence asks for (Peng et al. 2019,
    https://arxiv.org/abs/1910.00177); for diffusion models Lee et al. 2023
    (https://arxiv.org/abs/2302.12192).
    """
    weights = np.exp((rewards - rewards.max()) / temperature)
    return weights / weights.mean()


def best_and_worst(drawn: Dataset, rewards: np.ndarray, *, folder: str) -> list[dict[str, object]]:
    """Of each prompt the image of highest reward, preferred to that of the lowest.

    Args:
        drawn: N images; those of one text are compared.
        rewards: (N,).
        folder: What file names begin with.
    """
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(drawn):
        groups.setdefault(record.text, []).append(index)
    rows = []
    for text, members in groups.items():
        best, worst = (pick(members, key=rewards.__getitem__) for pick in (max, min))
        if rewards[best] > rewards[worst]:
            names = (f"{folder}/{drawn[place].file_name}" for place in (best, worst))
            modality = modality_of(drawn[members[0]])
            rows.append(dict(zip(PAIR_COLUMNS, (text, *names, 1.0, modality))))
    return rows


def rated_pairs(ratings: Path, raters: Sequence[str], folder: Path) -> list[dict[str, object]]:
    """The pairs that raters judged themselves, their images brought into ``folder``/rated.

    Left out are pairs with a real scan that may be of a held-out patient, and pairs of images that
    were not drawn from one text but have a diagnosis in common.

    Args:
        ratings: Export of rate_images.py.
        raters: Whose pairs to take.
        folder: Of the round.
    """
    images = {record.file_name: record for record in load_dataset(ratings, check_pixels=False)}
    with (ratings / "pairs.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["rater"] in raters
            and all(
                images[row[side]].text == row["text"] and not is_held_out(images[row[side]])
                for side in SIDES
            )
        ]
    target = folder / "rated"
    if rows and not target.exists():
        names = {row[side] for row in rows for side in SIDES}
        records = [images[name] for name in sorted(names)]
        with atomic_folder(target) as temporary:
            bring_images(records, [record.file_name for record in records], temporary)
    return [
        {
            "text": row["text"],
            "preferred": f"rated/{row['preferred']}",
            "rejected": f"rated/{row['rejected']}",
            "weight": row["weight"],
        }
        for row in rows
    ]
