"""The record of a generated data set: one line per attempt, appended as the images come.

The file is a plain CSV with one record per line (no cell holds a line break), so that a line is
either whole or the unfinished last one. Appending costs the same for image 10 and image 50,000.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils.cli import UserError
from utils.run_folder import sha256_file, write_csv

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
FIELDS = ("index", *DATASET_FIELDS, "prompt_sha256", "chroma", "png_sha256")


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Rows of a manifest, in its order; an unfinished last line is left out.

    Raises:
        UserError: If it is not a manifest.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        rows = list(csv.DictReader(io.StringIO(whole.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: damaged: {error}; start anew with --overwrite") from error
    for line, row in enumerate(rows, start=2):
        if tuple(row) != FIELDS or None in row.values() or not row["index"].isdigit():
            raise UserError(f"{path}:{line}: not a line of a manifest; start anew with --overwrite")
    return rows


def whole_images(rows: Iterable[Mapping[str, str]], folder: Path) -> dict[int, dict[str, str]]:
    """Rows whose PNG is there with the bytes that were written, by index of the image."""
    whole = {}
    for row in rows:
        path = folder / row["file_name"]
        if path.is_file() and sha256_file(path) == row["png_sha256"]:
            whole[int(row["index"])] = dict(row)
    return whole


def write_manifest(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a manifest anew, atomically."""
    write_csv(path, rows, FIELDS)


class ManifestWriter:
    """Appends rows to a manifest that exists; what `append` has returned from is on the disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> "ManifestWriter":
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
