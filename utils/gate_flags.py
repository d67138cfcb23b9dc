"""Flags of generation's quality gate, and what does not go together; nothing heavy imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from utils import cli
from utils.gate_thresholds import parse_accept_prob, positive_probability

SPLITS = ("train", "val", "test")
RESIZE_MODES = ("center_crop", "pad", "stretch")  # of training's modes those that draw nothing
ACCEPT_PROB = 0.35  # as the first release of OCT-SD filtered
MAX_ATTEMPTS = 4


def add_gate_flags(parser: argparse.ArgumentParser) -> None:
    """Which images are kept."""
    group = parser.add_argument_group(
        "quality gate (a rejected image is drawn anew; one flat colour is always rejected)"
    )
    group.add_argument(
        "--classifier",
        type=cli.existing_dir,
        metavar="DIR",
        help="diagnosis classifier (semi_supervised.py writes one): an image is kept if the "
        "probability of its own label, of each if it has several, reaches --accept_prob",
    )
    group.add_argument(
        "--accept_prob",
        type=parse_accept_prob,
        metavar="P|FILE.json",
        help="least probability, or a file with one for each label, "
        f'{{"drusen": 0.5, "default": 0.35}} (default: {ACCEPT_PROB})',
    )
    group.add_argument(
        "--accept_precision",
        type=positive_probability,
        metavar="P",
        help="in place of --accept_prob: for each label the threshold that most real images with "
        "it pass while at least this share of all that pass has it, measured on --real_dir",
    )
    group.add_argument(
        "--min_contrast",
        type=cli.positive_float,
        metavar="LEVELS",
        help="least standard deviation of the grey levels, 0 to 127 (default: no such gate)",
    )
    group.add_argument(
        "--reject_duplicates",
        action="store_true",
        help="reject what looks like an image that the set already holds, mirrored or not",
    )
    group.add_argument(
        "--max_attempts",
        type=cli.positive_int,
        default=MAX_ATTEMPTS,
        metavar="N",
        help="attempts at an image before it is recorded as failed (default: %(default)s)",
    )
    group.add_argument(
        "--keep_rejected", action="store_true", help="write rejected images to rejected/"
    )
    add_real_flags(parser)


def add_real_flags(parser: argparse.ArgumentParser) -> None:
    """Real images that the gate measures with."""
    group = parser.add_argument_group("real images for the gate")
    group.add_argument(
        "--train_dir",
        type=cli.data_source,
        metavar="DATASET",
        help="the images that the model was trained on (of splits: train): reject copies of them, "
        "which are nearer to one of them than 95 %% of --real_dir are",
    )
    group.add_argument(
        "--real_dir",
        type=cli.data_source,
        metavar="DATASET",
        help="real images with labels that the model was not trained on, for --accept_precision "
        "and --train_dir",
    )
    group.add_argument(
        "--real_split",
        choices=SPLITS,
        help="split of --real_dir to take, if it has splits (default: val)",
    )
    group.add_argument(
        "--resize_mode",
        choices=RESIZE_MODES,
        default="center_crop",
        help="how the images of --train_dir and --real_dir become squares, for the comparison with "
        "copies; as in the model's training (default: %(default)s)",
    )


def problems(args: argparse.Namespace) -> Sequence[str]:
    """What does not go together."""
    found = []
    for name in ("accept_prob", "accept_precision"):
        if getattr(args, name) is not None and not args.classifier:
            found.append(f"--{name} goes with --classifier")
    if args.accept_prob is not None and args.accept_precision is not None:
        found.append("--accept_prob or --accept_precision, not both")
    if args.accept_precision is not None and not args.real_dir:
        found.append("--accept_precision is measured on real images: --real_dir")
    if args.train_dir and not args.real_dir:
        found.append(
            "--train_dir needs --real_dir too: how near real images that the model has not seen are"
        )
    if args.real_dir and args.accept_precision is None and not args.train_dir:
        found.append("--real_dir goes with --accept_precision or --train_dir")
    if args.real_split and not args.real_dir:
        found.append("--real_split goes with --real_dir")
    return found
