"""Answers of raters as a table: one row for each rater, shown item and question."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from utils.cli import UserError
from utils.run_folder import write_csv

REAL_ARM = "real"
SCALE = range(1, 6)  # of quality and agreement
ERROR_KINDS = ("omission", "commission", "context", "artifact")
UNSURE = "unsure"


@dataclass(frozen=True)
class Answer:
    """What one rater said to one question about one image, or one pair of images.

    Attributes:
        rater: Name.
        item: Number of the image or pair in the study, the same for all raters and for repeats.
        is_repeat: Whether the rater saw it for the second time, to measure self-agreement.
        position: Place in the rater's own order, from 0.
        question: ``turing, quality, agreement, diagnosis, errors, preference`` or ``comment``.
        value: ``real`` or ``synthetic``; ``1`` to ``5``; a diagnosis or ``unsure``; kinds of errors
            joined by ``;`` or ``none``; ``image``, ``other`` or ``tie``, whatever side it was
            shown on; free text.
        image: File name in the export folder.
        arm: ``real``, or the name of the synthetic set.
        label: Diagnosis of the image.
        text: What the image was drawn from, or the report of a real one.
        other_image: Of a pair, the second; else empty, as `other_arm` is.
        other_arm: See above.
        seconds: From showing the item to the answer.
        answered_at: UTC, ISO 8601.
    """

    rater: str
    item: int
    is_repeat: bool
    position: int
    question: str
    value: str
    image: str
    arm: str
    label: str
    text: str
    other_image: str
    other_arm: str
    seconds: float
    answered_at: str


COLUMNS = tuple(field.name for field in fields(Answer))


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as CSV, whole or not at all."""
    rows = (asdict(answer) | {"is_repeat": str(answer.is_repeat).lower()} for answer in answers)
    write_csv(path, rows, COLUMNS)


def read_answers(path: Path) -> list[Answer]:
    """Read what `write_answers` wrote.

    Raises:
        UserError: With file and line, if columns are missing or a value is none.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise UserError(f"{path}: no answers of raters, for it lacks {', '.join(missing)}")
        return [_parse(row, f"{path}:{reader.line_num}") for row in reader]


def _parse(row: dict[str, str], where: str) -> Answer:
    numbers = {"item": int, "position": int, "seconds": float}
    values: dict = {name: row[name] for name in COLUMNS}
    for name, kind in numbers.items():
        try:
            values[name] = kind(row[name])
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {name} is {row[name]!r}, no number") from error
    if row["is_repeat"] not in ("true", "false"):
        raise UserError(f"{where}: is_repeat is {row['is_repeat']!r}, not true or false")
    return Answer(**values | {"is_repeat": row["is_repeat"] == "true"})
