"""The bricks of a data set: one record, one problem, a table of both."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from utils.cli import UserError
from utils.image_files import Window, read_image

SPLITS = ("train", "val", "test")
MAX_LISTED_PROBLEMS = 50
MAX_OPEN_TARS = 128  # per process; the usual limit of open files is 1,024

# Kinds of problem that dropping rows does not cure.
TABLE_KINDS = ("missing column", "repeated column", "not UTF-8", "broken CSV", "no rows")


class _OpenFile:
    """A file descriptor, closed when nobody holds it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


@lru_cache(maxsize=MAX_OPEN_TARS)
def _open_tar(path: str, mtime_ns: int) -> _OpenFile:
    file = _OpenFile(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
    if os.fstat(file.descriptor).st_mtime_ns != mtime_ns:
        raise UserError(f"{path}: the shard has changed since it was listed; start again")
    return file


class TarImage(NamedTuple):
    """An image inside an uncompressed tar: where its bytes are, not the bytes.

    Attributes:
        tar: Path of the tar.
        offset: Of the image's first byte.
        size: In bytes.
        mtime_ns: When the tar was changed last; it must not change again.
    """

    tar: str
    offset: int
    size: int
    mtime_ns: int

    def open(self) -> BytesIO:
        """Read the member's bytes; the tar stays open for the next.

        Reading at an offset moves no file position, so forked processes and threads may share it.
        """
        if not hasattr(os, "pread"):  # Windows
            with Path(self.tar).open("rb") as stream:
                stream.seek(self.offset)
                return BytesIO(stream.read(self.size))
        file = _open_tar(self.tar, self.mtime_ns)  # held here, or another thread might evict it
        return BytesIO(os.pread(file.descriptor, self.size, self.offset))


class HubImage(NamedTuple):
    """An image in a column of a `datasets` table, stored encoded (``decode=False``)."""

    table: Any
    index: int
    column: str

    def open(self) -> BytesIO:
        """Read the image's bytes."""
        cell = self.table[self.index][self.column]
        return BytesIO(cell["bytes"] or Path(cell["path"]).read_bytes())


class Problem(NamedTuple):
    """One thing wrong: where (``metadata.csv:17``), of which kind, in words."""

    where: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.message}"


class DatasetError(UserError):
    """Everything that is wrong with a data set; the text lists it with file and line.

    Attributes:
        problems: All of them, in the order of the table.
    """

    def __init__(self, source: object, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(_describe(source, self.problems))


def _describe(source: object, problems: Sequence[Problem]) -> str:
    kinds = Counter(problem.kind for problem in problems)
    return describe_problems(source, problems[:MAX_LISTED_PROBLEMS], kinds)


def describe_problems(source: object, first: Sequence[Problem], kinds: Counter[str]) -> str:
    """Say what is wrong with a data set: the first problems in full, and how many of each kind."""
    total = kinds.total()
    lines = [f"{source}: {total} problem{'s' * (total != 1)}"]
    lines += [f"  {problem}" for problem in first]
    if total > len(first):
        lines.append(f"  ... and {total - len(first)} more; in all:")
        lines += [f"  {count:8d}  {kind}" for kind, count in kinds.most_common()]
    if "missing column" in kinds:
        lines.append("Name a column with --image_column, --caption_column or --label_column.")
    if kinds.keys().isdisjoint(TABLE_KINDS):
        lines.append("Repair them, or drop the affected rows with --skip_invalid.")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Record:
    """One image with what is known about it.

    Attributes:
        file_name: Name within the data set, with forward slashes.
        text: Finding or report; empty if there is none.
        labels: Diagnoses; several for a multi-label image, none if unknown.
        patient_id: None if not given.
        split: train, val or test; None if not given.
        row: All columns as text.
        where: File and line the record stands in, for messages.
        source: Path of the file, or what opens the image's bytes.
    """

    file_name: str
    text: str
    labels: tuple[str, ...]
    patient_id: str | None
    split: str | None
    row: Mapping[str, str]
    where: str
    source: str | TarImage | HubImage

    @property
    def path(self) -> Path | None:
        """The image's file; None for an image in a tar or on the hub."""
        return Path(self.source) if isinstance(self.source, str) else None

    def image(self, *, window: Window | None = None) -> Image.Image:
        """Decode the image to mode ``L`` or ``RGB`` (see `utils.image_files.read_image`)."""
        name = self.source if isinstance(self.source, str) else self.file_name
        return read_image(self.image_source, window=window, name=name)

    @property
    def image_source(self):
        """What `read_image` takes: a path, or a function that opens the bytes."""
        return self.source if isinstance(self.source, str) else self.source.open


@dataclass(slots=True)
class Table:
    """A source as it was read, before it is known to be sound.

    Attributes:
        root: Folder that the file names are relative to; None for a hub data set.
        name: What messages call the table, e.g. ``metadata.csv``.
        columns: The columns that exist, by the project's names (``text``, ``label``, ...) where
            they have one.
        records: One per row that could be read: a list while a reader fills it, or lazy.
        problems: (index of the record, problem); the index is None if a row could not be read
            or no single row is to blame.
        notes: What is no problem but should be told.
        foreign: Whether the table is a CSV of the user's own, which may point anywhere.
    """

    root: Path | None
    name: str
    columns: tuple[str, ...] = ()
    records: Sequence[Record] = field(default_factory=list)
    problems: list[tuple[int | None, Problem]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    foreign: bool = False


class Columns(NamedTuple):
    """Names of the user's columns; None takes the usual ones."""

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    patient: str | None = None


USUAL_COLUMNS = Columns()


def make_record(row: Mapping[str, str], where: str, source: str | TarImage | HubImage) -> Record:
    """Record of a row whose columns have the project's names."""
    return Record(
        file_name=row["file_name"],
        text=row.get("text", "").strip(),
        labels=split_labels(row.get("label", "")),
        patient_id=row.get("patient_id", "").strip() or None,
        split=row.get("split", "").strip() or None,
        row=row,
        where=where,
        source=source,
    )


def split_labels(cell: str) -> tuple[str, ...]:
    """``"DME; DRUSEN"`` to ``("DME", "DRUSEN")``, in order, each once."""
    return tuple(dict.fromkeys(name for part in cell.split(";") if (name := part.strip())))
