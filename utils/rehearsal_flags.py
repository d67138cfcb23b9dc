"""Flags of what is trained beside the data so that it is not forgotten; nothing heavy."""

import argparse
from pathlib import Path

from utils import cli

DEFAULT_SHARE = 0.1


def add_rehearsal_flags(add) -> None:
    """Add the flags, given a parser's or group's ``add_argument``."""
    add(
        "--rehearsal",
        type=cli.data_source,
        metavar="DATA",
        help="data set of what the model knows already, mixed in so that it is not forgotten, e.g. "
        "the OCT scans in a training on chest X-rays; columns by their usual names",
    )
    add(
        "--rehearsal_share",
        type=cli.probability,
        metavar="SHARE",
        help=f"share of all training samples that are of --rehearsal (default: {DEFAULT_SHARE})",
    )


def rehearsal_share(args: argparse.Namespace) -> float:
    """Share of the samples that are rehearsed, in [0, 1); 0 without --rehearsal."""
    if args.rehearsal is None:
        return 0.0
    return DEFAULT_SHARE if args.rehearsal_share is None else args.rehearsal_share


def _place(source: Path | str | None) -> Path | None:
    return None if source is None else Path(source).expanduser().resolve()


def rehearsal_contradictions(args: argparse.Namespace) -> list[tuple[bool, str]]:
    """Rules as (is it broken, what is wrong) on flags taken together."""
    return [
        (
            args.rehearsal_share is not None and args.rehearsal is None,
            "--rehearsal_share needs --rehearsal",
        ),
        (
            args.rehearsal_share in (0, 1),
            "--rehearsal_share: 0 rehearses nothing, 1 learns nothing new; take one between",
        ),
        (
            args.rehearsal is not None
            and _place(args.rehearsal) in map(_place, (args.train_data_dir, args.dataset_name)),
            "--rehearsal is what is trained on",
        ),
        (
            args.rehearsal is not None and not args.denoising_weight,
            "--rehearsal: --denoising_weight 0 trains on no images",
        ),
    ]
