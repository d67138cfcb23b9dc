"""Data sets: one reader for every source, one format written.

Every script reads through `load_dataset` and writes through `write_dataset`. A dataset folder is
images and a ``metadata.csv`` (UTF-8) that names them relative to the folder; plain
`datasets.load_dataset("imagefolder", data_dir=...)` reads it too.
"""

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from utils.dataset_checks import PATH_KINDS, Found, check_table, in_order_of_rows
from utils.dataset_pixels import DUPLICATE, PixelReport, judge_pixels, read_pixels
from utils.dataset_records import (
    SPLITS,
    TABLE_KINDS,
    USUAL_COLUMNS,
    Columns,
    DatasetError,
    Problem,
    Record,
    Table,
    split_labels,
)
from utils.dataset_sources import read_source
from utils.dataset_tables import write_dataset
from utils.lazy_records import LazyRecords, cells, take
from utils.run_folder import get_logger

__all__ = [
    "SPLITS",
    "Dataset",
    "DatasetError",
    "Examination",
    "Problem",
    "Record",
    "accept",
    "examine_dataset",
    "load_dataset",
    "write_dataset",
]

_logger = get_logger("dataset")


class Dataset(Sequence[Record]):
    """Records known to be sound.

    Attributes:
        records: In the order of the table; of shards they are built when asked for.
        root: Folder of the data set; None for one from the hub.
        skipped: One problem per row that ``skip_invalid`` dropped.
        notes: What is no problem but should be told, e.g. how 16-bit images are windowed.
    """

    def __init__(
        self,
        records: Iterable[Record],
        root: Path | None,
        skipped: Iterable[Problem] = (),
        notes: Iterable[str] = (),
    ) -> None:
        self.records = records if isinstance(records, LazyRecords) else tuple(records)
        self.root = root
        self.skipped = tuple(skipped)
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @cached_property
    def labels(self) -> list[str]:
        """The distinct labels, sorted."""
        distinct = set(cells(self.records, "label"))
        return sorted({label for cell in distinct for label in split_labels(cell)})

    @cached_property
    def multi_label(self) -> bool:
        """Whether an image has more than one label."""
        distinct = set(cells(self.records, "label"))
        return any(len(split_labels(cell)) > 1 for cell in distinct)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the records' columns, in order, as hex; the pixels are not in it."""
        if isinstance(self.records, LazyRecords):
            return self.records.fingerprint
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(json.dumps(sorted(record.row.items())).encode())
        return digest.hexdigest()

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """Sizes of the runs of images that lie in one shard; None where there are no shards."""
        return self.records.blocks if isinstance(self.records, LazyRecords) else None

    def select(self, indices: Iterable[int]) -> "Dataset":
        """A data set of the records at these indices, in this order."""
        return Dataset(take(self.records, indices), self.root, self.skipped, self.notes)


class Examination(NamedTuple):
    """A source with everything found out about it, sound or not.

    Attributes:
        table: What was read.
        problems: (index of the record or None, problem), in the order of the rows.
        kept: Indices of the records of the wanted split.
        pixels: What decoding told, by index of the record; empty if it was not to be kept.
        notes: What is no problem but should be told.
    """

    table: Table
    problems: Found
    kept: Sequence[int]
    pixels: dict[int, PixelReport]
    notes: list[str]


