"""Preference pairs: of two images of one text, which is the better; read from a CSV and checked.

Columns ``text``, ``preferred``, ``rejected`` and, if wished, ``weight``; the files are named
relative to the CSV's folder. Others are left alone. A pair may stand there more than once, and its
opposite too: raters differ.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.dataset import Dataset, Examination, accept
from utils.dataset_checks import Found, check_cells, check_paths, in_order_of_rows
from utils.dataset_pixels import DUPLICATE, judge_pixels, read_pixels
from utils.dataset_records import Columns, Problem, Record, Table, make_record
from utils.dataset_tables import missing_column, read_table
from utils.prompt_template import with_prompts
from utils.sample_weights import check_weights, without_weightless

WEIGHT_COLUMN = "weight"

_ROLES = ("preferred", "rejected")


def load_pairs(
    path: Path, *, check_pixels: bool, skip_invalid: bool, template: str | None = None
) -> Dataset:
    """Read and check pairs.

    Args:
        path: The CSV.
        check_pixels: Decode every image once.
        skip_invalid: Drop pairs with a problem.
        template: Of the prompts that the texts are made to (`utils.prompt_template`).

    Returns:
        Two images a pair, the preferred one first, both with the pair's text.

    Raises:
        DatasetError: With all problems at once, file and line.
        UserError: If all weights are 0; if a column of the template is empty.
    """
    table = read_table(path, Columns(image="preferred", caption="text"), foreign=True)
    rejected = [_rejected(record, table.root) for record in table.records]
    problems = list(table.problems)
    if table.columns and "rejected" not in table.columns:
        missing = missing_column(f"{table.name}:1", "rejected", table.columns)
        problems.append((None, missing))
    elif not table.records and not problems:
        problems.append((None, Problem(table.name, "no rows", "the table has no pair")))
    elif table.records:
        problems += _check_rows(table, rejected, check_pixels=check_pixels)
    kept = range(len(table.records))
    examined = Examination(table, in_order_of_rows(problems), kept, {}, table.notes)
    pairs = accept(examined, path, skip_invalid=skip_invalid)
    if WEIGHT_COLUMN in table.columns:
        pairs = without_weightless(pairs, WEIGHT_COLUMN)
    images = [image for pair in pairs for image in (pair, _rejected(pair, table.root))]
    images = with_prompts(images, template, path)
    return Dataset(images, pairs.root, pairs.skipped, pairs.notes)


def _rejected(pair: Record, root: Path | None) -> Record:
    """Record of the rejected image of a pair, whose own is that of the preferred one."""
    row = {**pair.row, "file_name": pair.row.get("rejected", "")}
    return make_record(row, pair.where, os.path.join(root or "", row["file_name"]))  # noqa: PTH118


def _check_rows(table: Table, rejected: Sequence[Record], *, check_pixels: bool) -> Found:
    found = check_cells(table.records, ("text",))
    if WEIGHT_COLUMN in table.columns:
        found += check_weights(table, range(len(table.records)), WEIGHT_COLUMN)
    trouble = _image_troubles(table, rejected, check_pixels=check_pixels)
    for index, pair in enumerate(zip(table.records, rejected, strict=True)):
        first, second = map(_place, pair)
        for role, image in zip(_ROLES, pair):
            kind, detail = trouble.get(_place(image), ("", ""))
            if kind:
                found.append((index, Problem(image.where, kind, f"{role}: {detail}")))
        if first == second and pair[0].file_name.strip():
            detail = f"{pair[0].file_name} is both preferred and rejected"
            found.append((index, Problem(pair[0].where, "image against itself", detail)))
    return found


def _place(image: Record) -> str:
    return os.path.normpath(image.source) if image.file_name.strip() else ""


def _image_troubles(
    table: Table, rejected: Sequence[Record], *, check_pixels: bool
) -> dict[str, tuple[str, str]]:
    """Kind and detail of what is wrong with an image, by its path; each is looked at once."""
    distinct = {_place(image): image for image in _images(table.records, rejected)}
    images = Table(table.root, table.name, table.columns, list(distinct.values()), foreign=True)
    places = list(distinct)
    found = check_paths(images)
    lost = {index for index, _ in found}
    if check_pixels:
        left = [index for index in range(len(places)) if index not in lost]
        records = [images.records[index] for index in left]
        judged, _ = judge_pixels(records, read_pixels(records))
        found += [(left[place], problem) for place, problem in judged if problem.kind != DUPLICATE]
    return {places[index]: (problem.kind, problem.message) for index, problem in found}


def _images(preferred: Sequence[Record], rejected: Sequence[Record]) -> Iterator[Record]:
    for pair in zip(preferred, rejected, strict=True):
        yield from pair
