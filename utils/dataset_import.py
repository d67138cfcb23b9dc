"""Bring images of any source into a dataset folder: names, copies, captions by template."""

import errno
import os
import re
import shutil
import string
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from utils.cli import UserError
from utils.dataset_records import HubImage, Record
from utils.dicom import is_dicom_stream
from utils.image_files import IMAGE_SUFFIXES, Window, inspect_image, save_png
from utils.images import shrink
from utils.lazy_records import cells
from utils.workers import map_in_processes

_SUFFIX_OF_FORMAT = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "DICOM": ".dcm",
}


def template_fields(template: str) -> list[str]:
    """Columns that a caption template names, e.g. ``["label"]`` of ``"OCT B-scan, {label}"``.

    Raises:
        ValueError: If the braces do not match, or hold more than a column's name.
    """
    fields = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.strip() or spec or conversion or set(name) & set(".[]"):
            raise ValueError(f"{{{name}}} is not the name of a column")
        fields.append(name)
    return fields


def captions_by_template(records: Sequence[Record], template: str) -> list[str]:
    """Fill a template from each record's columns; several labels are joined by ``, ``.

    Raises:
        UserError: If a column is missing or empty somewhere; the text names the rows.
    """
    check_template(records, template)
    return [fill_template(record, template) for record in records]


def check_template(records: Sequence[Record], template: str) -> None:
    """Refuse a template that cannot be filled from every record; see `captions_by_template`."""
    for field in template_fields(template):
        filled = enumerate(cells(records, field))
        empty = array("q", (index for index, cell in filled if not cell.strip()))
        if len(empty) == len(records):
            there = ", ".join(sorted({name for record in records for name in record.row}))
            raise UserError(f"--caption: no row has {{{field}}} (columns: {there})")
        if empty:
            places = ", ".join(records[index].where for index in empty[:10])
            raise UserError(f"--caption: {{{field}}} is empty in {len(empty)} rows: {places}")


