"""Flags of a masked autoencoder's pre-training; nothing heavy is imported here."""

from __future__ import annotations

import argparse

from utils import cli
from utils.backbone_names import HEAD_WIDTH

DECODER_HEAD_WIDTH = 32  # of the paper's decoder: 512 wide, 16 heads
BASE_RATE = 1.5e-4  # of AdamW for 256 images a step (He et al. 2022, table 8)
BASE_BATCH = 256
# The paper's rate is for ViT-L and 800 epochs; small encoders in few steps learn with ten times it.
SMALL_WIDTH, SMALL_RATE = 384, 1.5e-3
# Of classifiers: from scratch; fine-tuned, small encoders and others (RETFound's 5e-3 for 256).
SCRATCH_RATE, FINE_TUNING_RATE, LARGE_FINE_TUNING_RATE = 1e-3, 3e-3, 3e-4
SCRATCH, PROBE, FINE_TUNED = "scratch", "mae->probe", "mae->fine-tune"
ARMS = (SCRATCH, PROBE, FINE_TUNED)
SOURCES = ("real", "synthetic", "real+synthetic")


def add_data_flags(group: argparse._ArgumentGroup) -> None:
    """More images to learn from, without labels."""
    for name, meaning in (
        ("unlabeled_dir", "more real images to pre-train on; labels are not looked at"),
        ("synthetic_dir", "synthetic images to pre-train on"),
    ):
        group.add_argument(f"--{name}", type=cli.data_source, metavar="SOURCE", help=meaning)
    group.add_argument(
        "--pretrain_on",
        choices=SOURCES,
        default="real",
        help="images to pre-train on; of --real_dir its training split (default: %(default)s)",
    )


def add_model_flags(group: argparse._ArgumentGroup) -> None:
    """Sizes of the autoencoder."""
    for name, default, meaning in (
        ("mae_width", 192, f"width of the encoder, a multiple of {HEAD_WIDTH}"),
        ("mae_depth", 6, "blocks of the encoder"),
        ("patch_size", 16, "side of a patch in px, which must divide --resolution"),
        ("decoder_width", 96, f"width of the decoder, a multiple of {DECODER_HEAD_WIDTH}"),
        ("decoder_depth", 2, "blocks of the decoder"),
    ):
        group.add_argument(
            f"--{name}",
            type=cli.positive_int,
            default=default,
            help=f"{meaning} (default: %(default)s)",
        )
    group.add_argument(
        "--mask_ratio",
        type=cli.probability,
        default=0.75,
        help="share of the patches that the encoder does not see (default: %(default)s)",
    )
    group.add_argument(
        "--no_norm_pix_loss",
        dest="norm_pix_loss",
        action="store_false",
        help="let the decoder tell gray values, not a patch's relative to its mean and deviation "
        "(default: relative, which the paper finds better)",
    )


def add_training_flags(group: argparse._ArgumentGroup) -> None:
    """Steps, rates and intervals of the pre-training."""
    group.add_argument(
        "--pretrain_steps",
        type=cli.positive_int,
        default=2000,
        help="steps (default: %(default)s)",
    )
    group.add_argument(
        "--pretrain_batch_size",
        type=cli.positive_int,
        default=64,
        help="images of a step over all processes, whose number must divide it "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--pretrain_learning_rate",
        type=cli.positive_float,
        help="peak rate of AdamW (default: "
        f"{BASE_RATE} x --pretrain_batch_size / {BASE_BATCH}, as in the paper; {SMALL_RATE} up to "
        f"a --mae_width of {SMALL_WIDTH})",
    )
    group.add_argument(
        "--pretrain_weight_decay",
        type=cli.non_negative_float,
        default=0.05,
        help="weight decay of AdamW (default: %(default)s)",
    )
    group.add_argument(
        "--checkpointing_steps",
        type=cli.positive_int,
        default=500,
        help="steps from one checkpoint to the next (default: %(default)s)",
    )
    group.add_argument(
        "--validation_steps",
        type=cli.positive_int,
        default=250,
        help="steps from one measurement of the loss on held-out patients to the next "
        "(default: %(default)s)",
    )


def add_arms(group: argparse._ArgumentGroup) -> None:
    """What classifiers are trained, to measure what the encoder is worth."""
    group.add_argument(
        "--arms",
        choices=ARMS,
        nargs="*",
        default=list(ARMS),
        metavar="ARM",
        help=f"any of {', '.join(ARMS)}, quoted; --arms alone pre-trains only (default: all)",
    )


def arm_rates(args: argparse.Namespace) -> dict[str, float]:
    """Peak learning rate of each arm's classifiers: the flag, else the default of the arm."""
    fine = FINE_TUNING_RATE if args.mae_width <= SMALL_WIDTH else LARGE_FINE_TUNING_RATE
    rates = {SCRATCH: SCRATCH_RATE, PROBE: 0.0, FINE_TUNED: fine}
    return {arm: args.learning_rate or rates[arm] for arm in args.arms}


def peak_rate(args: argparse.Namespace) -> float:
    """AdamW's peak rate: the flag, else the default."""
    if args.pretrain_learning_rate is not None:
        return args.pretrain_learning_rate
    if args.mae_width <= SMALL_WIDTH:
        return SMALL_RATE
    return BASE_RATE * args.pretrain_batch_size / BASE_BATCH


def contradiction(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags of the pre-training, in words; None if nothing is."""
    num_patches = (args.resolution // args.patch_size) ** 2
    num_seen = int(num_patches * (1 - args.mask_ratio))
    with_synthetic = "synthetic" in args.pretrain_on
    problems = {
        f"--mae_width {args.mae_width} is not a multiple of {HEAD_WIDTH}": args.mae_width
        % HEAD_WIDTH,
        f"--decoder_width {args.decoder_width} is not a multiple of {DECODER_HEAD_WIDTH}": (
            args.decoder_width % DECODER_HEAD_WIDTH
        ),
        f"--patch_size {args.patch_size} does not divide --resolution {args.resolution}": (
            args.resolution % args.patch_size
        ),
        f"--mask_ratio {args.mask_ratio} of {num_patches} patches leaves none to see or to tell": (
            not 1 <= num_seen < num_patches
        ),
        f"--pretrain_on {args.pretrain_on} needs --synthetic_dir": (
            with_synthetic and args.synthetic_dir is None
        ),
        "--synthetic_dir is not used: --pretrain_on synthetic or real+synthetic": (
            not with_synthetic and args.synthetic_dir is not None
        ),
        "--unlabeled_dir holds real images: --pretrain_on real or real+synthetic": (
            args.unlabeled_dir is not None and "real" not in args.pretrain_on
        ),
        "--resize_mode random_crop: choose center_crop, pad or stretch": (
            args.resize_mode == "random_crop"
        ),
    }
    return next((words for words, wrong in problems.items() if wrong), None)
