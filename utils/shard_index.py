"""The index of a shard: what its samples say and where their images lie, in one file beside it.

A shard is scanned once; its index is an Arrow file that is memory-mapped, so that a set of any size
can be listed in little memory. It lies in ``.index`` beside the shards, which no reader takes for
data, or where that cannot be written, in the user's cache folder. One that does not fit the shard's
size and time of change, or the names of columns asked for, is made anew.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from utils.cli import UserError
from utils.dataset_records import Columns, Problem, Record, TarImage
from utils.run_folder import atomic_path

FOLDER_NAME = ".index"
OPEN_INDEXES = 128  # mapped at once; each holds a file descriptor, as each open tar does

_VERSION = 1  # of what an index holds; another is made anew
_FACTS = b"shard"  # key of our entry in the schema's metadata
_FIXED = 3  # the first columns: what messages call the sample, offset and size of its image
_ROW_TYPE = pa.large_string()  # string would end at 2 GiB of text

IndexedProblems = Sequence[tuple[int | None, Problem]]


class Stamp(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    mtime_ns: int


class ShardIndex(NamedTuple):
    """One shard's index.

    Attributes:
        shard: Path of the tar.
        path: Path of the index.
        stamp: Of the tar when it was scanned.
        num_rows: Samples in it.
        columns: Columns that at least one sample has.
        digest: SHA-256 of the rows, as hex.
    """

    shard: str
    path: str
    stamp: Stamp
    num_rows: int
    columns: tuple[str, ...]
    digest: str


def stamp_of(path: Path | str) -> Stamp:
    """Size and time of the last change."""
    found = Path(path).stat()
    return Stamp(found.st_size, found.st_mtime_ns)


def hash_rows(rows) -> str:
    """SHA-256 of rows, in order, as hex."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(sorted(row.items())).encode())
    return digest.hexdigest()


def index_paths(shard: Path, columns: Columns) -> list[Path]:
    """Where a shard's index may lie: beside it, then in the user's cache folder."""
    names = hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:8]
    place = hashlib.sha256(os.fsencode(shard.parent.resolve())).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folders = (shard.parent / FOLDER_NAME, Path(cache) / "oct-sd" / "index" / place)
    return [folder / f"{shard.name}.{names}.arrow" for folder in folders]


def find_index(shard: Path, columns: Columns) -> tuple[ShardIndex, IndexedProblems] | None:
    """A shard's index that still fits it, and what is wrong with the shard; None if there is none.

    Args:
        shard: The tar.
        columns: Names in its ``.json`` members.

    Returns:
        The index, and (row, problem) for each finding; the row is None if the sample has none.
    """
    stamp = stamp_of(shard)
    for path in index_paths(shard, columns):
        try:
            schema, num_rows = _read_schema(path)
            facts = json.loads(schema.metadata[_FACTS])
        except (OSError, pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError):
            continue  # not there, or damaged
        if facts["version"] == _VERSION and Stamp(*facts["stamp"]) == stamp:
            columns_there = tuple(schema.names[_FIXED:])
            index = ShardIndex(
                str(shard), str(path), stamp, num_rows, columns_there, facts["digest"]
            )
            return index, [(row, Problem(*rest)) for row, *rest in facts["problems"]]
    return None


def _read_schema(path: Path) -> tuple[pa.Schema, int]:
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        return batch.schema, batch.num_rows


def write_index(
    shard: Path,
    columns: Columns,
    stamp: Stamp,
    records: Sequence[Record],
    problems: IndexedProblems,
) -> None:
    """Write a shard's index, atomically, to the first place that takes it.

    Args:
        shard: The tar.
        columns: Names in its ``.json`` members.
        stamp: Of the tar before it was scanned.
        records: Its samples.
        problems: (index in ``records`` or None, problem) for each finding.

    Raises:
        UserError: If it can be written nowhere.
    """
    rows = [record.row for record in records]
    names = dict.fromkeys(name for row in rows for name in row)
    facts = {
        "version": _VERSION,
        "stamp": stamp,
        "digest": hash_rows(rows),
        "problems": [(row, *problem) for row, problem in problems],
    }
    fields = [("where", _ROW_TYPE), ("offset", pa.int64()), ("size", pa.int64())]
    schema = pa.schema(
        [*fields, *((name, _ROW_TYPE) for name in names)], {_FACTS: json.dumps(facts)}
    )
    arrays = [
        pa.array([record.where for record in records], _ROW_TYPE),
        pa.array([record.source.offset for record in records], pa.int64()),
        pa.array([record.source.size for record in records], pa.int64()),
        *(pa.array([row.get(name) for row in rows], _ROW_TYPE) for name in names),
    ]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    reasons = []
    for path in index_paths(shard, columns):
        try:
            if path.parent.name != FOLDER_NAME:  # a copy of captions away from the shards
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as file:
                file.write_batch(batch)
        except OSError as error:
            reasons.append(f"{path.parent}: {error.strerror or error}")
        else:
            return
    raise UserError(
        f"{shard}: its index can be written nowhere ({'; '.join(reasons)}); "
        "name a folder that can be written with XDG_CACHE_HOME"
    )


@lru_cache(maxsize=OPEN_INDEXES)
def _open_arrays(path: str, stamp: Stamp) -> list[pa.Array]:
    try:
        # No threads: a data loader's worker is a fork, in which the parent's do not run.
        options = pa.ipc.IpcReadOptions(use_threads=False)
        batch = pa.ipc.open_file(pa.memory_map(path), options=options).get_batch(0)
        stored = Stamp(*json.loads(batch.schema.metadata[_FACTS])["stamp"])
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: the index is gone or damaged; start again") from error
    if stored != stamp:
        raise UserError(f"{path}: its shard has changed since this run began; start again")
    return batch.columns


def read_row(index: ShardIndex, row: int) -> tuple[dict[str, str], str, TarImage]:
    """A sample's columns, what messages call it, and its image."""
    cells = [array[row].as_py() for array in _open_arrays(index.path, index.stamp)]
    return _sample(index, cells)


def read_rows(index: ShardIndex, rows) -> list[tuple[dict[str, str], str, TarImage]]:
    """The same of several rows, (n,) int64, faster than one by one."""
    columns = [_pick(array, rows) for array in _open_arrays(index.path, index.stamp)]
    return [_sample(index, cells) for cells in zip(*columns)]


def _pick(array: pa.Array, rows) -> list:
    # Not `Array.take`, nor anything that makes an Arrow array of NumPy's: these import pandas.
    first = int(rows.min())
    values = array.slice(first, int(rows.max()) - first + 1).to_pylist()
    return [values[place] for place in (rows - first).tolist()]


def _sample(index: ShardIndex, cells: Sequence) -> tuple[dict[str, str], str, TarImage]:
    where, offset, size, *values = cells
    row = {name: value for name, value in zip(index.columns, values) if value is not None}
    return row, where, TarImage(index.shard, offset, size, index.stamp.mtime_ns)


def read_cells(index: ShardIndex, column: str, rows) -> list[str]:
    """One column of the given rows, (n,) int64; empty where a row does not have it."""
    if column not in index.columns:
        return [""] * len(rows)
    array = _open_arrays(index.path, index.stamp)[_FIXED + index.columns.index(column)]
    return [cell or "" for cell in _pick(array, rows)]
