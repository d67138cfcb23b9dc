"""Rows that stand in no CSV (a list of names, JSON lines) as a `table_index.Lookup`."""

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from utils.cli import UserError
from utils.importers.table_index import Lookup, TableIndex


def index_rows(
    index: TableIndex, rows: Iterable[Mapping[str, object]], *, columns: Sequence[str]
) -> Lookup:
    """Load rows, as they stream, so that they are found by their first column.

    Args:
        index: Where to.
        rows: Column names to cells; other keys are left out, None is an empty cell.
        columns: The columns; the first is the key.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return index.load(path, columns[:1])


def json_lines(path: Path) -> Iterator[dict[str, object]]:
    """Objects of a file with one JSON object per line.

    Raises:
        UserError: If a line is none; the text names it.
    """
    with path.open(encoding="utf-8") as stream:
        for line, text in enumerate(stream, start=1):
            try:
                value = json.loads(text) if text.strip() else {}
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{line}: not JSON: {error}") from error
            if not isinstance(value, dict):
                raise UserError(f"{path}:{line}: not a JSON object")
            if value:
                yield value
