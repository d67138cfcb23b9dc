"""What can be wrong with a table and with its pixels; every check reports all it finds."""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from utils.dataset_records import SPLITS, HubImage, Problem, Record, Table
from utils.dataset_tables import missing_column
from utils.image_files import ImageError, ImageInfo, Window, decode, pixel_hash, to_8bit
from utils.image_files import value_window as window_of
from utils.workers import map_in_processes

MIN_SIDE_PX = 8  # one latent of Stable Diffusion's VAE

# Kinds of problem that leave no file to decode.
PATH_KINDS = (
    "empty file name",
    "duplicate row",
    "path outside the folder",
    "missing file",
    "folder",
)

Found = list[tuple[int | None, Problem]]


class PixelReport(NamedTuple):
    """What decoding one image told; ``kind`` and ``detail`` are set if it failed."""

    info: ImageInfo | None = None
    hash: str = ""
    window: Window | None = None
    kind: str = ""
    detail: str = ""


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
        *_check_paths(table),
        *_check_cells(table.records, wanted),
        *_check_splits(table.records),
    ]
    return found + sorted(by_row, key=lambda item: item[0])


def _check_cells(records: Sequence[Record], wanted: Collection[str]) -> Found:
    found: Found = []
    for index, record in enumerate(records):
        for name in wanted:
            cell = record.row.get(name, "")
            if not (record.labels if name == "label" else cell.strip()):
                found.append((index, Problem(record.where, f"empty {name}", record.file_name)))
    return found


def _check_splits(records: Sequence[Record]) -> Found:
    found: Found = []
    first_seen: dict[str, Record] = {}
    for index, record in enumerate(records):
        if record.split is None:
            continue
        if record.split not in SPLITS:
            detail = f"{record.split!r} is none of {', '.join(SPLITS)}"
            found.append((index, Problem(record.where, "unknown split", detail)))
        elif record.patient_id is not None:
            first = first_seen.setdefault(record.patient_id, record)
            if first.split != record.split:
                detail = (
                    f"patient {record.patient_id} is in {record.split} here "
                    f"and in {first.split} at {first.where}"
                )
                found.append((index, Problem(record.where, "patient in two splits", detail)))
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


def _name_trouble(name: str) -> str | None:
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        return "the path is absolute; it must be relative to the data set"
    if ".." in PureWindowsPath(name).parts:
        return "the path goes up with .."
    return None


def _check_paths(table: Table) -> Found:
    found: Found = []
    first_seen: dict[str, Record] = {}
    listing = _Listing(str(table.root or "."), bounded=not table.foreign)
    for index, record in enumerate(table.records):
        name = record.file_name
        first = first_seen.setdefault(os.path.normpath(name), record)
        outside = None if table.foreign else _name_trouble(name)
        if not name.strip():
            found.append((index, Problem(record.where, "empty file name", "no image is named")))
        elif first is not record:
            detail = f"{name} is at {first.where} already"
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


def report_pixels(source) -> PixelReport:
    """Decode one image in full and tell what it is."""
    try:
        image, info = decode(source)
        window = window_of(image)
        digest = pixel_hash(to_8bit(image, window))
    except ImageError as error:
        return PixelReport(kind=error.kind, detail=error.detail)
    return PixelReport(info=info, hash=digest, window=window)


def read_pixels(records: Sequence[Record], *, num_workers: int | None = None) -> list[PixelReport]:
    """Decode every image, in parallel, with a progress bar on stderr.

    Args:
        records: The images.
        num_workers: Processes; 0 decodes here. Default: one per core, and none for few images.
    """
    if any(isinstance(record.source, HubImage) for record in records):
        num_workers = 0  # the hub's table would be copied to the workers with every image
    sources = [record.image_source for record in records]
    return map_in_processes(
        report_pixels, sources, description="checking pixels", num_workers=num_workers
    )


def judge_pixels(
    indexed: Sequence[tuple[int, Record]], reports: Sequence[PixelReport]
) -> tuple[Found, list[str]]:
    """Judge decoded images.

    Args:
        indexed: (index in the table, record) of each image.
        reports: What `read_pixels` told of them, in the same order.

    Returns:
        The problems, by row, and notes on bit depths.
    """
    found: Found = []
    first_seen: dict[str, Record] = {}
    for (index, record), report in zip(indexed, reports):
        name = record.file_name
        if report.info is None:
            problem = Problem(record.where, report.kind, f"{name}: {report.detail}")
            found.append((index, problem))
            continue
        if min(report.info.width, report.info.height) < MIN_SIDE_PX:
            size = f"{report.info.width} x {report.info.height} px, at least {MIN_SIDE_PX} needed"
            found.append((index, Problem(record.where, "too small", f"{name}: {size}")))
            continue
        first = first_seen.setdefault(report.hash, record)
        if first is not record:
            detail = f"{name} has the pixels of {first.file_name} at {first.where}"
            if first.split != record.split:
                detail += f", which is in split {first.split}, this in {record.split}"
            found.append((index, Problem(record.where, "duplicate pixels", detail)))
    return found, _depth_notes(indexed, reports)


def _depth_notes(
    indexed: Sequence[tuple[int, Record]], reports: Sequence[PixelReport]
) -> list[str]:
    windowed, shortened = [], []
    for (_, record), report in zip(indexed, reports):
        if report.window is not None:
            low, high = report.window
            windowed.append(f"{record.file_name} {low:g}..{high:g}")
        elif report.info is not None and report.info.bit_depth > 8:
            shortened.append(record.file_name)
    notes = []
    if windowed:
        notes.append(
            f"{len(windowed)} images are deeper than 8 bits: each is windowed by its own DICOM "
            f"window or its smallest and largest value (first: {windowed[0]}); for one window "
            "for all, import with --image_format png --window LOW HIGH"
        )
    if shortened:
        notes.append(
            f"{len(shortened)} colour images are deeper than 8 bits: the upper 8 are used "
            f"(first: {shortened[0]})"
        )
    return notes
