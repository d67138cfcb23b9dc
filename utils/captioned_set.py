"""The dataset folder of scans whose reports a model wrote: manifest, images, metadata.csv.

Whatever reads the folder can tell a model's text from a doctor's: ``text_source`` is ``generated``
in every row. ``metadata.csv`` has what is accepted, ``manifest.csv`` every scan.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.captioner import Written
from utils.cli import UserError
from utils.dataset import Record, write_dataset
from utils.dataset_import import target_names, transfer_images
from utils.line_text import fold_spaces, text_problem
from utils.run_folder import write_csv

MANIFEST = "manifest.csv"
TEXT_SOURCE = "generated"
# What a scan brings with it; a column that the source has not is not made.
PASSED_ON = ("label", "patient_id", "split", "source", "modality")

_IMAGES_DIR = "images"
_ARRIVING_DIR = "arriving"  # holds copies until they are whole
OUTPUTS = (
    *(f"{_IMAGES_DIR}/[0-9]*.*", f"{_ARRIVING_DIR}/{_IMAGES_DIR}/[0-9]*.*", "journal/*.jsonl"),
    *("metadata.csv", MANIFEST, "report.html", "results.json"),
)
_MANIFEST_FIELDS = ("file_name", "source_file_name", "text", "confidence", "accepted")


def is_accepted(report: Written, min_confidence: float | None) -> bool:
    """Whether a report is good enough for the set; an unusable one never is."""
    sure = min_confidence is None or report.confidence >= min_confidence
    return sure and is_usable(report.text)


def is_usable(text: str) -> bool:
    """Whether a text can stand in a data set: neither empty nor with control characters."""
    text = fold_spaces(text)
    return bool(text) and text_problem(text) is None


def read_manifest(folder: Path, num_scans: int) -> dict[int, Written]:
    """What a finished run recorded, by the scan's index; empty if none finished.

    Raises:
        UserError: If the manifest is not one of as many scans.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        found = [Written(row["text"], float(row["confidence"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); start anew with --overwrite") from error
    if len(found) != num_scans:
        raise UserError(
            f"{path}: {len(found)} rows for {num_scans} scans; start anew with --overwrite"
        )
    return dict(enumerate(found))


def publish(
    folder: Path,
    records: Sequence[Record],
    reports: Sequence[Written],
    *,
    min_confidence: float | None,
    provenance: Mapping[str, str],
    num_workers: int,
) -> None:
    """Bring the accepted scans into the folder and write its tables, metadata.csv last.

    Args:
        folder: Of the set.
        records: All scans, as the source has them.
        reports: One of each.
        min_confidence: See `is_accepted`.
        provenance: Columns that are the same in every row: which model wrote.
        num_workers: Processes that copy images.
    """
    (folder / "metadata.csv").unlink(missing_ok=True)  # no data set while its images change
    accepted = [is_accepted(report, min_confidence) for report in reports]
    names = [name if kept else "" for name, kept in zip(_image_names(records), accepted)]
    _remove_others(folder, set(names))
    _bring_missing(folder, records, names, num_workers=num_workers)
    write_csv(
        folder / MANIFEST,
        map(_manifest_row, records, names, reports),
        _MANIFEST_FIELDS,
    )
    rows = [
        _dataset_row(record, name, report) | provenance
        for record, name, report in zip(records, names, reports)
        if name
    ]
    if rows:
        write_dataset(folder, rows)


def _image_names(records: Sequence[Record]) -> list[str]:
    """Names in the folder: a scan's index, whatever the source's names tell of patients."""
    suffixes = (Path(name).suffix for name in target_names(records, as_png=False))
    return [f"{_IMAGES_DIR}/{index:06d}{suffix}" for index, suffix in enumerate(suffixes)]


def _manifest_row(record: Record, name: str, report: Written) -> dict[str, str]:
    return {
        "file_name": name,
        "source_file_name": record.file_name,
        "text": report.text,
        "confidence": f"{report.confidence:.3f}",
        "accepted": "true" if name else "false",
    }


def _dataset_row(record: Record, name: str, report: Written) -> dict[str, str]:
    return {
        "file_name": name,
        "text": report.text,
        **{column: record.row[column] for column in PASSED_ON if column in record.row},
        "text_source": TEXT_SOURCE,
        "confidence": f"{report.confidence:.3f}",
        "accepted": "true",
    }


def _remove_others(folder: Path, names: set[str]) -> None:
    """Delete images that are not of the set (any more)."""
    for path in (folder / _IMAGES_DIR).glob("*"):
        if f"{_IMAGES_DIR}/{path.name}" not in names:
            path.unlink()


def _bring_missing(
    folder: Path, records: Sequence[Record], names: Sequence[str], *, num_workers: int
) -> None:
    """Copy the images that are not there yet; one that is there is whole, for it was renamed.

    They are copies: of a hard link's two names either changes both files, and a source that is
    edited later would no longer be what the reports were written for.
    """
    arriving = folder / _ARRIVING_DIR
    if arriving.exists():  # of a run that was killed
        shutil.rmtree(arriving)
    missing = [
        (record, name)
        for record, name in zip(records, names)
        if name and not (folder / name).exists()
    ]
    if not missing:
        return
    scans, new_names = zip(*missing)
    transfer_images(scans, new_names, arriving, mode="copy", num_workers=num_workers)
    (folder / _IMAGES_DIR).mkdir(exist_ok=True)
    for name in new_names:
        (arriving / name).replace(folder / name)
    shutil.rmtree(arriving)
