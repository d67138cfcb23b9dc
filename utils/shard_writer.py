"""Finished pictures into WebDataset shards: tars of a .json, a .png and a .txt for each.

A shard is made of the loose PNGs, which are deleted once it is on the disk: at no time is a picture
nowhere, and at most one shard's pictures are there twice. Its bytes depend on the pictures and
their rows alone (no times, no owners), and it is read by `utils.dataset_shards`, `datasets`
and webdataset.
"""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.cli import UserError
from utils.manifest import DATASET_FIELDS
from utils.run_folder import atomic_path, fsync

SHARD_PATTERN = "[0-9][0-9][0-9][0-9][0-9].tar"
IMAGE_FOLDER = "images"  # of the loose pictures


def pack_shards(
    folder: Path, rows: Iterable[Mapping[str, str]], *, per_shard: int, num_images: int
) -> list[Path]:
    """Move accepted pictures into ``00000.tar``, ``00001.tar`` and so on; a killed call goes on.

    Args:
        folder: Holds the pictures, and gets the shards.
        rows: Of the accepted pictures in order of their index, with the columns
            ``DATASET_FIELDS``; the same in every call. ``file_name`` is ``images/<index>.png``.
        per_shard: Pictures in a shard; the last one may have fewer.
        num_images: How many rows there are.

    Returns:
        All shards, in order. ``images/`` is gone if nothing else was in it.

    Raises:
        UserError: If a shard that is there has other pictures than the rows say.
        FileNotFoundError: If a picture is neither loose nor in its shard.
    """
    shards = []
    rows = iter(rows)
    with tqdm(total=num_images, unit="image", desc="packing shards") as progress:
        for number in count():
            chunk = list(islice(rows, per_shard))
            if not chunk:
                break
            shard = folder / f"{number:05d}.tar"
            _pack(shard, folder, chunk)
            shards.append(shard)
            progress.update(len(chunk))
    surplus = sorted(set(folder.glob(SHARD_PATTERN)) - set(shards))
    if surplus:
        raise _foreign(surplus[0])
    with contextlib.suppress(OSError):  # not empty, or gone before
        (folder / IMAGE_FOLDER).rmdir()
    return shards


def packed_names(folder: Path) -> dict[str, int]:
    """Pictures in a folder's whole shards: ``images/<index>.png`` to size in bytes.

    Headers are read, not pixels. A shard that is cut off or damaged counts as not there:
    `pack_shards` makes it anew of the pictures drawn again.
    """
    names = {}
    for shard in sorted(folder.glob(SHARD_PATTERN)):
        for name, size in (_members(shard) or {}).items():
            if name.endswith(".png"):
                names[f"{IMAGE_FOLDER}/{name}"] = size
    return names


def _pack(shard: Path, folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    members = _members(shard) if shard.exists() else None
    if members is None:
        _write_shard(shard, folder, rows)
    else:
        expected = {f"{_key(row)}{suffix}" for row in rows for suffix in (".json", ".png", ".txt")}
        if members.keys() != expected:
            raise _foreign(shard)
        # Whoever renamed it may have been killed before its name was on the disk.
        fsync(shard)
        if os.name == "posix":  # Windows cannot open a folder
            fsync(folder)
    for row in rows:
        (folder / row["file_name"]).unlink(missing_ok=True)


def _key(row: Mapping[str, str]) -> str:
    return PurePosixPath(row["file_name"]).stem


def _write_shard(shard: Path, folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with (
        atomic_path(shard) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row in rows:
            for suffix, data in _sample(folder, row):
                info = tarfile.TarInfo(_key(row) + suffix)  # time, user and group are 0
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _sample(folder: Path, row: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of a picture's members, in order of name."""
    # Not the file's name: the reader gives it another, by shard and key.
    values = {name: row[name] for name in DATASET_FIELDS if name != "file_name"}
    yield ".json", json.dumps(values, ensure_ascii=False).encode("utf-8")
    yield ".png", (folder / row["file_name"]).read_bytes()
    yield ".txt", row["text"].encode("utf-8")


def _members(shard: Path) -> dict[str, int] | None:
    """Name and size of each member; None if the tar is not whole."""
    members = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                members[info.name] = info.size
            end = tar.offset  # tarfile takes a damaged header for the end, too
            tar.fileobj.seek(end)
            rest = tar.fileobj.read(2 * tarfile.RECORDSIZE)
    except tarfile.TarError:
        return None
    # Two blocks of zeros end a tar, more of them fill up its last record.
    padded = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return members if rest == bytes(padded - end) else None


def _foreign(shard: Path) -> UserError:
    return UserError(
        f"{shard}: holds other images than manifest.csv says; delete it and start the same command "
        "again (its images are drawn anew), or all with --overwrite"
    )
