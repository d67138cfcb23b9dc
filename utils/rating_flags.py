"""Flags of exporting and analysing doctors' ratings; nothing heavy is imported here."""

from __future__ import annotations

import argparse

from utils import cli

PREFERENCE, RATINGS = "preference", "ratings"
ANY_RATERS, THESE_RATERS = "any_raters", "these_raters"
PAIR_ORIGINS = (PREFERENCE, RATINGS)
ANSWERS_NAME = "answers.csv"  # in an export folder


def add_export_flags(parser: argparse._ActionsContainer) -> None:
    """What is written of a study, and where."""
    parser.add_argument(
        "--study_dir",
        type=cli.existing_dir,
        required=True,
        metavar="DIR",
        help="the study, as create wrote it; it may be served meanwhile",
    )
    cli.add_runtime_flags(parser, "output_dir")
    parser.add_argument(
        "--pairs_from",
        nargs="+",
        choices=PAIR_ORIGINS,
        default=[PREFERENCE],
        help="where the pairs for preference training come from: answers to 'which is better?', "
        "or two images of one text that a rater gave different points (default: preference)",
    )
    parser.add_argument(
        "--min_point_gap",
        type=cli.positive_int,
        default=1,
        metavar="POINTS",
        help="with --pairs_from ratings: least difference of quality + agreement, each 1 to 5 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--anonymous",
        action="store_true",
        help="write rater 1, rater 2, ... in place of the raters' names",
    )


def export_problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags of export; None if nothing is."""
    if len(set(args.pairs_from)) < len(args.pairs_from):
        return "--pairs_from names an origin twice"
    if args.output_dir.resolve() == args.study_dir.resolve():
        return "--output_dir is the study: name another folder"
    if args.min_point_gap > 1 and RATINGS not in args.pairs_from:
        return "--min_point_gap goes with --pairs_from ratings"
    return None


def add_analyze_flags(parser: argparse._ActionsContainer) -> None:
    """What is analysed, how, and what the page shows."""
    _add_source(parser)
    cli.add_runtime_flags(parser, "output_dir")
    parser.add_argument(
        "--about",
        choices=(ANY_RATERS, THESE_RATERS),
        default=ANY_RATERS,
        help="whom intervals and tests are about: any raters, of whom these are a sample, or these "
        "alone, on other images; of two raters the former are very wide (default: %(default)s)",
    )
    parser.add_argument(
        "--num_resamples",
        type=cli.positive_int,
        default=1000,
        help="bootstrap draws of images for the intervals of agreement between raters, at least 2 "
        "(default: %(default)s)",
    )
    cli.add_runtime_flags(parser, "seed")
    parser.add_argument(
        "--num_pictures",
        type=cli.non_negative_int,
        default=6,
        help="images of each kind on the page; 0 shows none (default: %(default)s)",
    )
    parser.add_argument(
        "--show_raters",
        action="store_true",
        help="name the raters; else they are rater 1, rater 2, ...",
    )


def _add_source(parser: argparse._ActionsContainer) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--study_dir",
        type=cli.existing_dir,
        metavar="DIR",
        help="the study, as create wrote it; it may be served meanwhile",
    )
    source.add_argument(
        "--ratings",
        type=cli.existing_dir,
        metavar="DIR",
        help="in place of the study: a folder that export wrote",
    )


def analyze_problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags of analyze; None if nothing is."""
    if args.num_resamples < 2:
        return "--num_resamples must be at least 2"
    source = args.study_dir or args.ratings
    if args.output_dir.resolve() == source.resolve():
        return "--output_dir is the folder that is read: name another"
    if args.ratings and not (args.ratings / ANSWERS_NAME).is_file():
        return f"--ratings {args.ratings}: no {ANSWERS_NAME} there; export writes it"
    return None
