"""Flags of ``prepare_dataset.py import`` and what contradicts what; nothing heavy is imported."""

import argparse
import re
from pathlib import Path

from utils import cli
from utils.importers.layout_names import LAYOUT_FLAGS, LAYOUT_NAMES
from utils.importers.radiology_sections import SECTION_NAMES
from utils.source_flags import add_source_flags

_COLUMN_FLAGS = ("image_column", "caption_column", "label_column", "patient_column")
_ANY_LAYOUT_FLAGS = ("overwrite",)  # of the import by layout alone


def _regular_expression(text: str) -> str:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise argparse.ArgumentTypeError(f"{text!r} needs one group in (), which is the patient")
    return text


def _caption_template(text: str) -> str:
    from utils.dataset_import import template_fields

    try:
        template_fields(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    return text


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags of the command."""
    add_source_flags(parser, "--source")
    cli.add_runtime_flags(parser, "output_dir")
    _add_row_flags(parser)
    _add_image_flags(parser)
    _add_layout_flags(parser)


def _add_row_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--caption",
        type=_caption_template,
        metavar="TEMPLATE",
        help='text of every image, columns in braces, e.g. "retinal OCT B-scan, {label}"; takes '
        "the place of a text that is there",
    )
    parser.add_argument(
        "--patient_pattern",
        type=_regular_expression,
        metavar="REGEX",
        help="regular expression whose one group is the patient in the file name",
    )
    parser.add_argument("--source_name", metavar="NAME", help="column source where it is empty")
    parser.add_argument("--modality", metavar="NAME", help="column modality where it is empty")
    parser.add_argument(
        "--skip_invalid", action="store_true", help="drop rows with a problem, and count them"
    )


def _add_image_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--link", action="store_true", help="hard-link the files instead of copying them"
    )
    parser.add_argument(
        "--image_format",
        choices=("keep", "png"),
        help="keep the files byte by byte, or write each as 8-bit PNG (default: keep, but PNG of "
        "DICOM files, whose tags name the patient, and of volumes)",
    )
    parser.add_argument(
        "--window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="with --image_format png: values that become black and white where an image is "
        "deeper than 8 bits (default: its own DICOM window, else its smallest and largest value)",
    )
    parser.add_argument(
        "--max_side",
        type=cli.positive_int,
        metavar="PX",
        help="with --image_format png: shrink images whose longer side has more pixels "
        "(default: keep their size)",
    )


def _add_layout_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sources known by their layout")
    group.add_argument(
        "--layout",
        choices=LAYOUT_NAMES,
        metavar="NAME",
        help="how the files lie below --source: " + ", ".join(LAYOUT_NAMES),
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="throw away what an import with other flags left unfinished in OUTPUT_DIR.partial",
    )
    group.add_argument(
        "--views",
        choices=("frontal", "lateral", "all"),
        help="of chest X-rays, which to take (default: frontal)",
    )
    group.add_argument(
        "--report_sections",
        nargs="*",
        choices=SECTION_NAMES,
        metavar="NAME",
        help=f"of a report, what becomes the text, in this order: {', '.join(SECTION_NAMES)}; no "
        "name leaves the text out (default: findings impression)",
    )
    group.add_argument(
        "--central_n",
        type=cli.positive_int,
        metavar="N",
        help="of each volume, how many B-scans around its centre to take (default: all)",
    )
    group.add_argument(
        "--around",
        choices=("fovea", "middle"),
        help="with --central_n: what the centre is (default: fovea, as guessed from the scans)",
    )
    group.add_argument(
        "--reports",
        type=cli.existing_file,
        metavar="CSV",
        help="texts of DICOM files: a table with a column text and one named as --reports_key",
    )
    group.add_argument(
        "--reports_key",
        metavar="ATTRIBUTE",
        help="with --reports: the DICOM attribute that is the key (default: AccessionNumber)",
    )
    group.add_argument(
        "--pseudonym_key",
        type=cli.existing_file,
        metavar="FILE",
        help="16 bytes or more that decide how patients are called, so that the next import calls "
        "them the same (default: a random key that is thrown away)",
    )


def check_import(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, with exit status 2."""
    if args.link and args.image_format == "png":
        args.error("--link keeps the files as they are; leave out --image_format png")
    for name in ("window", "max_side"):
        if getattr(args, name) is not None and args.image_format != "png":
            args.error(f"--{name} needs --image_format png")
    if args.window and not args.window[0] < args.window[1]:
        args.error("--window LOW HIGH: LOW must be below HIGH")
    if args.around is not None and args.central_n is None:
        args.error("--around needs --central_n")
    if args.reports_key is not None and args.reports is None:
        args.error("--reports_key needs --reports")
    _check_layout(args)


def _check_layout(args: argparse.Namespace) -> None:
    heeded = () if args.layout is None else (*LAYOUT_FLAGS[args.layout], *_ANY_LAYOUT_FLAGS)
    known = {*_ANY_LAYOUT_FLAGS, *(name for names in LAYOUT_FLAGS.values() for name in names)}
    for name in sorted(known - {*heeded}):
        if getattr(args, name) not in (None, False):
            layouts = ", ".join(key for key, names in LAYOUT_FLAGS.items() if name in names)
            why = f"--layout {args.layout} has no use for it" if args.layout else "needs --layout"
            args.error(f"--{name}: {why}" + (f" ({layouts})" if layouts else ""))
    if args.layout is None:
        return
    for name in _COLUMN_FLAGS:
        if getattr(args, name) is not None:
            args.error(f"--{name}: --layout {args.layout} knows its columns")
    source = Path(args.source).expanduser()
    if not source.is_dir():
        args.error(f"--source {args.source}: --layout needs the folder that holds the files")
    if args.output_dir.resolve().is_relative_to(source.resolve()):
        args.error("--output_dir is inside --source; name a folder elsewhere")
