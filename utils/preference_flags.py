"""Flags of learning from preferences, with what does not go together; nothing heavy is imported."""

import argparse

from utils import cli


def add_preference_flags(add) -> None:
    """Add the flags, given a parser's or group's ``add_argument``."""
    add(
        "--preference_pairs",
        type=cli.existing_file,
        metavar="CSV",
        help="also learn from pairs of images by Diffusion-DPO: a CSV with columns text, preferred "
        "and rejected (files relative to its folder), and weight if wished",
    )
    add(
        "--dpo_beta",
        type=cli.non_negative_float,
        default=2000.0,
        metavar="BETA",
        help="how dear it is to leave the starting model, which is the frozen reference; larger "
        "learns more of the pairs a step and saturates sooner; the paper has 2000 to 5000 "
        "(default: %(default)s)",
    )
    add(
        "--denoising_weight",
        type=cli.non_negative_float,
        default=1.0,
        metavar="W",
        help="factor of the usual loss of the images beside that of the pairs; 0 learns from the "
        "pairs alone, then no images are needed (default: %(default)s)",
    )


def trains_on_images(args: argparse.Namespace) -> bool:
    """Whether there is a loss on single images, not on pairs alone."""
    return args.preference_pairs is None or args.denoising_weight > 0


def preference_contradictions(args: argparse.Namespace) -> list[tuple[bool, str]]:
    """Rules as (is it broken, what is wrong) on flags taken together."""
    has_pairs = args.preference_pairs is not None
    alone = not trains_on_images(args)
    only_for_images = [
        flag
        for flag in ("weight_column", "allow_empty_captions", "snr_gamma", "max_train_samples")
        if alone and getattr(args, flag)
    ]
    return [
        (
            not has_pairs and args.denoising_weight != 1,
            "--denoising_weight needs --preference_pairs",
        ),
        (not has_pairs and args.dpo_beta != 2000, "--dpo_beta needs --preference_pairs"),
        (
            has_pairs and args.train == "unet+text_encoder",
            "--preference_pairs: the text encoder cannot be trained with them, for the reference "
            "has its own; use --train lora or --train unet",
        ),
        (
            has_pairs and args.dream_training,
            "--preference_pairs: --dream_training would give the images of a pair other targets",
        ),
        (
            has_pairs and args.cache_crops is not None,
            "--preference_pairs: --cache_crops crops each image by its own pixels, the two of a "
            "pair differently; use --center_crop or --resize_mode pad",
        ),
        (
            bool(only_for_images),
            f"--{(only_for_images or [''])[0]}: with --denoising_weight 0 no image is trained on",
        ),
    ]
