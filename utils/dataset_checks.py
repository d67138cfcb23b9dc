"""What can be wrong with a table; every check reports all it finds."""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from utils.dataset_records import SPLITS, Problem, Record, Table, split_labels
from utils.dataset_tables import missing_column
from utils.lazy_records import LazyRecords, cells

# Kinds of problem that leave no file to decode.
PATH_KINDS = (
    "empty file name",
    "duplicate row",
    "path outside the folder",
    "missing file",
    "folder",
)

Found = list[tuple[int | None, Problem]]


def in_order_of_rows(found: Found) -> Found:
    """The same, with what concerns no single row first."""
    return sorted(found, key=lambda item: -1 if item[0] is None else item[0])


def check_table(
    table: Table, *, required: Collection[str] = (), filled: Collection[str] = ()
) -> Found:
    """Check everything that needs no pixels.

    Args:
        table: The table.
        required: Columns that must be there and have no empty cell.
        filled: Columns that must have no empty cell if they are there.

    Returns:
        (index of the record or None, problem) for each finding; those of a row in its order.
    """
    found = list(table.problems)
    header_is_bad = not table.columns and bool(table.problems)
    for name in required:
        if name not in table.columns and not header_is_bad:
            found.append((None, missing_column(f"{table.name}:1", name, table.columns)))
    if not table.records and not table.problems:
        found.append((None, Problem(table.name, "no rows", "the table has no image")))
    wanted = [name for name in table.columns if name in required or name in filled]
    by_row = [
        *check_paths(table),
        *check_cells(table.records, wanted),
        *(_check_splits(table.records) if "split" in table.columns else ()),
    ]
    return found + sorted(by_row, key=lambda item: item[0])


def check_cells(records: Sequence[Record], wanted: Collection[str]) -> Found:
    """Find the empty cells of these columns."""
    found: Found = []
    for name in wanted:
        for index, cell in enumerate(cells(records, name)):
            if not (split_labels(cell) if name == "label" else cell.strip()):
                record = records[index]
                found.append((index, Problem(record.where, f"empty {name}", record.file_name)))
    return found


def _check_splits(records: Sequence[Record]) -> Found:
    found: Found = []
    first_seen: dict[str, tuple[str, int]] = {}  # patient: split, index of the record
    pairs = zip(cells(records, "split"), cells(records, "patient_id"))
    for index, (split, patient) in enumerate(pairs):
        split, patient = split.strip(), patient.strip()
        if not split:
            continue
        if split not in SPLITS:
            detail = f"{split!r} is none of {', '.join(SPLITS)}"
            found.append((index, Problem(records[index].where, "unknown split", detail)))
        elif patient:
            first, first_index = first_seen.setdefault(patient, (split, index))
            if first != split:
                detail = (
                    f"patient {patient} is in {split} here "
                    f"and in {first} at {records[first_index].where}"
                )
                problem = Problem(records[index].where, "patient in two splits", detail)
                found.append((index, problem))
    return found


class _Listing:
    """Folders read once each; asking the disk for each of 100,000 files would take minutes."""

    def __init__(self, root: str, *, bounded: bool) -> None:
        self._real_root = os.path.realpath(root)
        self._bounded = bounded
        self._folders: dict[str, dict[str, os.DirEntry] | None] = {}

    def _inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return not self._bounded or os.path.commonpath((real, self._real_root)) == self._real_root

    def _entries(self, folder: str) -> dict[str, os.DirEntry] | None:
        """Entries of a folder; None if it is not there, or a link leads out of the root."""
        if folder not in self._folders:
            entries = None
            if Path(folder).is_dir() and self._inside(folder):
                with os.scandir(folder) as scan:
                    entries = {entry.name: entry for entry in scan}
            self._folders[folder] = entries
        return self._folders[folder]

    def trouble(self, path: str) -> tuple[str, str] | None:
        """Kind and detail of what is wrong with a path; None if it is a file where it should be."""
        folder, name = os.path.split(path)
        entries = self._entries(folder or ".")
        if entries is None:
            if Path(folder).is_dir():
                return "path outside the folder", "a link in it leads out of the data set"
            return "missing file", f"there is no folder {folder}"
        entry = entries.get(name)
        if entry is None:
            return "missing file", _near_miss(name, entries)
        if entry.is_symlink() and not self._inside(path):
            return "path outside the folder", "it is a link that leads out of the data set"
        if entry.is_dir():
            return "folder", "a folder, not a file"
        return None if entry.is_file() else ("missing file", "not a file, or a link to nothing")


def _near_miss(name: str, entries: Iterable[str]) -> str:
    if "\\" in name:
        return "it has backslashes; write folders with /"
    same = [entry for entry in entries if entry.lower() == name.lower()]
    return f"there is {same[0]}: case matters" if same else "no such file"


def name_trouble(name: str) -> str | None:
    """What is wrong with a name that must stay within a folder; None if it does."""
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        return "the path is absolute; it must be relative to the data set"
    if ".." in PureWindowsPath(name).parts:
        return "the path goes up with .."
    return None


def check_paths(table: Table) -> Found:
    """Check the file names, and that there is a file of each; those of a tar are in it."""
    if isinstance(table.records, LazyRecords) and table.records.names_are_checked:
        return []
    found: Found = []
    first_seen: dict[str, str] = {}
    listing = _Listing(str(table.root or "."), bounded=not table.foreign)
    for index, record in enumerate(table.records):
        name = record.file_name
        before = len(first_seen)
        first_where = first_seen.setdefault(os.path.normpath(name), record.where)
        outside = None if table.foreign else name_trouble(name)
        if not name.strip():
            found.append((index, Problem(record.where, "empty file name", "no image is named")))
        elif len(first_seen) == before:
            detail = f"{name} is at {first_where} already"
            found.append((index, Problem(record.where, "duplicate row", detail)))
        elif outside is not None:
            detail = f"{name}: {outside}"
            found.append((index, Problem(record.where, "path outside the folder", detail)))
        elif "\0" in name:
            found.append((index, Problem(record.where, "missing file", "a NUL in the name")))
        elif isinstance(record.source, str):
            trouble = listing.trouble(record.source)
            if trouble is not None:
                kind, detail = trouble
                found.append((index, Problem(record.where, kind, f"{name}: {detail}")))
    return found
