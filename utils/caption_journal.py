"""The record of reports while they are written: one line per scan, appended batch by batch.

Each process of each start appends to a part of its own, so that nobody ever writes behind a line
that a killed process left unfinished. A line is JSON and holds no line break, whatever the report.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from utils.captioner import Written
from utils.cli import UserError
from utils.run_folder import fsync

JOURNAL_DIR = "journal"
_PARTS = f"{JOURNAL_DIR}/[0-9]*-[0-9]*.jsonl"
_LOOK_EVERY_S = 1.0


def next_start(folder: Path) -> int:
    """Number of a start that has no part yet."""
    taken = [int(path.name.split("-")[0]) for path in folder.glob(_PARTS)]
    return max(taken, default=-1) + 1


def part_path(folder: Path, *, start: int, process: int) -> Path:
    """Where a process records what it writes after a start."""
    return folder / JOURNAL_DIR / f"{start:04d}-{process:05d}.jsonl"


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a part; an unfinished last one is left out."""
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def read_journal(folder: Path) -> dict[int, Written]:
    """What all starts have recorded, by the scan's index; of a scan written twice the first.

    Raises:
        UserError: If a line is none of a journal.
    """
    found: dict[int, Written] = {}
    for path in sorted(folder.glob(_PARTS)):
        for number, line in enumerate(_whole_lines(path), start=1):
            try:
                entry = json.loads(line)
                written = Written(entry["text"], entry["confidence"])
                found.setdefault(entry["index"], written)
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}:{number}: damaged ({error}); start anew with --overwrite"
                ) from error
    return found


def remove_journal(folder: Path) -> None:
    """Delete all parts."""
    for path in folder.glob(_PARTS):
        path.unlink()
    if (folder / JOURNAL_DIR).is_dir():
        (folder / JOURNAL_DIR).rmdir()


class JournalWriter:
    """Appends to a new part; what `append` has returned from is on the disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("xb", buffering=0)
        fsync(path.parent)

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, indices: Iterable[int], reports: Iterable[Written]) -> None:
        """Write a batch's reports, flush and fsync.

        Raises:
            OSError: If the disk is full; the last line may be unfinished then.
        """
        entries = (
            {"index": index, "text": report.text, "confidence": report.confidence}
            for index, report in zip(indices, reports, strict=True)
        )
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        data = memoryview(lines.encode("utf-8"))
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())


class JournalProgress:
    """A progress bar of what all processes record after one start; one process shows it."""

    def __init__(self, folder: Path, start: int, *, total: int, num_todo: int, shown: bool) -> None:
        """Show the bar.

        Args:
            folder: Of the run.
            start: Number of the start.
            total: Scans of the run.
            num_todo: Scans that were not recorded before.
            shown: Whether this process shows it; else all of this does nothing.
        """
        self._folder, self._pattern = folder, f"{JOURNAL_DIR}/{start:04d}-*.jsonl"
        self._positions: dict[Path, int] = {}
        self._looked = 0.0
        options = {"unit": "scan", "desc": "writing reports", "initial": total - num_todo}
        self._bar = tqdm(total=total, **options) if shown else None

    def __enter__(self) -> JournalProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self.update(now=True)
            self._bar.close()

    def update(self, *, now: bool = False) -> None:
        """Look at what was recorded since the last time, at most once a second unless ``now``."""
        if self._bar is None or (not now and time.monotonic() - self._looked < _LOOK_EVERY_S):
            return
        for path in self._folder.glob(self._pattern):
            with path.open("rb") as file:
                file.seek(self._positions.get(path, 0))
                data = file.read()
            self._positions[path] = self._positions.get(path, 0) + len(data)
            self._bar.update(data.count(b"\n"))
        self._looked = time.monotonic()
