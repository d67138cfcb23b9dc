"""What does not go together among the flags of self_improve.py; nothing heavy is imported here."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils import generation_flags, training_flags
from utils.extractor_names import CLASSIFIER_PREFIX
from utils.rating_flags import ANSWERS_NAME

UNET_RATE, LORA_RATE = 1e-5, 1e-4
# What a mode needs beside --model and --real_dir, and what only it reads.
NEEDS = {
    "plain": (),
    "unlabeled": ("unlabeled_dir", "captioner"),
    "synthetic_pairs": ("captioner", "classifier"),
    "rlhf": ("ratings", "classifier", "method"),
}
_ONLY_FOR = {
    "unlabeled_dir": ("unlabeled",),
    "min_confidence": ("unlabeled",),
    "pseudo_precision": ("unlabeled",),
    "max_no_text_share": ("unlabeled",),
    "captioner": ("unlabeled", "synthetic_pairs"),
    "classifier": ("unlabeled", "synthetic_pairs", "rlhf"),
    "num_images": ("synthetic_pairs", "rlhf"),
    "ratings": ("rlhf",),
    "method": ("rlhf",),
    "images_per_prompt": ("rlhf",),
    "reward_temperature": ("rlhf",),
    "dpo_beta": ("rlhf",),
    "held_out_raters": ("rlhf",),
    "accept_weak_reward": ("rlhf",),
    "gate_flags": ("synthetic_pairs", "rlhf"),
    "max_added_share": ("unlabeled", "synthetic_pairs", "rlhf"),
    "without_real": ("unlabeled", "synthetic_pairs", "rlhf"),
}


# Of generate_synthetic_dataset.py: what chooses among drawn images.
_GATE_FLAGS = ("classifier", "train_dir", "real_dir", "reject_duplicates")
# Folders that are read, and never written to.
_SOURCES = (*("model", "real_dir", "unlabeled_dir", "ratings", "judge", "classifier", "captioner"),)


def check(args: argparse.Namespace, get_default) -> str | None:
    """What is wrong with the flags taken together; None if nothing is.

    Args:
        args: The parsed flags.
        get_default: ``parser.get_default``.
    """
    for name in NEEDS[args.mode]:
        if getattr(args, name) is None:
            return f"--mode {args.mode} needs --{name}"
    for name, modes in _ONLY_FOR.items():
        if args.mode not in modes and getattr(args, name) != get_default(name):
            return f"--{name} is for --mode {' or '.join(modes)}, not {args.mode}"
    if not args.judge and not args.feature_extractor:
        return "--judge or --feature_extractor is needed: every round is measured with it"
    if args.judge and args.classifier and args.judge.resolve() == args.classifier.resolve():
        return (
            "--judge is --classifier: what chooses the images cannot measure them; train another "
            "classifier, on other scans and with another seed"
        )
    if args.select_by == "agreement" and not args.judge:
        return "--select_by agreement needs --judge"
    if args.select_by == "held_out_reward" and args.mode != "rlhf":
        return "--select_by held_out_reward is for --mode rlhf"
    if args.mode == "rlhf" and args.images_per_prompt < 2 and args.method == "dpo":
        return "--method dpo needs --images_per_prompt 2 or more"
    if args.ratings and not (args.ratings / ANSWERS_NAME).is_file():
        return f"--ratings {args.ratings}: no {ANSWERS_NAME}: no export of rate_images.py"
    return _overlap(args)


def _overlap(args: argparse.Namespace) -> str | None:
    """Whether the output folder and one that is read lie in each other."""
    folder = args.output_dir.resolve()
    for name in _SOURCES:
        source = Path(getattr(args, name) or "").expanduser().resolve()
        if getattr(args, name) is None or not source.exists():
            continue
        if folder.is_relative_to(source) or source.is_relative_to(folder):
            return (
                f"--output_dir {args.output_dir} and --{name} {source} lie in each other: name a "
                "folder elsewhere"
            )
    return None


def fill_in(args: argparse.Namespace) -> None:
    """Give the flags that were left out what they mean."""
    is_rlhf = args.mode == "rlhf"
    args.output_dir = args.output_dir.resolve()  # the stages' commands have it
    args.train = args.train or ("lora" if is_rlhf else "unet")
    if args.learning_rate is None:
        # Preferences pull harder than images do: at the rate of adapters they ran away (docs).
        gentle = args.train == "unet" or args.method == "dpo"
        args.learning_rate = UNET_RATE if gentle else LORA_RATE
    if args.feature_extractor is None:
        args.feature_extractor = f"{CLASSIFIER_PREFIX}{args.judge}"
    if args.select_by is None:
        chosen = "held_out_reward" if is_rlhf else "fid"
        args.select_by = "agreement" if args.judge and not is_rlhf else chosen


def stage_problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags for stages; None if nothing is."""
    place = ["--output_dir", str(args.output_dir)]
    training = ["--pretrained_model_name_or_path", args.model, *place]
    known = {
        "training_flags": (training_flags.add_flags, training),
        "drawing_flags": (generation_flags.add_all, ["--prompt", "any"]),
        "gate_flags": (generation_flags.add_all, ["--prompt", "any"]),
    }
    for name, (add, needed) in known.items():
        parser = _Quiet(add_help=False, allow_abbrev=False)
        add(parser)
        try:
            found = parser.parse_args([*needed, *getattr(args, name)])
        except ValueError as error:
            return f"--{name}: {error}"
        gates = [f"--{flag}" for flag in _GATE_FLAGS if getattr(found, flag, None)]
        if name == "drawing_flags" and gates:
            return (
                f"--drawing_flags: {', '.join(gates)} would choose the images that measure a "
                "round; give them as --gate_flags"
            )
    return None


class _Quiet(argparse.ArgumentParser):
    """Says what is wrong to its caller."""

    def error(self, message: str):
        raise ValueError(message)
