"""Flags of ``train_text_to_image.py`` that do not go together, with the disk or what is installed.

Found before anything heavy is imported.
"""

import argparse
import importlib.util
from pathlib import Path

from utils.checkpoints import find_checkpoint, list_checkpoints
from utils.cli import UserError
from utils.latent_cache_flags import cache_contradictions
from utils.preference_flags import preference_contradictions, trains_on_images
from utils.rehearsal_flags import rehearsal_contradictions
from utils.training_flag_values import TRACKERS
from utils.weight_flags import weight_contradictions


def contradictions(args: argparse.Namespace) -> list[str]:
    """What is wrong with the flags taken together, each with the flag's name."""
    sources = [source for source in (args.train_data_dir, args.dataset_name) if source is not None]
    needs_images = trains_on_images(args) or args.validation_split is not None
    rules = (
        (
            len(sources) > 1 or (needs_images and not sources),
            "give either --train_data_dir or --dataset_name",
        ),
        (
            args.flip_swaps_sides and not args.random_flip,
            "--flip_swaps_sides: without --random_flip nothing is mirrored",
        ),
        *weight_contradictions(args),
        *cache_contradictions(args),
        *preference_contradictions(args),
        *rehearsal_contradictions(args),
        (
            args.rescale_betas_zero_snr and args.prediction_type == "epsilon",
            "--rescale_betas_zero_snr needs --prediction_type v_prediction",
        ),
        (
            args.dream_training and args.prediction_type == "v_prediction",
            "--dream_training is defined for --prediction_type epsilon only",
        ),
        (
            args.validation_split is not None
            and args.train_split in ("all", args.validation_split),
            "--validation_split: these rows are in --train_split too",
        ),
        (
            args.validation_split is None
            and (args.validation_loss_steps or args.early_stopping_patience) is not None,
            "--validation_loss_steps and --early_stopping_patience need --validation_split",
        ),
        (
            args.text_encoder_name_or_path is not None and args.non_ema_revision is not None,
            "--text_encoder_name_or_path: the U-Net of --non_ema_revision is made for another",
        ),
        (args.push_to_hub and args.offline, "--push_to_hub: --offline forbids it"),
        (
            args.push_to_hub and not args.hub_model_id,
            "--push_to_hub: name the repository with --hub_model_id",
        ),
    )
    return [message for is_wrong, message in rules if is_wrong]


def missing_packages(args: argparse.Namespace) -> list[str]:
    """Flags that need a package that is not installed, with the pip command."""
    xformers = args.enable_xformers_memory_efficient_attention
    needed = {
        "--train lora": ("peft",) if args.train == "lora" else (),
        "--use_8bit_adam": ("bitsandbytes",) if args.use_8bit_adam else (),
        "--enable_xformers_memory_efficient_attention": ("xformers",) if xformers else (),
        f"--report_to {args.report_to}": TRACKERS[args.report_to],
    }
    return [
        f"{flag} needs the package {package}: pip install {package}"
        for flag, packages in needed.items()
        for package in packages
        if importlib.util.find_spec(package) is None
    ]


def conflicts_on_disk(args: argparse.Namespace) -> list[str]:
    """What stands in the way in --output_dir, or is missing there."""
    output_dir: Path = args.output_dir
    if output_dir.exists() and not output_dir.is_dir():
        return [f"--output_dir {output_dir} is a file"]
    if output_dir.resolve() == Path(args.pretrained_model_name_or_path).resolve():
        return ["--output_dir would overwrite --pretrained_model_name_or_path"]
    if args.cache_only:
        return []
    if args.resume_from_checkpoint is None and list_checkpoints(output_dir):
        return [
            f"--output_dir {output_dir} has checkpoints of an earlier run: go on with "
            "--resume_from_checkpoint latest, or delete them, or take another folder"
        ]
    if args.resume_from_checkpoint is not None:
        try:
            find_checkpoint(output_dir, args.resume_from_checkpoint)
        except UserError as error:
            return [f"--resume_from_checkpoint: {error}"]
    return []
