"""WebDataset shards: tar files whose members belong together by name, ``0001.png 0001.txt``.

Only the headers and the small members are read, once; an image is kept as its offset in the tar,
in an index on disk, so a set larger than the memory (and than a table of its pixels) can be listed.
"""

import glob
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from utils.cli import UserError
from utils.dataset_checks import check_paths
from utils.dataset_records import Columns, Problem, Table, TarImage, make_record
from utils.dataset_tables import cell_text, decode_utf8, final_columns, project_names
from utils.image_files import IMAGE_SUFFIXES
from utils.shard_index import FOLDER_NAME, find_index, stamp_of, write_index
from utils.shard_records import ShardRecords
from utils.workers import iterate_in_processes

_TEXT_SUFFIX, _LABEL_SUFFIX, _ROW_SUFFIX = ".txt", ".cls", ".json"
_SMALL_SUFFIXES = (_TEXT_SUFFIX, _LABEL_SUFFIX, _ROW_SUFFIX)
_BRACE_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_SMALL_BYTES = 1 << 20  # a report has some thousand bytes; more is a mistake or an attack
_MIN_BYTES_FOR_PROCESSES = 64 << 20  # scanned in less time than the workers take to start


class _Member(NamedTuple):
    name: str
    suffix: str
    offset: int
    size: int


def expand_shards(pattern: str) -> list[Path]:
    """Shards of ``a.tar``, ``*.tar`` or ``shard-{000..012}.tar``, in order of name.

    Raises:
        UserError: If there is none, or one of a range is missing.
    """
    found = _BRACE_RANGE.search(pattern)
    if found:
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        names = [f"{number:0{len(first)}d}" for number in numbers]
        paths = [Path(pattern[: found.start()] + name + pattern[found.end() :]) for name in names]
    elif Path(pattern).is_file():
        paths = [Path(pattern)]
    else:
        paths = [Path(name) for name in sorted(glob.glob(pattern))]  # noqa: PTH207 (any root)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        raise UserError(f"{pattern}: no such shard{': ' + ', '.join(missing) if missing else ''}")
    return paths


class _Task(NamedTuple):
    shard: Path
    columns: Columns


def read_shards(pattern: str, columns: Columns) -> Table:
    """Read the table of all shards that a pattern names; its records are lazy.

    Shards without an index that fits them are scanned, in parallel (see `utils.shard_index`).

    Args:
        pattern: A tar, a glob or a brace range of tars, uncompressed.
        columns: Names in the ``.json`` members. ``.txt`` is the text, ``.cls`` the label.
    """
    shards = expand_shards(pattern)
    found = [find_index(shard, columns) for shard in shards]
    tasks = [_Task(shard, columns) for shard, index in zip(shards, found) if index is None]
    if tasks:
        options = {"description": "indexing shards", "unit": "shard", "chunk_size": 1}
        size = sum(task.shard.stat().st_size for task in tasks)
        if size < _MIN_BYTES_FOR_PROCESSES:
            options["num_workers"] = 0
        for _ in iterate_in_processes(_make_index, tasks, total=len(tasks), **options):
            pass
        found = [index or find_index(shard, columns) for shard, index in zip(shards, found)]
    changed = [str(shard) for shard, index in zip(shards, found) if index is None]
    if changed:
        raise UserError(f"{changed[0]}: changed while it was read; start again when it is whole")
    name = shards[0].name if len(shards) == 1 else f"{len(shards)} shards"
    table = Table(root=shards[0].parent, name=name)
    first = 0
    for index, problems in found:
        table.problems += [(row if row is None else first + row, each) for row, each in problems]
        first += index.num_rows
    indexes = [index for index, _ in found]
    elsewhere = sorted({Path(index.path).parent for index in indexes} - _folders_beside(shards))
    if elsewhere:
        table.notes.append(
            f"the shards' folder takes no index: what their samples say is in {elsewhere[0]}"
        )
    table.records = ShardRecords(indexes)
    table.columns = tuple(dict.fromkeys(name for index in indexes for name in index.columns))
    return table


