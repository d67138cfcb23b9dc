"""The check of a data set for what gives persons away: its table, its images, their metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from utils.burnt_in_text import TextBox, find_text
from utils.caption_privacy import Finding, TextSearch
from utils.dataset import Dataset
from utils.dataset_records import DatasetError, Problem, Record
from utils.dataset_tables import COLUMN_ORDER
from utils.image_files import ImageError
from utils.image_metadata import metadata_entries
from utils.known_identities import known_identities
from utils.run_folder import get_logger
from utils.workers import iterate_in_processes, map_in_processes

IMAGE = "image"  # "column" of what was found in a picture
MARKER = "marker"  # a lone letter: told, but nobody's identity
KINDS_OF_IMAGES = {"text": "burnt-in text", "marker": MARKER}

_NAMES = ("file_name", "patient_id")  # columns of names, not of running text
_CHUNK = 1024  # texts that a process takes at once

_logger = get_logger("privacy")

Cell = tuple[str, str]  # column, content


class Found(NamedTuple):
    """One thing found.

    Attributes:
        index: Of the record.
        column: Of the table, or `IMAGE`.
        kind: name, date, id, ...; burnt-in text, marker, metadata.
        rule: What found it; of metadata the entry's name.
        start: Offset in the cell; of a picture's text the box's left edge, likewise the next.
        end: Offset after the last character; of a picture's text its top edge.
        box: Of text in a picture.
        matched: What was found, in words.
    """

    index: int
    column: str
    kind: str
    rule: str
    start: int | None
    end: int | None
    box: TextBox | None
    matched: str


class PictureReport(NamedTuple):
    """What one image file gives away: boxes, (name, value) of metadata, or why it is unreadable."""

    boxes: tuple[TextBox, ...]
    entries: tuple[tuple[str, str], ...]
    problem: Problem | None


def cell_findings(
    records: Sequence[Record],
    search: TextSearch,
    *,
    skip_columns: Iterable[str] = (),
    num_workers: int | None = None,
) -> dict[Cell, list[Finding]]:
    """Findings of every distinct cell that has one.

    A name or number found anywhere is one in file names and patients too, where it stands bare.

    Args:
        records: The rows.
        search: What to look for.
        skip_columns: Columns that are left out.
        num_workers: Processes.
    """
    skipped = frozenset(skip_columns)
    cells = list(
        dict.fromkeys(
            (column, cell)
            for record in records
            for column, cell in record.row.items()
            if cell and column not in skipped
        )
    )
    results = iterate_in_processes(
        partial(_find, search=search),
        cells,
        total=len(cells),
        description="texts",
        unit="text",
        num_workers=num_workers,
        chunk_size=_CHUNK,
    )
    by_cell = {cell: findings for cell, findings in zip(cells, results) if findings}
    known = known_identities(by_cell, search.rules.not_names)
    for cell in cells:
        if cell[0] in _NAMES and cell not in by_cell and (findings := known.find(cell[1])):
            by_cell[cell] = findings
    return by_cell


def _find(cell: Cell, *, search: TextSearch) -> list[Finding]:
    column, text = cell
    if column in COLUMN_ORDER:
        return search.find(text, only_names=column in _NAMES)
    # The user's own column: its name may tell what a bare number or word is.
    head = f"{column.replace('_', ' ')}: "
    findings = search.find(head + text, only_names=text.strip().isdecimal())
    inside = (f for f in findings if f.end > len(head))
    return [f._replace(start=max(0, f.start - len(head)), end=f.end - len(head)) for f in inside]


def table_found(records: Sequence[Record], by_cell: dict[Cell, list[Finding]]) -> list[Found]:
    """What the cells of a table give away, in the order of the rows."""
    return [
        Found(index, column, f.kind, f.rule, f.start, f.end, None, cell[f.start : f.end])
        for index, record in enumerate(records)
        for column, cell in record.row.items()
        for f in by_cell.get((column, cell), ())
    ]


def picture_reports(
    dataset: Dataset, *, skip_invalid: bool, num_workers: int | None = None
) -> tuple[Dataset, list[PictureReport]]:
    """Look at the images, in parallel.

    Args:
        dataset: The images.
        skip_invalid: Whether those that cannot be read are left out.
        num_workers: Processes.

    Returns:
        The data set of what could be read, and its reports.

    Raises:
        DatasetError: With all images that cannot be read; if they may be left out, only if
            nothing else is left.
    """
    reports = map_in_processes(
        _look, dataset.records, description="images", num_workers=num_workers
    )
    problems = [report.problem for report in reports if report.problem is not None]
    if not problems:
        return dataset, reports
    sound = [index for index, report in enumerate(reports) if report.problem is None]
    if not skip_invalid:
        raise DatasetError("images", problems)
    if not sound:
        nothing = Problem("images", "no rows", "nothing is left after dropping these")
        raise DatasetError("images", [*problems, nothing])
    _logger.warning(
        "%d images cannot be read and are left out, first: %s", len(problems), problems[0]
    )
    kept = dataset.select(sound)
    dataset = Dataset(kept.records, kept.root, (*kept.skipped, *problems), kept.notes)
    return dataset, [reports[index] for index in sound]


def _look(record: Record) -> PictureReport:
    try:
        boxes = tuple(find_text(record.image()))
        entries = metadata_entries(record.image_source)
    except ImageError as error:
        return PictureReport((), (), Problem(record.where, error.kind, str(error)))
    return PictureReport(boxes, tuple(entries), None)


def picture_found(reports: Sequence[PictureReport]) -> list[Found]:
    """What the images give away, in their order."""
    found = []
    for index, report in enumerate(reports):
        for box in report.boxes:
            kind = KINDS_OF_IMAGES[box.kind]
            found.append(Found(index, IMAGE, kind, "letters", None, None, box, ""))
        for name, value in report.entries:
            found.append(Found(index, IMAGE, "metadata", name, None, None, None, value))
    return found


def summary(found: Sequence[Found], num_rows: int) -> dict:
    """Counts and shares of what was found.

    Returns:
        ``findings`` and ``rows`` per kind, ``share_of_rows``; ``identities``: how many findings
        are more than a marker.
    """
    kinds = Counter(item.kind for item in found)
    rows = {kind: len({i.index for i in found if i.kind == kind}) for kind in kinds}
    return {
        "rows": num_rows,
        "identities": sum(count for kind, count in kinds.items() if kind != MARKER),
        "rows_with_identities": len({item.index for item in found if item.kind != MARKER}),
        "findings": dict(sorted(kinds.items())),
        "rows_per_kind": dict(sorted(rows.items())),
        "share_of_rows": {kind: rows[kind] / num_rows for kind in sorted(rows)},
        "by_column": dict(sorted(Counter(f"{i.column}: {i.kind}" for i in found).items())),
        "by_rule": dict(sorted(Counter(f"{i.kind}: {i.rule}" for i in found).items())),
    }
