"""Flags of semi_supervised.py's arms; nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from utils import arms as kinds
from utils import cli

UNLABELED_METHODS = ("fixmatch", "pseudo_label")
# Flags that only arms with unlabeled images read, and what they are where nothing is said.
UNLABELED_DEFAULTS = {
    "unlabeled_method": UNLABELED_METHODS[0],
    "pseudo_threshold": 0.95,
    "distribution_alignment": "on",
    "unlabeled_ratio": 3,
    "unlabeled_weight": 1.0,
}


def add_arms(
    group: argparse._ArgumentGroup, *, arms: Sequence[str] = kinds.ARMS, what: str = "labels"
) -> None:
    """The arms, and the synthetic images of those that use them.

    Args:
        group: Where to add them.
        arms: Those that can be chosen.
        what: What the synthetic images have to have, in words.
    """

    def arm(text: str) -> str:
        if text not in arms:
            quoted = ""
            if text.endswith("-"):  # the shell has taken ">real" for a file to write to
                quoted = f"; quote it in the shell: '{kinds.PRETRAINED}'"
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(arms)}{quoted}")
        return text

    group.add_argument(
        "--arms",
        type=arm,
        nargs="+",
        default=[kinds.REAL],
        metavar="ARM",
        help=f"any of {', '.join(arms)}; quote the one with '>' (default: real)",
    )
    group.add_argument(
        "--synthetic_dir",
        type=cli.data_source,
        metavar="SOURCE",
        help=f"synthetic images with {what}, for arms with synthetic",
    )
    group.add_argument(
        "--synthetic_ratios",
        type=cli.non_negative_float,
        nargs="+",
        metavar="PERCENT",
        help="synthetic images in percent of all real training images, whatever the label share "
        "(default: all that --synthetic_dir has)",
    )


def add_all(group: argparse._ArgumentGroup) -> None:
    """What classifiers are trained on, beside the labelled real images."""
    add_arms(group)
    group.add_argument(
        "--unlabeled_dir",
        type=cli.data_source,
        metavar="SOURCE",
        help="more images without labels, for arms with unlabeled, beside the real training "
        "images, whose labels are hidden (default: those alone)",
    )
    group.add_argument(
        "--unlabeled_method",
        choices=UNLABELED_METHODS,
        help=f"how to learn from unlabeled images (default: {UNLABELED_METHODS[0]})",
    )
    group.add_argument(
        "--pseudo_threshold",
        type=cli.probability,
        help="probability from which a prediction is taken for a label (default: 0.95)",
    )
    group.add_argument(
        "--distribution_alignment",
        choices=("on", "off"),
        help="draw pseudo-labels towards the shares that the labels have in the labelled images; "
        "off where unlabeled images have another mixture (default: on; never for several labels)",
    )
    group.add_argument(
        "--unlabeled_ratio",
        type=cli.positive_int,
        help="unlabeled images per labelled one in a step (default: 3)",
    )
    group.add_argument(
        "--unlabeled_weight",
        type=cli.non_negative_float,
        help="weight of their loss (default: 1)",
    )
    group.add_argument(
        "--plan",
        action="store_true",
        help="print the number of runs and how long they take on this machine, and end",
    )
    group.add_argument(
        "--freeze_backbone",
        action="store_true",
        help="train the last layer alone (linear probe): the features are made once for all runs, "
        "and the flags of training but --class_balance do nothing",
    )


def check_synthetic(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags of ``add_arms``; None if nothing is."""
    ratios = args.synthetic_ratios or []
    if len(set(ratios)) < len(ratios):
        return "--synthetic_ratios names a value twice"
    synthetic = [name for name in args.arms if kinds.uses_synthetic(name)]
    if synthetic and not args.synthetic_dir:
        return f"--arms {synthetic[0]} needs --synthetic_dir"
    for flag in ("synthetic_dir", "synthetic_ratios"):
        if getattr(args, flag) and not synthetic:
            return f"--{flag} goes with an arm that uses synthetic images"
    if args.synthetic_ratios and not any(args.synthetic_ratios):
        return "--synthetic_ratios 0 alone leaves no synthetic image: that is the arm real"
    return None


def check(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags of the arms; None if nothing is."""
    if problem := check_synthetic(args):
        return problem
    given = [n for n in ("unlabeled_dir", *UNLABELED_DEFAULTS) if getattr(args, n) is not None]
    if given and not any(map(kinds.uses_unlabeled, args.arms)):
        return f"--{given[0]} goes with an arm that uses unlabeled images"
    if args.freeze_backbone and args.backbone_weights == "none":
        return "--freeze_backbone needs --backbone_weights: random features tell little"
    trained = [a for a in args.arms if a == kinds.PRETRAINED or kinds.uses_unlabeled(a)]
    if args.freeze_backbone and trained:
        return f"--arms {trained[0]} trains the whole network, which --freeze_backbone forbids"
    if args.pseudo_threshold is not None and not args.pseudo_threshold > 0.5:
        return f"--pseudo_threshold {args.pseudo_threshold:g} is not above 0.5"
    return None


def fill_defaults(args: argparse.Namespace) -> None:
    """Give the flags of unlabeled images their defaults, once ``check`` has seen what was said."""
    for name, value in UNLABELED_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
