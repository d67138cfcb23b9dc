"""Flags of self_improve.py that one mode reads; nothing heavy is imported here."""

from __future__ import annotations

import argparse

from utils import cli, report_flags
from utils.improve_flags import share

METHODS = ("reward_weighted", "dpo")


def add_unlabeled_flags(group: argparse._ArgumentGroup) -> None:
    """Mode unlabeled."""
    group.add_argument(
        "--min_confidence",
        type=report_flags.log_probability,
        metavar="LOGPROB",
        help="pseudo-reports from this mean log-probability on are used; the other scans train "
        "without a text (default: as --pseudo_precision needs)",
    )
    group.add_argument(
        "--pseudo_precision",
        type=share,
        default=0.9,
        metavar="P",
        help="use the pseudo-reports that are as sure as those of which this share is right on "
        "the real val scans, with --classifier among those that it bears out (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--max_no_text_share",
        type=cli.probability,
        default=0.2,
        metavar="P",
        help="share of the training weight that scans without text have at most (default: "
        "%(default)s)",
    )


def add_reward_flags(group: argparse._ArgumentGroup) -> None:
    """Mode rlhf."""
    group.add_argument(
        "--ratings",
        type=cli.existing_dir,
        metavar="DIR",
        help="what rate_images.py export wrote",
    )
    group.add_argument(
        "--method",
        choices=METHODS,
        help="reward_weighted: images count by their reward; dpo: the better image of a prompt "
        "is preferred to the worse one, beside the frozen model that the round started from",
    )
    group.add_argument(
        "--images_per_prompt",
        type=cli.positive_int,
        default=4,
        metavar="K",
        help="images of each prompt, to choose from (default: %(default)s)",
    )
    group.add_argument(
        "--reward_temperature",
        type=cli.positive_float,
        default=0.5,
        metavar="T",
        help="reward_weighted: weight exp(reward / T); the reward is a rating from 1 to 5 "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--dpo_beta",
        type=cli.positive_float,
        default=2000.0,
        metavar="BETA",
        help="dpo: how dear it is to leave the frozen model; higher stays nearer where the pairs "
        "are learned (default: %(default)s)",
    )
    group.add_argument(
        "--held_out_raters",
        type=cli.probability,
        default=0.34,
        metavar="P",
        help="share of the raters whose answers only measure the reward, at least one (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--accept_weak_reward",
        action="store_true",
        help="train on a reward of which it is not shown that it foresees any rating",
    )
