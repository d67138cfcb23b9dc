"""Joins of large tables with flat memory: rows are kept in an SQLite file, found by key."""

import csv
import gzip
import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from utils.cli import UserError
from utils.dataset_records import Problem

_KEY_SEPARATOR = "\x1f"  # ASCII's own unit separator, which no table's cell holds
_CACHE_KIB = 8192


def stream_table(
    path: Path,
    required: Sequence[str],
    *,
    delimiter: str = ",",
    broken: Callable[[int, str], object] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV or CSV.GZ file that are not blank, each with the line it starts in.

    The header is read at once, the rows as they are asked for. A row with too few fields has
    empty cells at its end.

    Args:
        path: UTF-8, with or without BOM; compressed if its name ends in ``.gz``.
        required: Columns that must be there.
        delimiter: Between the fields.
        broken: Called with the line of a row with more fields than the header and with what is
            wrong; the row is left out. None: such a row is an error.

    Raises:
        UserError: If a column is missing or there twice, the text is not UTF-8, a quote is left
            open, or the compressed file is damaged; see ``broken``.
    """
    rows = _rows(path, delimiter)
    header = _header(rows)
    missing = [name for name in required if name not in header]
    if missing:
        there = ", ".join(header) or "none"
        way_out = _other_delimiter(header)
        raise UserError(f"{path}: no column {', '.join(missing)} (columns: {there}){way_out}")
    counts = Counter(name for name in header if name)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"{path}: repeated column: {', '.join(twice)}; rename one in the header")
    return _as_dicts(path, header, rows, broken)


def table_columns(path: Path, *, delimiter: str = ",") -> list[str]:
    """Names of a table's columns; see `stream_table`."""
    return _header(_rows(path, delimiter))


def _header(rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    _, header = next(rows, (1, []))
    return [name.strip() for name in header]


def _other_delimiter(header: list[str]) -> str:
    """The way out of a header that is one column, for something else stands between its fields."""
    for delimiter, name in ((";", ";"), ("\t", "tabs")):
        if len(header) == 1 and delimiter in header[0]:
            return f"; it is separated by {name}: save it with commas"
    return ""


def _as_dicts(
    path: Path,
    header: list[str],
    rows: Iterator[tuple[int, list[str]]],
    broken: Callable[[int, str], object] | None,
) -> Iterator[tuple[int, dict[str, str]]]:
    for line, values in rows:
        if len(values) > len(header):
            trouble = f"{len(values)} fields, the header has {len(header)}; a text with the "
            trouble += "separator in it needs quotes"
            if broken is None:
                raise UserError(f"{path}:{line}: {trouble}")
            broken(line, trouble)
            continue
        yield line, dict(zip(header, values + [""] * (len(header) - len(values))))


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    open_text = gzip.open if path.name.lower().endswith(".gz") else open
    line = 1
    try:
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            for values in reader:
                if values:
                    yield line, values
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8, after line {line}: {error.reason}; save it as CSV UTF-8"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path}:{line}: {error} (a quote left open?)") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged, copy it again: {error}") from error


class Lookup:
    """The rows of one table, found by their key."""

    def __init__(self, connection: sqlite3.Connection, table: str, names: Sequence[str]) -> None:
        self._connection = connection
        self._names = tuple(names)
        self._keys = f"SELECT DISTINCT key FROM {table}"
        self._select = f"SELECT cells FROM {table} WHERE key = ? ORDER BY number"

    def get(self, *key: str) -> dict[str, str] | None:
        """The first row of a key; None if there is none."""
        found = self._connection.execute(f"{self._select} LIMIT 1", (_joined(key),)).fetchone()
        return None if found is None else self._row(found[0])

    def distinct_keys(self) -> Iterator[str]:
        """Each key once; of several columns they are joined."""
        yield from (key for (key,) in self._connection.execute(self._keys))

    def all(self, *key: str) -> list[dict[str, str]]:
        """All rows of a key, in the order of the table."""
        found = self._connection.execute(self._select, (_joined(key),))
        return [self._row(cells) for (cells,) in found]

    def _row(self, cells: str) -> dict[str, str]:
        return dict(zip(self._names, json.loads(cells)))


def _joined(key: Iterable[str]) -> str:
    return _KEY_SEPARATOR.join(key)


class TableIndex:
    """Tables in one SQLite file, which is scratch: made anew, and deleted by whoever made it."""

    def __init__(self, path: Path) -> None:
        """Open a new file; an old one of that name is deleted."""
        path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = OFF")  # nothing of it outlives a crash
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._num_tables = 0
        self._problems: list[Problem] = []
        self._told: set[str] = set()

    def __enter__(self) -> "TableIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def stream(
        self, path: Path, required: Sequence[str], *, delimiter: str = ","
    ) -> Iterator[tuple[int, dict[str, str]]]:
        """As `stream_table`; broken rows are kept for `take_problems`, each once."""
        broken = partial(self._keep_problem, path.name)
        return stream_table(path, required, delimiter=delimiter, broken=broken)

    def _keep_problem(self, name: str, line: int, trouble: str) -> None:
        where = f"{name}:{line}"
        if where not in self._told:  # some tables are loaded and streamed
            self._told.add(where)
            self._problems.append(Problem(where, "broken row", trouble))

    def take_problems(self) -> list[Problem]:
        """The broken rows since the last call, of all tables."""
        found, self._problems = self._problems, []
        return found

    def load(
        self,
        path: Path,
        key: Sequence[str],
        *,
        values: Sequence[str] | None = None,
        delimiter: str = ",",
    ) -> Lookup:
        """Read a table once, so that its rows are found by key; several rows may have one key.

        Broken rows are left out and kept for `take_problems`.

        Args:
            path: As of `stream_table`.
            key: Columns that together are the key.
            values: Columns to keep; default: all.
            delimiter: Between the fields.

        Raises:
            UserError: As `stream_table`.
        """
        rows = self.stream(path, (*key, *(values or ())), delimiter=delimiter)
        first = next(rows, None)
        names = list(values) if values is not None else list(first[1]) if first else []
        table = f"table_{self._num_tables}"
        self._num_tables += 1
        self._connection.execute(f"CREATE TABLE {table} (number INTEGER PRIMARY KEY, key, cells)")
        self._connection.execute("BEGIN")
        self._connection.executemany(
            f"INSERT INTO {table} (key, cells) VALUES (?, ?)",
            (
                (_joined(row[name] for name in key), json.dumps([row[name] for name in names]))
                for _, row in _chain(first, rows)
            ),
        )
        self._connection.execute("COMMIT")
        self._connection.execute(f"CREATE INDEX {table}_keys ON {table} (key)")
        return Lookup(self._connection, table, names)


def _chain(first, rest: Iterator) -> Iterator:
    if first is not None:
        yield first
        yield from rest
