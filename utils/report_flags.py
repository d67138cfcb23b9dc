"""Flags of report_generation.py; nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from utils import arm_flags, cli, diagnosis_flags
from utils import arms as kinds

ARMS = (kinds.REAL, kinds.SYNTHETIC, kinds.MIXED, kinds.PRETRAINED)
SMALL = "small"
RULES = ("oct", "cxr")
MIN_TOKENS, MAX_TOKENS = 8, 128

# Flags that only training reads, or only --caption_dir; given to the other they are refused.
_TRAINING = (
    *("test_dir", "by_image", "caption_column", "arms", "synthetic_dir", "synthetic_ratios"),
    *("label_shares", "num_seeds", "max_epochs", "max_train_steps", "learning_rate"),
    *("weight_decay", "label_smoothing", "augment", "ema_decay", "early_stopping_patience"),
    *("encoder", "decoder", "resolution", "resize_mode", "finding_rules", "wordnet_dir"),
    *("bert_score_model", "bert_score_layer", "num_resamples", "checkpointing_steps"),
)
_CAPTIONING = ("min_confidence",)


def log_probability(text: str) -> float:
    """Flag type: a mean log-probability, 0 or less."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not float("-inf") < value <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no mean log-probability: 0 or less, such as -0.5"
        )
    return value


def add_data_flags(group: argparse._ArgumentGroup) -> None:
    """Real scans with their reports."""
    columns = {"image": "the file", "caption": "reports", "patient": "patient"}
    diagnosis_flags.add_source_flags(group, what="reports", columns=columns, required=False)


def add_arm_flags(group: argparse._ArgumentGroup) -> None:
    """What report models are trained on."""
    arm_flags.add_arms(group, arms=ARMS, what="reports")
    diagnosis_flags.add_sweep_flags(group, whom="the patients with reports")


def add_caption_flags(group: argparse._ArgumentGroup) -> None:
    """Writing reports for scans that have none."""
    group.add_argument(
        "--caption_dir",
        type=cli.data_source,
        metavar="SOURCE",
        help="scans without reports: write one for each with --model, into a new data set",
    )
    group.add_argument(
        "--min_confidence",
        type=log_probability,
        metavar="LOGPROB",
        help="keep reports whose mean log-probability of a word piece is at least this, 0 or less "
        "(default: keep all)",
    )


def add_model_flags(group: argparse._ArgumentGroup) -> None:
    """The network."""
    group.add_argument(
        "--encoder",
        default=SMALL,
        metavar="small|PATH|NAME",
        help="small (0.7 M weights, from scratch, for the CPU), or a vision transformer (ViT, "
        "DeiT, DINOv2, Swin, CLIP's, BEiT) by folder or hub name; mae/ or encoder.safetensors of "
        "self_supervised.py too (default: %(default)s)",
    )
    group.add_argument(
        "--decoder",
        default=SMALL,
        metavar="small|PATH|NAME",
        help="small (from scratch, with a tokenizer made from the reports), or a model of the "
        "GPT-2 or BERT family by folder or hub name (default: %(default)s)",
    )
    group.add_argument(
        "--model",
        default="",
        metavar="PATH|NAME",
        help="a whole report model, vision encoder-decoder or BLIP: to be fine-tuned in place of "
        "--encoder and --decoder, or to write with in --caption_dir",
    )
    group.add_argument(
        "--max_tokens",
        type=cli.positive_int,
        help="longest report in word pieces, first and last mark included; in training, what is "
        f"longer is cut and counted (default: {MAX_TOKENS}; with --caption_dir, what --model was "
        "trained for)",
    )
    diagnosis_flags.add_input_flags(group)


def add_decoding_flags(group: argparse._ArgumentGroup) -> None:
    """How a report is searched for."""
    group.add_argument(
        "--num_beams",
        type=cli.positive_int,
        default=3,
        help="beams; 1 takes the likeliest word piece every time (default: %(default)s)",
    )
    group.add_argument(
        "--length_penalty",
        type=float,
        default=1.0,
        help="exponent of the length in a beam's score; more favours longer reports "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--no_repeat_ngram_size",
        type=cli.non_negative_int,
        default=0,
        help="word pieces in a row that may not come twice; 0: any may (default: %(default)s)",
    )


def add_score_flags(group: argparse._ArgumentGroup) -> None:
    """What reports are scored by."""
    group.add_argument(
        "--finding_rules",
        default=RULES[0],
        metavar="oct|cxr|FILE",
        help="rules that find findings in a report: those for macular OCT, CheXpert's 14 for chest "
        "X-ray, or a YAML file of your own (default: %(default)s)",
    )
    group.add_argument(
        "--wordnet_dir",
        type=cli.existing_path,
        metavar="PATH",
        help="nltk's WordNet, folder or zip, for METEOR's synonyms (default: words and stems only)",
    )
    group.add_argument(
        "--bert_score_model",
        default="",
        metavar="PATH|NAME",
        help="language model for BERTScore (default: no BERTScore)",
    )
    group.add_argument(
        "--bert_score_layer",
        type=cli.positive_int,
        metavar="LAYER",
        help="its layer to compare words by, such as 17 of roberta-large (default: the last)",
    )
    group.add_argument(
        "--show_reports",
        action="store_true",
        help="put scans and reports on the page; they may be patients' (default: figures alone)",
    )


def add_run_flags(group: argparse._ArgumentGroup) -> None:
    """Where and how it runs."""
    diagnosis_flags.add_run_flags(group)
    group.add_argument(
        "--checkpointing_steps",
        type=cli.positive_int,
        default=500,
        help="save a training this often, to go on from if it is killed (default: %(default)s)",
    )


def check(args: argparse.Namespace, default_of: Callable[[str], object]) -> str | None:
    """What is wrong with the flags; None if nothing is.

    Args:
        args: The parsed flags.
        default_of: Default of a flag.
    """
    if bool(args.real_dir) == bool(args.caption_dir):
        return "give --real_dir to train and compare, or --caption_dir to write reports"
    others = _CAPTIONING if args.real_dir else _TRAINING
    given = [name for name in others if getattr(args, name) != default_of(name)]
    if given:
        mode = "--real_dir" if args.real_dir else "--caption_dir"
        return f"--{given[0]} does not go with {mode}"
    if args.max_tokens is not None and args.max_tokens < MIN_TOKENS:
        return f"--max_tokens {args.max_tokens} is below {MIN_TOKENS}"
    if args.caption_dir:
        return None if args.model else "--caption_dir needs --model, the one to write with"
    if args.bert_score_layer and not args.bert_score_model:
        return "--bert_score_layer goes with --bert_score_model"
    if args.model and (args.encoder, args.decoder) != (SMALL, SMALL):
        return "--model is a whole model: --encoder and --decoder do not go with it"
    return arm_flags.check_synthetic(args) or diagnosis_flags.check_sweep(args)
