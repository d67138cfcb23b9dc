"""Flags of ``prepare_dataset.py privacy``."""

import argparse
from pathlib import Path

from utils import cli

PRIVACY_HELP = """\
Look for what gives persons away in captions, file names, patients and pixels; write a clean copy.

    python prepare_dataset.py privacy --data_dir data/oct --output_dir runs/privacy
    python prepare_dataset.py privacy --data_dir data/oct --output_dir runs/privacy \\
        --rules en de --rename_images --deidentify data/oct-clean
    python prepare_dataset.py privacy --data_dir data/oct --output_dir runs/privacy \\
        --deidentify data/oct-clean --mask_margins 0 0 40 0 --margins_as crop

Exit status 1 if something was found and no clean copy was asked for, or remains in the copy.
Writes privacy.csv, privacy.json and report.html; none of them shows what was found unless
--show_findings is given, but their file names are those of the data set. What this cannot find
stands in docs/privacy.md.
"""


def add_privacy_flags(parser: argparse.ArgumentParser) -> None:
    """The flags after those of the source."""
    cli.add_runtime_flags(parser, "output_dir")
    search = parser.add_argument_group("what to look for")
    search.add_argument(
        "--rules",
        nargs="+",
        default=["en"],
        metavar="NAME_OR_PATH",
        help="rules: en, de, or YAML files of your own, used together (default: en)",
    )
    search.add_argument(
        "--names",
        type=cli.existing_file,
        metavar="FILE",
        help="names of the clinic's patients and doctors, one a line, looked for as well",
    )
    search.add_argument(
        "--skip_columns", nargs="+", default=[], metavar="NAME", help="columns not to look at"
    )
    search.add_argument(
        "--skip_pixels", action="store_true", help="do not open the images: the table only"
    )
    parser.add_argument(
        "--show_findings",
        action="store_true",
        help="write what was found into privacy.csv and report.html, with the strips of the images",
    )
    parser.add_argument(
        "--skip_invalid", action="store_true", help="leave rows with a problem out, and count them"
    )
    copy = parser.add_argument_group("clean copy")
    copy.add_argument(
        "--deidentify",
        type=cli.output_dir,
        metavar="DIR",
        help="write a clean dataset folder: findings replaced, text at the margins masked, images "
        "as PNG without metadata",
    )
    copy.add_argument(
        "--mask_margins",
        nargs="+",
        metavar="PX",
        help="auto: the text that was found; or four numbers: rows on top, columns at the right, "
        "rows at the bottom, columns at the left, in pixels (default: auto)",
    )
    copy.add_argument(
        "--margins_as",
        choices=("mask", "crop"),
        default="mask",
        help="fill margins with the grey around them, or cut them off (default: %(default)s)",
    )
    copy.add_argument(
        "--pseudonym_key",
        type=cli.existing_file,
        metavar="FILE",
        help="key of 16 bytes or more: every patient_id becomes a pseudonym, the same with the "
        "same key (default: those that look like a name or a date, by a key that is thrown away)",
    )
    copy.add_argument(
        "--rename_images",
        action="store_true",
        help="number all images (default: those whose file name gives somebody away)",
    )


def check_privacy(args: argparse.Namespace) -> None:
    """Cross-check; anything wrong ends here, with exit status 2."""
    if args.deidentify is None:
        for name in ("mask_margins", "pseudonym_key", "rename_images"):
            if getattr(args, name):
                args.error(f"--{name} needs --deidentify")
        return
    margins = args.mask_margins or ["auto"]
    numbers = len(margins) == 4 and all(text.isdecimal() for text in margins)
    if margins != ["auto"] and not numbers:
        args.error("--mask_margins: give auto, or four numbers of pixels: TOP RIGHT BOTTOM LEFT")
    if args.skip_pixels:
        args.error("--skip_pixels leaves text in the images; leave it out with --deidentify")
    target = args.deidentify
    if target.exists() and any(target.iterdir()):
        args.error(f"--deidentify {target} exists and is not an empty folder")
    copy, report = target.resolve(), args.output_dir.resolve()
    if copy.is_relative_to(report) or report.is_relative_to(copy):
        args.error(f"--deidentify {target} and --output_dir {args.output_dir}: one holds the other")
    if copy.is_relative_to(Path(args.data_dir).resolve()):
        args.error(f"--deidentify {target} must lie outside of --data_dir")
