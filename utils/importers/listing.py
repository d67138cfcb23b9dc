"""From what a layout tells to the journal's list: new names, captions, patients, checks of rows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from utils.cli import UserError
from utils.dataset_checks import name_trouble
from utils.dataset_import import fill_template, free_name, template_fields
from utils.dataset_records import SPLITS, Problem, make_record
from utils.importers.journal import Entry, Journal
from utils.importers.layout import Layout
from utils.importers.source_image import SourceImage

# What browsers and Pillow read, and what holds nobody's name in tags of its own.
_KEPT_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class RowRules:
    """What the flags say about every row.

    Attributes:
        as_png: Whether every image becomes a PNG; else those only whose files cannot be kept.
        keep_all: Whether each file must be kept as it is.
        caption: Template of the text; None leaves it.
        patient_pattern: Regular expression whose group is the patient in the file name.
        source_name: Column source where it is empty.
        modality: Column modality where it is empty.
    """

    as_png: bool = False
    keep_all: bool = False
    caption: str | None = None
    patient_pattern: str | None = None
    source_name: str | None = None
    modality: str | None = None


class Listing:
    """Fills the journal with what a layout tells."""

    def __init__(self, journal: Journal, layout: Layout, rules: RowRules) -> None:
        """Check the rules against the layout.

        Raises:
            UserError: If the caption names a column that the layout does not have.
        """
        self._journal, self._rules = journal, rules
        self._modality = rules.modality or layout.modality
        self._fields = template_fields(rules.caption) if rules.caption is not None else []
        columns = ("file_name", *layout.columns)
        unknown = [name for name in self._fields if name not in columns]
        if unknown:
            raise UserError(
                f"--caption: {layout.name} has no column {unknown[0]} "
                f"(columns: {', '.join(columns)})"
            )

    def add(self, number: int, told: SourceImage | Problem) -> None:
        """Put the next thing that the layout tells into the journal.

        Raises:
            UserError: If the file must be kept but cannot be.
        """
        if isinstance(told, Problem):
            self._journal.add_problem(number, told)
            return
        trouble = self._name_trouble(told)
        if trouble is not None:
            self._journal.add_problem(number, Problem(told.where, *trouble))
            return
        name = self._new_name(told)
        row, problems = self._finished_row(told, name)
        entry = Entry(number, told.path, told.frame, told.name, name, told.where, row)
        self._journal.add_image(entry)
        for kind, message in problems:
            self._journal.add_problem(number, Problem(told.where, kind, message), image=number)

    def _name_trouble(self, told: SourceImage) -> tuple[str, str] | None:
        if not told.name.strip():
            return "empty file name", "no image is named"
        outside = name_trouble(told.name)
        if outside is not None:
            return "path outside the folder", f"{told.name}: {outside}"
        before = self._journal.place_of(told.name)
        return None if before is None else ("duplicate row", f"{told.name} is at {before} already")

    def _new_name(self, told: SourceImage) -> str:
        name = PurePosixPath(told.name)
        kept = told.frame is None and name.suffix.lower() in _KEPT_SUFFIXES
        if not kept and self._rules.keep_all:
            raise UserError(
                f"{told.where}: DICOM files and volumes are written as PNG, for their tags name "
                "the patient; leave out --link and --image_format keep"
            )
        as_png = self._rules.as_png or not kept
        return free_name(name, as_png=as_png, is_taken=self._journal.is_taken)

    def _finished_row(
        self, told: SourceImage, name: str
    ) -> tuple[dict[str, str], list[tuple[str, str]]]:
        row, problems = dict(told.row), []
        for column, value in (
            ("source", self._rules.source_name),
            ("modality", self._modality),
        ):
            if value and not row.get(column, "").strip():
                row[column] = value
        split = row.get("split", "").strip()
        if split and split not in SPLITS:
            problems.append(("unknown split", f"{split!r} is none of {', '.join(SPLITS)}"))
        if self._rules.patient_pattern is not None:
            found = re.search(self._rules.patient_pattern, told.name)
            row["patient_id"] = found.group(1) if found else ""
            if found is None:
                problems.append(("no patient", f"--patient_pattern does not fit {told.name}"))
        problems += self._write_caption(row, told, name)
        return row, problems

    def _write_caption(
        self, row: dict[str, str], told: SourceImage, name: str
    ) -> list[tuple[str, str]]:
        if self._rules.caption is None:
            return []
        named: Mapping[str, str] = {**row, "file_name": name}
        empty = [field for field in self._fields if not named.get(field, "").strip()]
        if empty:
            return [(f"empty {empty[0]}", f"{told.name}: --caption asks for it")]
        record = make_record(named, told.where, told.path)
        row["text"] = fill_template(record, self._rules.caption)
        return []
