"""Flags of the scripts that train diagnosis classifiers; nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from utils import cli
from utils.backbone_names import SMALL, VIT, WEIGHT_SUFFIXES, is_backbone

MIN_RESOLUTION = 32
MIN_SHARE = 0.01  # percent


def share(text: str) -> float:
    """Flag type: a share in percent, above 0 and at most 100."""
    value = cli.non_negative_float(text)
    if not MIN_SHARE <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not between {MIN_SHARE:g} and 100 percent")
    return value


def backbone(text: str) -> str:
    """Flag type: ``small``, a torchvision model, ``vit`` or ``vit-WIDTH-DEPTH-PATCH``."""
    try:
        known = is_backbone(text)
    except cli.UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not known:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {SMALL!r} nor {VIT!r} nor a classification model of torchvision, "
            "such as resnet18, resnet50, efficientnet_b0 or convnext_tiny"
        )
    return text


def add_real_data_flags(group: argparse._ArgumentGroup) -> None:
    """The labelled real images, and how they are read."""
    columns = {"image": "the file", "label": "diagnoses", "patient": "patient"}
    add_source_flags(group, what="labels", columns=columns, required=True)
    group.add_argument(
        "--task",
        choices=("auto", "multiclass", "multilabel"),
        default="auto",
        help="auto is multilabel if an image has several labels (default: %(default)s)",
    )


def add_source_flags(
    group: argparse._ArgumentGroup, *, what: str, columns: Mapping[str, str], required: bool
) -> None:
    """Where real images come from, and how their table is read.

    Args:
        group: Where to add them.
        what: What the images have to have, in words.
        columns: What can be called otherwise -> what it is, in words.
        required: Whether --real_dir is.
    """
    group.add_argument(
        "--real_dir",
        type=cli.data_source,
        required=required,
        metavar="SOURCE",
        help=f"real images with {what}: dataset folder, class folders, CSV, shards or hub name",
    )
    group.add_argument(
        "--test_dir",
        type=cli.data_source,
        metavar="SOURCE",
        help="test set of its own, patients not in --real_dir (default: split test of --real_dir)",
    )
    for name, meaning in columns.items():
        group.add_argument(
            f"--{name}_column", help=f"column of {meaning}, where it has not its usual name"
        )
    group.add_argument(
        "--by_image",
        action="store_true",
        help="where a split has to be made: an image without patient_id is its own patient",
    )
    group.add_argument(
        "--skip_invalid", action="store_true", help="drop rows with a problem instead of stopping"
    )


def add_sweep_flags(group: argparse._ArgumentGroup, *, whom: str = "the labelled patients") -> None:
    """How many runs, on which shares of the labels, or of other patients than labelled ones."""
    group.add_argument(
        "--label_shares",
        type=share,
        nargs="+",
        default=[100.0],
        metavar="PERCENT",
        help=f"share of {whom} to learn from, in train and in val: nested parts, the same for "
        "every arm (default: 100)",
    )
    group.add_argument(
        "--num_seeds",
        type=cli.positive_int,
        default=1,
        metavar="K",
        help="repetitions, with --seed, --seed + 1, ...: other label subsets, weights and orders; "
        "3 or more tell chance from gain (default: %(default)s)",
    )


def add_network_flags(group: argparse._ArgumentGroup) -> None:
    """Network and what it starts from."""
    group.add_argument(
        "--backbone",
        type=backbone,
        default=SMALL,
        help="small (0.7 M parameters, for the CPU), a classification model of torchvision such as "
        "resnet18, resnet50, efficientnet_b0, convnext_tiny, or a vision transformer: vit in the "
        "sizes of --backbone_weights, vit-WIDTH-DEPTH-PATCH from random weights (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--backbone_weights",
        default="none",
        metavar="none|PATH|NAME",
        help="what the backbone starts from: none (random), a .safetensors or .pth file (of "
        "torchvision, timm, MAE, RETFound or self_supervised.py), or a weight name of torchvision "
        "such as IMAGENET1K_V1, which is downloaded (default: %(default)s)",
    )


def add_input_flags(group: argparse._ArgumentGroup) -> None:
    """How an image gets into the network."""
    group.add_argument(
        "--resolution",
        type=cli.resolution,
        default=224,
        help=f"side of the network's input in px, at least {MIN_RESOLUTION} (default: %(default)s)",
    )
    group.add_argument(
        "--resize_mode",
        choices=("center_crop", "random_crop", "pad", "stretch"),
        default="center_crop",
        help="how an image becomes a square; random_crop is central after training "
        "(default: %(default)s)",
    )


def add_training_flags(group: argparse._ArgumentGroup, *, rates: str) -> None:
    """Length and rate of the training.

    Args:
        group: Where to add them.
        rates: What the default of --learning_rate is, in words.
    """
    cli.add_runtime_flags(group, "batch_size", batch_size=32)
    group.add_argument(
        "--max_epochs",
        type=cli.positive_int,
        default=40,
        help="epochs, at most; an epoch of any run is as long as one pass over all real training "
        "images (default: %(default)s)",
    )
    group.add_argument(
        "--max_train_steps",
        type=cli.positive_int,
        help="steps, at most (default: as --max_epochs says)",
    )
    group.add_argument(
        "--learning_rate", type=cli.positive_float, help=f"peak rate of AdamW (default: {rates})"
    )
    group.add_argument(
        "--weight_decay",
        type=cli.non_negative_float,
        default=0.05,
        help="weight decay of AdamW (default: %(default)s)",
    )


def add_regularising_flags(group: argparse._ArgumentGroup) -> None:
    """What keeps the training of a classifier from overfitting."""
    group.add_argument(
        "--layer_decay",
        type=cli.probability,
        default=1.0,
        help="learning rate of a vision transformer's layer over that of the one above; RETFound's "
        "recipe has 0.65 (default: %(default)s)",
    )
    group.add_argument(
        "--drop_path",
        type=cli.probability,
        default=0.0,
        help="rate at which a vision transformer's last block is skipped in training; RETFound's "
        "recipe has 0.2 (default: %(default)s)",
    )
    group.add_argument(
        "--class_balance",
        choices=("loss", "none"),
        default="loss",
        help="loss weighs a diagnosis by its rarity, up to tenfold (default: %(default)s)",
    )
    group.add_argument(
        "--random_flip",
        action="store_true",
        help="mirror left-right at random; off by default, because the side matters",
    )
    add_smoothing_flags(group)


def add_smoothing_flags(group: argparse._ArgumentGroup) -> None:
    """What keeps any training from overfitting: smoothed, averaged, varied, ended in time."""
    group.add_argument(
        "--label_smoothing",
        type=cli.probability,
        default=0.0,
        help="share of the target spread over all labels where one is right (default: %(default)s)",
    )
    group.add_argument(
        "--augment",
        choices=("standard", "none"),
        default="standard",
        help="standard turns, shifts, scales, smooths, regrades and adds noise; a gate for "
        "synthetic images needs it (default: %(default)s)",
    )
    group.add_argument(
        "--ema_decay",
        type=cli.probability,
        default=0.99,
        help="moving average of the weights; 0: none (default: %(default)s)",
    )
    group.add_argument(
        "--early_stopping_patience",
        type=cli.non_negative_int,
        default=10,
        help="epochs without a lower validation loss before the end; 0: never (default: "
        "%(default)s)",
    )


def add_run_flags(group: argparse._ArgumentGroup) -> None:
    """Where and how it runs."""
    cli.add_runtime_flags(
        group, "output_dir", "seed", "device", "mixed_precision", "num_workers", "offline"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace an earlier run in --output_dir"
    )
    group.add_argument(
        "--num_resamples",
        type=cli.positive_int,
        default=1000,
        help="bootstrap draws of patients for the intervals, at least 2 (default: %(default)s)",
    )


def check_sweep(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags of input and training of any sweep; None if nothing is."""
    for name in ("arms", "label_shares"):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            return f"--{name} names a value twice"
    if args.resolution < MIN_RESOLUTION:
        return f"--resolution {args.resolution} is below {MIN_RESOLUTION}"
    if args.ema_decay == 1:
        return "--ema_decay 1 would keep the random start for ever"
    if args.num_resamples < 2:
        return "--num_resamples 1: no interval comes of one draw"
    return None


def check_training(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags of input and training; None if nothing is."""
    if args.batch_size < 2:
        return "--batch_size 1: batch normalisation needs at least two images"
    return check_sweep(args)


def check_backbone(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags of the backbone; None if nothing is."""
    weights = args.backbone_weights
    if weights.endswith(WEIGHT_SUFFIXES) and not Path(weights).is_file():
        return f"--backbone_weights {weights}: no such file"
    if weights != "none" and args.backbone == SMALL and not Path(weights).is_file():
        return f"--backbone_weights {weights}: no such file; small has no published weights"
    if args.backbone == VIT and weights == "none":
        return f"--backbone {VIT} takes its sizes from --backbone_weights: name a file there"
    is_vit = args.backbone.startswith(VIT)
    if not is_vit and (args.layer_decay != 1 or args.drop_path != 0):
        return "--layer_decay and --drop_path are for vision transformers (--backbone vit...)"
    return None