def _folders_beside(shards: list[Path]) -> set[Path]:
    return {shard.parent / FOLDER_NAME for shard in shards}


def _make_index(task: _Task) -> None:
    """Scan one shard, check its names, and write its index."""
    shard, columns = task
    stamp = stamp_of(shard)
    table = Table(root=shard.parent, name=shard.name)
    try:
        with shard.open("rb") as file:
            for key, members in _samples(shard):
                _append_sample(table, shard, file, key, members, columns=columns)
    except tarfile.TarError as error:
        detail = f"{error} (shards must be whole and not compressed)"
        table.problems.append((None, Problem(shard.name, "broken tar", detail)))
    write_index(shard, columns, stamp, table.records, table.problems + check_paths(table))


def _samples(shard: Path) -> Iterator[tuple[str, list[_Member]]]:
    """Members that lie together and share a key: the name up to its first dot."""
    key, members = None, []
    with tarfile.open(shard, "r:") as tar:
        for info in tar:
            tar.members.clear()  # a million headers would stay in memory
            name = PurePosixPath(info.name)
            if not info.isfile() or name.name.startswith("."):
                continue
            stem = name.name.split(".")[0]
            suffix = name.name[len(stem) :].lower()
            member_key = (name.parent / stem).as_posix()
            if members and member_key != key:
                yield key, members
                members = []
            key = member_key
            members.append(_Member(info.name, suffix, info.offset_data, info.size))
        end = tar.offset  # tarfile takes a damaged header for the end, too
        tar.fileobj.seek(end)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"neither a member nor the archive's end at byte {end}")
    if members:
        yield key, members


def _append_sample(
    table: Table,
    shard: Path,
    file: BinaryIO,
    key: str,
    members: list[_Member],
    *,
    columns: Columns,
) -> None:
    where = f"{shard.name}:{key}"
    images = [member for member in members if member.suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        detail = f"{len(images)} images under one key" if images else "no image under this key"
        table.problems.append((None, Problem(where, "broken row", detail)))
        return
    row, problems = _row_of(file, where, members, columns)
    row["file_name"] = f"{shard.stem}/{images[0].name}"
    for problem in problems:
        table.problems.append((len(table.records), problem))
    source = TarImage(str(shard), images[0].offset, images[0].size, 0)
    table.records.append(make_record(row, where, source))


def _row_of(
    file: BinaryIO, where: str, members: list[_Member], columns: Columns
) -> tuple[dict[str, str], list[Problem]]:
    row: dict[str, str] = {}
    problems = []
    for member in members:
        if member.suffix not in _SMALL_SUFFIXES:
            continue
        if member.size > _MAX_SMALL_BYTES:
            detail = f"{member.name} has {member.size} bytes, the limit is {_MAX_SMALL_BYTES}"
            problems.append(Problem(where, "broken row", detail))
            continue
        file.seek(member.offset)
        text, problem = decode_utf8(file.read(member.size), f"{Path(file.name).name}:{member.name}")
        if problem is not None:  # of this row only, not of the table
            problems.append(Problem(problem.where, "broken row", f"not UTF-8: {problem.message}"))
        elif member.suffix == _TEXT_SUFFIX:
            row["text"] = text
        elif member.suffix == _LABEL_SUFFIX:
            row["label"] = text.strip()
        else:
            problems += _add_json(row, text, where, columns)
    return row, problems


def _add_json(row: dict[str, str], text: str, where: str, columns: Columns) -> list[Problem]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        return [Problem(where, "broken row", f"not JSON: {error}")]
    if not isinstance(values, dict):
        return [Problem(where, "broken row", "not a JSON object")]
    renamed, _ = project_names(list(values), columns)
    for old, new in zip(values, final_columns(list(values), renamed)):
        if new is not None and new != "file_name":
            row.setdefault(new, cell_text(values[old]))
    return []
