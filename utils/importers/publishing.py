"""The end of an import: tables beside the images, then the finished folder into its place."""

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.dataset_records import split_labels
from utils.dataset_tables import COLUMN_ORDER
from utils.importers import verdict
from utils.importers.journal import Entry, Journal
from utils.importers.layout import Layout
from utils.run_folder import fsync, get_logger, write_csv, write_options

# In the folder where an import is made.
DATASET_NAME = "dataset"
JOURNAL_NAME = "journal.sqlite"
RESULT_NAME = "result.json"  # there only if all else is complete
INDEX_NAME = "tables.sqlite"
# All that an import makes there; SQLite's own files beside the journal are named after it. The
# options go last: as long as they are there, a deletion that was stopped can be repeated.
_OWN_FILES = (f"{JOURNAL_NAME}*", f"{INDEX_NAME}*", RESULT_NAME, "options.json")
OUTPUTS = (f"{DATASET_NAME}/**/*", *_OWN_FILES)

_logger = get_logger("import")


def write_tables(
    journal: Journal,
    dataset: Path,
    args: argparse.Namespace,
    layout: Layout,
    *,
    is_private: bool,
) -> dict:
    """Write metadata.csv, options.json and the list of skipped rows; delete what is not to stay.

    Args:
        journal: Judged.
        dataset: The folder with the images.
        args: The parsed flags.
        layout: Of the source.
        is_private: Whether the source's own names tell who the patients are; then the skipped
            rows are counted, not listed.

    Returns:
        The result, for whoever started the import.
    """
    for name in journal.leftovers():
        (dataset / name).unlink(missing_ok=True)
    _remove_empty_folders(dataset)
    kinds = dict(sorted(verdict.count_problems(journal).items()))
    if kinds and not is_private:
        problems = (problem._asdict() for problem in journal.problems())
        write_csv(dataset / "skipped.csv", problems, ("where", "kind", "message"))
    columns, labels, num_rows = _survey(journal.sound(), layout.columns)
    write_csv(dataset / "metadata.csv", _rows(journal.sound(), columns), columns)
    notes = verdict.depth_notes(journal)
    for note in notes:
        _logger.info("%s", note)
    facts = {"layout": layout.name, "rows": num_rows, "skipped_kinds": kinds, "notes": notes}
    write_options(dataset, args, **facts)
    skipped = verdict.count_skipped(journal)
    return {"output_dir": args.output_dir, **facts, "skipped": skipped, "labels": labels}


def _survey(entries: Iterable[Entry], known: Iterable[str]) -> tuple[list[str], list[str], int]:
    """Columns that are filled somewhere, in order; the distinct labels; the number of rows."""
    filled: set[str] = set()
    cells: set[str] = set()
    num_rows = 0
    for entry in entries:
        num_rows += 1
        filled.update(name for name, cell in entry.row.items() if cell.strip())
        cells.add(entry.row.get("label", ""))
    first = [name for name in COLUMN_ORDER if name in filled]
    others = [name for name in known if name in filled and name not in COLUMN_ORDER]
    unknown = filled - {*first, *others}
    assert not unknown, f"columns that the layout does not tell of: {sorted(unknown)}"
    labels = sorted({label for cell in cells for label in split_labels(cell)})
    return ["file_name", *first, *others], labels, num_rows


def _rows(entries: Iterable[Entry], columns: Iterable[str]) -> Iterator[dict[str, str]]:
    for entry in entries:
        row = {"file_name": entry.name, **entry.row}
        yield {name: row.get(name, "") for name in columns}


def _remove_empty_folders(top: Path) -> None:
    for path, _, _ in os.walk(top, topdown=False):
        folder = Path(path)
        if folder != top and not any(folder.iterdir()):
            folder.rmdir()


def put_in_place(folder: Path, output_dir: Path) -> dict:
    """Rename the finished folder; the journal, with the key of the pseudonyms, goes first."""
    place = output_dir.resolve()  # a link stays one: the folder it names is replaced
    result = json.loads((folder / RESULT_NAME).read_text(encoding="utf-8"))
    (folder / JOURNAL_NAME).unlink(missing_ok=True)
    if (folder / DATASET_NAME).exists():
        if hasattr(os, "sync"):
            os.sync()  # once for all files: one by one takes 5 ms each on a busy disk
        (folder / DATASET_NAME).replace(place)
    discard(folder)
    if os.name == "posix":
        fsync(place.parent)
    return result


def discard(folder: Path) -> None:
    """Delete what an import made in its folder; the folder too if nothing else lies in it."""
    if (folder / DATASET_NAME).exists():
        shutil.rmtree(folder / DATASET_NAME)
    for pattern in _OWN_FILES:
        for path in folder.glob(pattern):
            path.unlink()
    others = sorted(path.name for path in folder.iterdir())
    if others:
        _logger.warning("%s stays: it holds what is not the import's: %s", folder, others[0])
    else:
        folder.rmdir()