def fill_template(record: Record, template: str) -> str:
    """Caption of one record whose columns the template names are filled."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if name == "label":
            parts.append(", ".join(record.labels))
        elif name:
            parts.append(record.row[name].strip())
    return "".join(parts)


def patients_by_pattern(records: Sequence[Record], pattern: str) -> list[str]:
    """Patient of each record: what the first group of a pattern finds in the file name.

    Raises:
        UserError: If the pattern does not fit every name; the text names rows.
    """
    found = [re.search(pattern, record.file_name) for record in records]
    without = [record.file_name for record, match in zip(records, found) if not match]
    if without:
        names = ", ".join(without[:10])
        raise UserError(f"--patient_pattern does not fit {len(without)} names: {names}")
    return [match.group(1) for match in found]


def target_names(records: Sequence[Record], *, as_png: Sequence[bool] | bool) -> list[str]:
    """Names in the new folder: the old relative ones; of absolute ones what they do not share.

    Two images never get one name: ``a.jpg`` and ``a.tif`` become ``a.png`` and ``a_tif.png``.

    Args:
        records: The images.
        as_png: Whether a PNG is written of each, or of all.
    """
    names = [PurePosixPath(record.file_name.replace("\\", "/")) for record in records]
    if any(name.is_absolute() or ".." in name.parts for name in names):
        paths = [PurePosixPath(os.path.realpath(record.source)) for record in records]
        top = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(top) for path in paths]
    taken: set[str] = set()
    targets = []
    each_as_png = repeat(as_png) if isinstance(as_png, bool) else as_png
    for name, record, as_png in zip(names, records, each_as_png):
        if name.suffix.lower() not in IMAGE_SUFFIXES:  # a hub's image has none
            suffix = _SUFFIX_OF_FORMAT[inspect_image(record.image_source).format]
            name = name.with_name(name.name + suffix)
        target = free_name(name, as_png=as_png, is_taken=lambda text: text.lower() in taken)
        taken.add(target.lower())
        targets.append(target)
    return targets


def free_name(name: PurePosixPath, *, as_png: bool, is_taken: Callable[[str], bool]) -> str:
    """A name that no other image has.

    Args:
        name: In the source, with its suffix.
        as_png: Whether the new suffix is PNG's.
        is_taken: Whether another image has a name, whatever the case of its letters: a copy on
            Windows or macOS must not lose one.
    """
    target = name.with_suffix(".png") if as_png else name
    if is_taken(str(target)):
        target = target.with_name(f"{name.stem}_{name.suffix[1:]}{target.suffix}")
    number = 2
    while is_taken(str(target)):
        target = target.with_name(f"{name.stem}_{number}{target.suffix}")
        number += 1
    return str(target)


def transfer_modes(records: Sequence[Record], *, image_format: str | None, link: bool) -> list[str]:
    """How `transfer_images` is to treat each image: a DICOM file never travels as it is.

    Args:
        records: The images.
        image_format: ``keep`` or ``png``; None keeps all but DICOM files.
        link: Whether kept files are linked.

    Raises:
        UserError: If DICOM files are asked to be kept; the text names them.
    """
    if image_format == "png":
        return ["png"] * len(records)
    kept = "link" if link else "copy"
    modes = ["png" if _is_dicom_file(record) else kept for record in records]
    found = [record.file_name for record, mode in zip(records, modes) if mode == "png"]
    if found and (link or image_format == "keep"):
        names = ", ".join(found[:10])
        raise UserError(
            f"{len(found)} DICOM files are written as PNG only, for their tags name the patient; "
            f"leave out --link and --image_format keep: {names}"
        )
    return modes


def _is_dicom_file(record: Record) -> bool:
    source = record.source
    with Path(source).open("rb") if isinstance(source, str) else source.open() as stream:
        return is_dicom_stream(stream)


class _Task(NamedTuple):
    record: Record
    target: str
    mode: str


def _transfer(task: _Task, *, window: Window | None, max_side: int | None) -> None:
    target = Path(task.target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if task.mode == "png":
        image = task.record.image(window=window)
        save_png(image if max_side is None else shrink(image, max_side), target)
    elif isinstance(task.record.source, str) and task.mode == "link":
        hard_link(task.record.source, target)
    elif isinstance(task.record.source, str):
        shutil.copyfile(task.record.source, target)
    else:
        target.write_bytes(task.record.source.open().read())


def hard_link(source: str, target: Path) -> None:
    """Give a file a second name.

    Raises:
        UserError: If the file system, or another one, does not allow it.
    """
    try:
        os.link(os.path.realpath(source), target)  # of the file, not of a link to it
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        raise UserError(
            f"--link: {source} cannot be hard-linked into {target.parent} ({error.strerror}); "
            "leave --link out to copy"
        ) from error


def transfer_images(
    records: Sequence[Record],
    names: Sequence[str],
    folder: Path,
    *,
    mode: Sequence[str] | str,
    window: Window | None = None,
    max_side: int | None = None,
    num_workers: int | None = None,
) -> None:
    """Put the images into a folder under their new names, in parallel.

    Args:
        records: The images.
        names: The new name of each, relative to ``folder``.
        folder: The dataset folder.
        mode: ``copy`` the files' bytes, ``link`` them (one file, two names), or write each as
            8-bit ``png``; of each, or of all.
        window: For ``png``: grey values (low, high) of deeper images that become black and white.
        max_side: For ``png``: longer sides are shrunk to this many pixels.
        num_workers: Processes.

    Raises:
        UserError: If a link is not possible, or an image cannot be windowed.
    """
    modes = repeat(mode) if isinstance(mode, str) else mode
    tasks = [
        _Task(record, str(folder / name), mode) for record, name, mode in zip(records, names, modes)
    ]
    if any(isinstance(record.source, HubImage) for record in records):
        num_workers = 0
    transfer = partial(_transfer, window=window, max_side=max_side)
    map_in_processes(transfer, tasks, description="writing images", num_workers=num_workers)
