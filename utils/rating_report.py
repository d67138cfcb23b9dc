"""Analysis of a rating study on disk: results.json, tables as CSV, and a page to read."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from PIL import Image

from utils.cli import UserError
from utils.html_report import Page
from utils.image_files import read_image
from utils.rated_images import ImageSummary, remarkable, summarize_images
from utils.rating_analysis import Analysis, analyze
from utils.rating_export import answers_hash, read_study, without_names
from utils.rating_figures import Figure
from utils.rating_flags import ANSWERS_NAME, ANY_RATERS, THESE_RATERS
from utils.rating_sections import (
    add_agreement,
    add_diagnoses,
    add_errors,
    add_points,
    add_preferences,
)
from utils.rating_sentences import cautions, findings
from utils.rating_table import Answer, read_answers
from utils.resumable_run import only_writer, open_run
from utils.run_folder import write_csv, write_json
from utils.turing_section import add_turing

TABLES = ("figures.csv", "agreement.csv", "self_agreement.csv", "images.csv", "times.csv")
OUTPUTS = (*TABLES, "comments.csv", "report.html", "results.json")
FIGURE_COLUMNS = (
    *("question", "metric", "scope", "name", "arm", "value", "low", "high", "p", "p_holm"),
    *("num_raters", "num_images", "reason"),
)
AGREEMENT_COLUMNS = (
    *("question", "coefficient", "raters", "value", "low", "high"),
    *("num_items", "num_raters", "reason"),
)
SELF_COLUMNS = (
    *("question", "rater", "num_repeats", "equal", "equal_low", "equal_high"),
    *("kappa", "kappa_low", "kappa_high", "mean_shift", "reason"),
)
TIME_COLUMNS = (
    *("rater", "num_items", "num_repeats", "median_seconds", "p90_seconds", "total_minutes"),
)
COMMENT_COLUMNS = ("rater", "image", "arm", "label", "is_repeat", "value")
_COMMENT_HEADS = ("Image", "Arm", "Diagnosis", "Rater", "Comment")
MAX_COMMENTS = 200
PICTURE_PX = 220
UNBLINDED = (
    "This page tells which images are synthetic. Nobody who is still rating may see it.",
    "It shows scans of patients and what doctors wrote. Who may read the data may read this page.",
)
_METHOD = (
    "A figure is the mean over raters of each rater's own figure. Its interval and test allow for "
    "both sources of chance, the images and, unless it is about these raters alone, the raters "
    "(Obuchowski and Rockette 1995, degrees of "
    "freedom of Hillis 2007 with the images' part added): answers of one rater share the rater's "
    "bias, answers to one image what is peculiar to the image, and a test that took every answer "
    "for an independent trial would find differences where there are none.",
    "A rater's first answer to an image counts; repeats tell about agreement with oneself alone.",
    "p (Holm): corrected over the comparisons of a family, so that of all families at most one in "
    "twenty holds a false one. A difference that is not shown is not shown to be absent: look at "
    "the interval.",
    "Images are taken as independent: with several images of a patient, intervals are too narrow.",
)

ImageOf = Callable[[str], Image.Image]


@dataclass(frozen=True)
class Source:
    """Answers, and where their images are.

    Attributes:
        answers: All current ones.
        paths: Name of an image -> file.
        name: What was read.
    """

    answers: Sequence[Answer]
    paths: Mapping[str, Path]
    name: str


def read_source(args: argparse.Namespace) -> Source:
    """The answers of ``--study_dir`` or ``--ratings``.

    Raises:
        UserError: If there is no study, or the table is damaged.
    """
    if args.study_dir:
        answers, images = read_study(args.study_dir)
        return Source(answers, {one.name: one.path for one in images}, str(args.study_dir))
    answers = read_answers(args.ratings / ANSWERS_NAME)
    names = {name for one in answers for name in (one.image, one.other_image) if name}
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{args.ratings / ANSWERS_NAME}: {name!r} is no file of the folder")
    return Source(answers, {name: args.ratings / name for name in names}, str(args.ratings))


def run(args: argparse.Namespace) -> dict[str, object]:
    """Analyse and write everything, results.json last; returns what is to be printed.

    Raises:
        UserError: If there is nothing to analyse, or the folder holds something else.
    """
    source = read_source(args)
    answers = list(source.answers) if args.show_raters else without_names(source.answers)
    analysis = analyze(
        answers,
        num_resamples=args.num_resamples,
        seed=args.seed,
        fixed_raters=args.about == THESE_RATERS,
    )
    images = summarize_images(analysis.ratings)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir):
        open_run(
            args.output_dir,
            args,
            identity={"analyzed_answers": answers_hash(source.answers)},
            free_flags=(),
            outputs=OUTPUTS,
            anew=True,
        )
        write_tables(args.output_dir, analysis, images)
        page = make_page(
            analysis,
            remarkable(images, args.num_pictures) if args.num_pictures else {},
            image_of=lambda name: read_image(source.paths[name]),
            source=source.name,
        )
        page.write(args.output_dir / "report.html")
        printed = summary(analysis)
        figures = [one.row() for one in analysis.figures]
        details = {"figures": figures, "agreement": analysis.agreement}
        write_json(args.output_dir / "results.json", printed | details)
    return {"output_dir": args.output_dir, "report": args.output_dir / "report.html", **printed}


def summary(analysis: Analysis) -> dict[str, object]:
    """Findings, cautions and counts."""
    ratings = analysis.ratings
    rated = {(one.arm, one.image) for one in ratings.answers if not one.other_image}
    counts = Counter(arm for arm, _ in rated)
    return {
        "findings": findings(analysis),
        "cautions": cautions(analysis),
        "about": THESE_RATERS if ratings.fixed_raters else ANY_RATERS,
        "raters": len(ratings.raters),
        "images": {arm: counts[arm] for arm in ratings.arms if arm in counts},
        "answers": len(ratings.answers),
        "repeated_answers": len(ratings.repeats),
    }


def write_tables(folder: Path, analysis: Analysis, images: Sequence[ImageSummary]) -> None:
    """Write all tables as CSV; what is undefined is an empty cell."""
    write = partial(_write_rows, folder)
    write("figures.csv", map(Figure.row, analysis.figures), FIGURE_COLUMNS)
    write("agreement.csv", analysis.agreement, AGREEMENT_COLUMNS)
    write("self_agreement.csv", analysis.self_agreement, SELF_COLUMNS)
    write("images.csv", map(vars, images), [field.name for field in fields(ImageSummary)])
    write("times.csv", analysis.times, TIME_COLUMNS)
    comments = ({name: getattr(one, name) for name in COMMENT_COLUMNS} for one in analysis.comments)
    write("comments.csv", comments, COMMENT_COLUMNS)


def _write_rows(folder: Path, name: str, rows, columns: Sequence[str]) -> None:
    def cell(value: object) -> object:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return "" if value != value else f"{value:.6g}"
        return value

    plain = ({key: cell(value) for key, value in row.items()} for row in rows)
    write_csv(folder / name, plain, columns)


def make_page(
    analysis: Analysis,
    shown: Mapping[str, Sequence[ImageSummary]],
    *,
    image_of: ImageOf,
    source: str,
) -> Page:
    """The page of a study.

    Args:
        analysis: What was found.
        shown: Title -> images to show.
        image_of: Name of an image -> its pixels.
        source: What was read.
    """
    page = Page("What doctors say of the images", lead=_lead(analysis))
    page.notice(UNBLINDED, kind="warning", title="Unblinded")
    page.notice("Research use only, not for diagnosis.")
    page.heading("Findings")
    page.bullets(findings(analysis))
    if weak := cautions(analysis):
        page.notice(weak, title="Keep in mind")
    add_turing(page, analysis.figures)
    add_points(page, analysis.figures)
    add_diagnoses(page, analysis.figures)
    add_errors(page, analysis.figures)
    add_preferences(page, analysis.figures)
    add_agreement(page, analysis)
    _add_pictures(page, shown, image_of)
    _add_comments(page, analysis.comments)
    _add_times(page, analysis)
    page.heading("How it was computed")
    page.bullets(_METHOD)
    page.facts({"Read": source, "First answers": len(analysis.ratings.answers)})
    return page


def _lead(analysis: Analysis) -> str:
    counts = summary(analysis)
    images = ", ".join(f"{count} of {arm}" for arm, count in counts["images"].items())
    raters = f"{counts['raters']} rater{'s' if counts['raters'] > 1 else ''}"
    return f"{raters}; images: {images or 'pairs only'}. In brackets 95 % intervals."


def _add_pictures(
    page: Page, shown: Mapping[str, Sequence[ImageSummary]], image_of: ImageOf
) -> None:
    if not shown:
        return
    page.heading("Images worth a look")
    for title, images in shown.items():
        page.gallery(
            {title: [image_of(one.image) for one in images]},
            captions={title: [_caption(one) for one in images]},
            tile_px=PICTURE_PX,
            large=True,
        )
    page.paragraph(
        "Under each picture its arm, its diagnosis and what raters said. Picked as extremes: of "
        "few raters, chance puts many images there. All images are in images.csv."
    )


def _caption(one: ImageSummary) -> str:
    parts = [one.arm, one.label]
    if one.taken_for_real == one.taken_for_real:
        parts.append(f"called real {100 * one.taken_for_real:.0f}\N{NO-BREAK SPACE}%")
    if one.quality == one.quality:
        parts.append(f"quality {one.quality:.1f}")
    if one.agreement == one.agreement:
        parts.append(f"text {one.agreement:.1f}")
    return ", ".join([*filter(None, parts), *filter(None, one.errors.split(";"))])


def _add_comments(page: Page, comments: Sequence[Answer]) -> None:
    if not comments:
        return
    page.heading("Comments")
    rest = len(comments) - MAX_COMMENTS
    page.table(
        [vars(one) for one in comments[:MAX_COMMENTS]],
        {
            "image": "Image",
            "arm": "Arm",
            "label": "Diagnosis",
            "rater": "Rater",
            "value": "Comment",
        },
        caption=f"{rest} more are in comments.csv." if rest > 0 else None,
    )


def _add_times(page: Page, analysis: Analysis) -> None:
    page.heading("Raters")
    page.table(
        analysis.times,
        {
            "rater": "Rater",
            "num_items": "Images and pairs",
            "num_repeats": "Repeats",
            "median_seconds": "Seconds each, median",
            "p90_seconds": "90 % within",
            "total_minutes": "Minutes in all",
        },
    )
