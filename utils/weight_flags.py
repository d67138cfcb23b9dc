"""Flags of how much each image counts, and whether one without text does; nothing heavy."""

import argparse

AS_LOSS, AS_FREQUENCY = "loss", "frequency"


def add_weight_flags(add) -> None:
    """Add the flags, given a parser's or group's ``add_argument``."""
    add(
        "--weight_column",
        metavar="NAME",
        help="column of each image's weight, >= 0; 0: left out (default: all alike)",
    )
    add(
        "--weights_as",
        choices=(AS_LOSS, AS_FREQUENCY),
        default=AS_LOSS,
        help="what the weight is: the factor of the image's loss, or how often it is shown, which "
        "costs no step on images that count little (default: %(default)s)",
    )
    add(
        "--allow_empty_captions",
        action="store_true",
        help="train images without text on the empty caption; else they end the run",
    )


def weight_contradictions(args: argparse.Namespace) -> list[tuple[bool, str]]:
    """Rules as (is it broken, what is wrong) on flags taken together."""
    return [
        (
            args.weights_as == AS_FREQUENCY and args.weight_column is None,
            f"--weights_as {AS_FREQUENCY} needs --weight_column",
        ),
        (
            args.allow_empty_captions and args.caption is not None,
            "--allow_empty_captions: --caption makes every caption",
        ),
    ]
