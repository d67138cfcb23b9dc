"""Flags of every command that reads a data set of any kind."""

import argparse

from utils import cli


def add_source_flags(parser: argparse.ArgumentParser, flag: str) -> None:
    """Add the flag that names a source, and those that name its columns."""
    group = parser.add_argument_group("source")
    group.add_argument(
        flag, type=cli.data_source, required=True, metavar="SOURCE", help="what to read; see above"
    )
    group.add_argument("--image_column", metavar="NAME", help="its column of file names")
    group.add_argument("--caption_column", metavar="NAME", help="its column of findings or reports")
    group.add_argument(
        "--label_column", metavar="NAME", help="its column of diagnoses, joined by ;"
    )
    group.add_argument("--patient_column", metavar="NAME", help="its column of patients")
    cli.add_runtime_flags(group, "num_workers", "offline")


def columns_of(args: argparse.Namespace):
    """What the flags say about columns, as a `utils.dataset_records.Columns`."""
    from utils.dataset_records import Columns

    return Columns(args.image_column, args.caption_column, args.label_column, args.patient_column)