def examine_dataset(
    source: Path | str,
    *,
    columns: Columns = USUAL_COLUMNS,
    split: str | None = None,
    required: Collection[str] = (),
    filled: Collection[str] = (),
    with_pixels: bool = True,
    keep_pixels: bool = True,
    num_workers: int | None = None,
    digest_dir: Path | None = None,
    offline: bool = False,
) -> Examination:
    """Read and check a source; nothing that is wrong with its rows raises.

    Args:
        source: See `load_dataset`, also for ``split``.
        columns: The user's column names.
        required: Columns that must be there and be filled.
        filled: Columns that must be filled if they are there.
        with_pixels: Decode every image.
        keep_pixels: Keep what decoding told, some 400 bytes an image; else its problems only.
        num_workers: Processes that decode.
        digest_dir: See `load_dataset`.
        offline: Forbid downloads.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    table = read_source(source, columns, offline=offline)
    problems = check_table(table, required=required, filled=filled)
    kept: Sequence[int] = range(len(table.records))
    if split is not None and "split" in table.columns:
        given = enumerate(cells(table.records, "split"))
        kept = array("q", (index for index, cell in given if cell.strip() == split))
        if not kept and len(table.records):
            problems.append((None, Problem(table.name, "no rows", f"none in split {split}")))
    if not with_pixels:
        return Examination(table, problems, kept, {}, table.notes)
    lost = {index for index, problem in problems if problem.kind in PATH_KINDS}
    checked = _without(kept, lost)
    records, pixels = take(table.records, checked), {}
    memory = None
    if digest_dir is not None:
        from utils.pixel_digests import DigestMemory  # imports torch, which not every script needs

        memory = DigestMemory(digest_dir, records)
    reports = read_pixels(records, num_workers=num_workers, memory=memory)
    if keep_pixels:
        pixels = dict(zip(checked, reports, strict=True))
        reports = iter(pixels.values())
    found, depth_notes = judge_pixels(records, reports)
    problems = problems + [(checked[place], problem) for place, problem in found]
    problems = in_order_of_rows(problems)
    return Examination(table, problems, kept, pixels, table.notes + depth_notes)


def _without(indices: Sequence[int], dropped: Collection[int | None]) -> Sequence[int]:
    """The indices that are not dropped; 8 bytes each, or none if all stay."""
    if not dropped:
        return indices
    return array("q", (index for index in indices if index not in dropped))


def load_dataset(
    source: Path | str,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    split: str | None = None,
    require_text: bool = False,
    require_label: bool = False,
    check_pixels: bool = True,
    allow_duplicates: bool = False,
    skip_invalid: bool = False,
    num_workers: int | None = None,
    digest_dir: Path | None = None,
    offline: bool = False,
) -> Dataset:
    """Read a data set and check all of it before anything else happens.

    Args:
        source: Anything `utils.dataset_sources.read_source` knows.
        image_column: The user's name of ``file_name``; likewise the next three of ``text``,
            ``label``, ``patient_id``. The records have the project's names.
        caption_column: See above.
        label_column: See above.
        patient_column: See above.
        split: Keep train, val or test, if there is a column ``split``. Tables are checked in
            whole, pixels in this split only.
        require_text: Whether an empty text is a problem.
        require_label: Whether an image without label is a problem.
        check_pixels: Decode every image once, in parallel; finds broken files and duplicates.
            Of several processes that train together one should check.
        allow_duplicates: Whether equal pixels are counted in a note instead of being a problem,
            as for a generator's output, whose repeats are to be judged, not refused.
        skip_invalid: Drop the rows with a problem, and log how many; else they raise.
        num_workers: Processes that decode; default: one per core.
        digest_dir: Folder where hashes of pixels are remembered (`utils.pixel_digests`), so that
            the next check decodes only files that are new or changed.
        offline: Forbid downloads.

    Raises:
        DatasetError: With all problems at once, file and line.
        UserError: If the source does not exist.
    """
    examination = examine_dataset(
        source,
        columns=Columns(image_column, caption_column, label_column, patient_column),
        split=split,
        required=["text"] * require_text + ["label"] * require_label,
        with_pixels=check_pixels,
        keep_pixels=False,
        num_workers=num_workers,
        digest_dir=digest_dir,
        offline=offline,
    )
    if allow_duplicates:
        examination = _with_duplicates(examination)
    return accept(examination, source, skip_invalid=skip_invalid)


def _with_duplicates(examination: Examination) -> Examination:
    """The same with equal pixels told in a note, not as problems."""
    others = [item for item in examination.problems if item[1].kind != DUPLICATE]
    count = len(examination.problems) - len(others)
    notes = [f"{count} images have the pixels of an earlier one"] if count else []
    return examination._replace(problems=others, notes=[*examination.notes, *notes])


def accept(examination: Examination, source: object, *, skip_invalid: bool) -> Dataset:
    """Data set of an examined source; raises and logs as `load_dataset` says."""
    table, problems = examination.table, examination.problems
    fatal = any(problem.kind in TABLE_KINDS for _, problem in problems)
    if problems and (fatal or not skip_invalid):
        raise DatasetError(source, [problem for _, problem in problems])
    bad = {index for index, _ in problems}
    sound = take(table.records, _without(examination.kept, bad))
    if not sound:
        nothing = Problem(table.name, "no rows", "nothing is left after dropping these")
        raise DatasetError(source, [*(problem for _, problem in problems), nothing])
    skipped = _one_per_row(problems)
    for note in examination.notes:
        _logger.info("%s: %s", source, note)
    if skipped:
        _logger.warning("%s: %d rows dropped, first: %s", source, len(skipped), skipped[0])
    return Dataset(sound, table.root, skipped, examination.notes)


def _one_per_row(problems: Found) -> list[Problem]:
    seen: dict[object, Problem] = {}
    for index, problem in problems:
        seen.setdefault(problem.where if index is None else index, problem)
    return list(seen.values())
