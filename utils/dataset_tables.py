"""The table of a data set: read metadata.csv or .jsonl, or a CSV of the user's own; write one."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from utils.cli import UserError
from utils.dataset_records import Columns, Problem, Table, make_record
from utils.run_folder import write_csv

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
COLUMN_ORDER = ("file_name", "text", "label", "patient_id", "split", "source", "modality")

# Header names that are understood without being told; the first found is taken. `Text,ImagePath`
# is what the first release wrote, `path,Text,modality` is MINIM's, `image` is diffusers'.
_USUAL_NAMES = {
    "file_name": ("file_name", "ImagePath", "path", "image"),
    "text": ("text", "Text"),
    "label": ("label",),
    "patient_id": ("patient_id",),
}


def project_names(header: Sequence[str], columns: Columns) -> tuple[dict[str, str], list[str]]:
    """Match a header with the project's columns.

    Args:
        header: The table's column names.
        columns: What the user said about them.

    Returns:
        ``{the table's name: the project's name}``, and the names that were asked for in vain.
    """
    renamed, missing = {}, []
    asked = dict(zip(_USUAL_NAMES, columns))
    for project_name, usual in _USUAL_NAMES.items():
        candidates = usual if asked[project_name] is None else (asked[project_name],)
        found = next((name for name in candidates if name in header), None)
        if found is not None:
            renamed[found] = project_name
        elif asked[project_name] is not None:
            missing.append(asked[project_name])
        elif project_name == "file_name":
            missing.append(" or ".join(usual))
    return renamed, missing


def final_columns(header: Sequence[str], renamed: dict[str, str]) -> list[str | None]:
    """New name of each column; None for one whose name the project's column has taken."""
    taken = set(renamed.values())
    return [renamed.get(name, None if name in taken else name) for name in header]


def decode_utf8(data: bytes, name: str) -> tuple[str, Problem | None]:
    """Decode a text file, with or without BOM; the problem names line and byte."""
    bom = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    try:
        return data[bom:].decode("utf-8"), None
    except UnicodeDecodeError as error:
        start = bom + error.start
        line = data.count(b"\n", 0, start) + 1
        column = start - data.rfind(b"\n", 0, start)
        return "", Problem(
            f"{name}:{line}",
            "not UTF-8",
            f"byte 0x{data[start]:02x} at position {column} of the line; "
            "save the table as UTF-8 (Excel: 'CSV UTF-8')",
        )


class _BrokenCsvError(Exception):
    def __init__(self, line: int, reason: csv.Error) -> None:
        super().__init__(f"{reason}; nothing from this row on was read (a quote left open?)")
        self.line = line


def _csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line it starts in."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _BrokenCsvError(line, error) from error
        if values:
            yield line, values
        line = reader.line_num + 1


def _fill_from_csv(table: Table, text: str, columns: Columns) -> None:
    rows = _csv_rows(text)
    try:
        _, header = next(rows, (1, []))
        header = [name.strip() for name in header]
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            problem = Problem(f"{table.name}:1", "repeated column", ", ".join(repeated))
            table.problems.append((None, problem))
        renamed, missing = project_names(header, columns)
        for name in missing:
            problem = missing_column(f"{table.name}:1", name, header)
            table.problems.append((None, problem))
        if missing or repeated:
            return
        names = final_columns(header, renamed)
        table.columns = tuple(name for name in names if name is not None)
        _append_rows(table, rows, names)
    except _BrokenCsvError as error:
        problem = Problem(f"{table.name}:{error.line}", "broken CSV", str(error))
        table.problems.append((None, problem))


def missing_column(where: str, name: str, header: Sequence[str]) -> Problem:
    """The problem of a column that is not there, naming those that are."""
    return Problem(where, "missing column", f"{name} (columns: {', '.join(header) or 'none'})")


def _append_rows(
    table: Table, rows: Iterator[tuple[int, list[str]]], names: list[str | None]
) -> None:
    for line, values in rows:
        where = f"{table.name}:{line}"
        if len(values) != len(names):
            detail = f"{len(values)} fields, the header has {len(names)}"
            table.problems.append((None, Problem(where, "broken row", detail)))
            continue
        row = dict(zip(names, values))
        row.pop(None, None)
        table.records.append(make_record(row, where, _source(table, row)))


def _fill_from_jsonl(table: Table, text: str, columns: Columns) -> None:
    seen: dict[str, None] = {}
    for line, content in enumerate(text.split("\n"), start=1):
        where = f"{table.name}:{line}"
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except json.JSONDecodeError as error:
            table.problems.append((None, Problem(where, "broken row", f"not JSON: {error}")))
            continue
        if not isinstance(values, dict):
            table.problems.append((None, Problem(where, "broken row", "not a JSON object")))
            continue
        renamed, missing = project_names(list(values), columns)
        if missing:
            table.problems.append((None, Problem(where, "missing column", ", ".join(missing))))
            continue
        row = {
            new: cell_text(values[old])
            for old, new in zip(values, final_columns(list(values), renamed))
            if new is not None
        }
        seen.update(dict.fromkeys(row))
        table.records.append(make_record(row, where, _source(table, row)))
    table.columns = tuple(seen)


def _source(table: Table, row: dict[str, str]) -> str:
    return os.path.join(table.root, row["file_name"])  # noqa: PTH118 (100,000 Paths take seconds)


def cell_text(value: object) -> str:
    """A JSON value as a cell: lists joined by ``;``, null empty."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ";".join(cell_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_table(path: Path, columns: Columns, *, foreign: bool) -> Table:
    """Read a CSV (or metadata.jsonl); the images are not looked at.

    Args:
        path: The table. Relative names in it are relative to its folder.
        columns: Names of the user's columns.
        foreign: Whether it may name images outside its folder.
    """
    table = Table(root=path.parent, name=path.name, foreign=foreign)
    text, problem = decode_utf8(path.read_bytes(), path.name)
    if problem is not None:
        table.problems.append((None, problem))
        return table
    fill = _fill_from_jsonl if path.suffix == ".jsonl" else _fill_from_csv
    fill(table, text, columns)
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return str(value)


def write_dataset(
    folder: Path | str,
    rows: Iterable[Mapping[str, object]],
    *,
    fieldnames: Sequence[str] | None = None,
) -> Path:
    """Write ``metadata.csv``, atomically; the images it names should be there already.

    Args:
        folder: The dataset folder.
        rows: One per image, with ``file_name`` relative to the folder. None is an empty cell, a
            list of labels is joined by ``;``.
        fieldnames: All columns, if the rows do not show them; the usual ones always come first.

    Returns:
        The path of the table.

    Raises:
        UserError: If a row has no ``file_name``, or one that leads out of the folder.
    """
    rows = [{key: _cell(value) for key, value in row.items()} for row in rows]
    seen = dict.fromkeys(("file_name", *(fieldnames or ())))
    for number, row in enumerate(rows, start=1):
        name = row.get("file_name", "")
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"row {number}: file_name {name!r} is not a path within {folder}")
        seen.update(dict.fromkeys(row))
    columns = [name for name in COLUMN_ORDER if name in seen]
    columns += [name for name in seen if name not in COLUMN_ORDER]
    path = Path(folder) / "metadata.csv"
    write_csv(path, rows, columns)
    return path
