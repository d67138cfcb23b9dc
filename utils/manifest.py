"""The record of a generated data set: one line per attempt, appended as the images come.

`manifest.csv` is a plain CSV with one record per line (no cell holds a line break), so that a line
is either whole or the unfinished last one. While a run draws, each process appends to a part of its
own in `manifest_parts/`, which costs the same for image 10 and image 50,000; the first process
merges the parts into `manifest.csv`, in order, between the rounds. In memory is only where each
line lies.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from utils.cli import UserError
from utils.run_folder import write_csv

NAME = "manifest.csv"
PARTS_DIR = "manifest_parts"
_PARTS = f"{PARTS_DIR}/[0-9]*.csv"  # not the temporary names of files that are being made
ACCEPTED, REJECTED, FAILED = "accepted", "rejected", "failed"  # status of an attempt
DUPLICATE = "duplicate"  # the one reason that depends on other images, see `utils.work_plan`

# Columns of metadata.csv, then those that only the manifest has.
DATASET_FIELDS = (
    "file_name",
    "text",
    "label",
    "source",
    "modality",
    "prompt",
    "seed",
    "model",
    "model_hash",
    "sampler",
    "steps",
    "guidance",
    "score",
    "accepted",
    "attempt",
)
FIELDS = (
    "index",
    *DATASET_FIELDS,
    *("status", "reason", "contrast", "chroma", "train_similarity"),
    *("prompt_sha256", "phash", "phash_mirrored", "png_bytes", "png_sha256"),
)

_HASH_CHARS = 64  # of a perceptual hash in hex
ROW = np.dtype(
    [
        ("index", np.int64),
        ("attempt", np.int64),
        ("accepted", np.bool_),
        ("file", np.int64),
        ("offset", np.int64),
        ("length", np.int64),
        ("phash", f"S{_HASH_CHARS}"),
        ("phash_mirrored", f"S{_HASH_CHARS}"),
    ]
)

Row = dict[str, str]


def part_path(folder: Path, *, attempt: int, process: int) -> Path:
    """Where a process records its share of a round."""
    return folder / PARTS_DIR / f"{attempt:03d}-{process:05d}.csv"


def _parse(line: bytes, where: str) -> Row:
    """One line of a manifest.

    Raises:
        UserError: If it is none.
    """
    try:
        [values] = csv.reader([line.decode("utf-8")], strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{where}: damaged: {error}; start anew with --overwrite") from error
    row = dict(zip(FIELDS, values))
    if len(values) != len(FIELDS) or not (row["index"] + row["attempt"]).isdigit():
        raise UserError(f"{where}: not a line of a manifest; start anew with --overwrite")
    return row


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offsets and lines after the header; an unfinished last line is left out."""
    with path.open("rb") as file:
        offset = len(file.readline())
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


class Manifest:
    """The attempts recorded in a folder, in `manifest.csv` and its parts.

    Attributes:
        rows: (R,) of `ROW`, sorted by index and attempt, each attempt once.
    """

    def __init__(self, folder: Path, *, keep: Callable[[Row], bool] | None = None) -> None:
        """Read where the lines lie.

        Args:
            folder: Of the run.
            keep: Which lines count, e.g. those whose picture is there; None for all.

        Raises:
            UserError: If a file is not a manifest.
        """
        self._folder = folder
        parts = sorted(folder.glob(_PARTS))
        self._paths = [path for path in (folder / NAME, *parts) if path.exists()]
        rows = np.fromiter(self._scan(keep), dtype=ROW)
        order = np.lexsort((rows["file"], rows["attempt"], rows["index"]))
        rows = rows[order]
        again = np.zeros(len(rows), bool)
        again[1:] = (np.diff(rows["index"]) == 0) & (np.diff(rows["attempt"]) == 0)
        self.rows = rows[~again]

    def _scan(self, keep: Callable[[Row], bool] | None) -> Iterator[tuple]:
        for number, path in enumerate(self._paths):
            for line_number, (offset, line) in enumerate(_whole_lines(path), start=2):
                row = _parse(line, f"{path}:{line_number}")
                if keep is None or keep(row):
                    yield (
                        int(row["index"]),
                        int(row["attempt"]),
                        row["status"] == ACCEPTED,
                        number,
                        offset,
                        len(line),
                        row["phash"].encode(),
                        row["phash_mirrored"].encode(),
                    )

    def read(self, rows: np.ndarray | None = None) -> Iterator[Row]:
        """The lines of (a selection of) `rows`, one after the other."""
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._paths]
            for row in self.rows if rows is None else rows:
                file = files[row["file"]]
                file.seek(row["offset"])
                line = file.read(row["length"])
                yield _parse(line, f"{self._paths[row['file']]} at byte {row['offset']}")

    def merge(self, change: Callable[[Row], Row] = lambda row: row) -> None:
        """Write all lines to `manifest.csv`, in order, and remove the parts.

        Args:
            change: What becomes of each line.
        """
        write_manifest(self._folder / NAME, map(change, self.read()))
        for path in self._paths:
            if path.name != NAME:
                path.unlink()
        if (self._folder / PARTS_DIR).is_dir():
            (self._folder / PARTS_DIR).rmdir()


def write_manifest(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a manifest anew, atomically."""
    write_csv(path, rows, FIELDS)


class ManifestWriter:
    """Appends rows to a new file; what `append` has returned from is on the disk."""

    def __init__(self, path: Path) -> None:
        write_manifest(path, ())
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Write rows, flush and fsync.

        Raises:
            OSError: If the disk is full; the last line may be unfinished then.
        """
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, FIELDS, restval="", lineterminator="\n")
        writer.writerows(rows)
        data = memoryview(lines.getvalue().encode("utf-8"))
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())


class PartsTail:
    """What all processes have recorded since it was last asked, read from the parts' ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._positions: dict[Path, int] = {}

    def new_rows(self) -> Iterator[Row]:
        """Lines that were not there at the last call."""
        for path in sorted(self._folder.glob(_PARTS)):
            with path.open("rb") as file:
                file.seek(self._positions.get(path, 0))
                whole, end, _ = file.read().rpartition(b"\n")
            lines = whole.splitlines()
            if path not in self._positions:
                lines = lines[1:]  # the header
            self._positions[path] = self._positions.get(path, 0) + len(whole) + len(end)
            yield from (_parse(line, str(path)) for line in lines)
