"""A copy of a data set without what gives persons away: texts with tags, masked images as PNG."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.burnt_in_text import TextBox, find_text
from utils.caption_privacy import Finding, redact
from utils.dataset_import import target_names
from utils.dataset_records import Record
from utils.image_files import save_png
from utils.privacy_check import Cell, PictureReport
from utils.pseudonyms import MIN_KEY_BYTES, Pseudonyms
from utils.workers import map_in_processes

_GROW_SHARE = 0.3  # of a line's height: strokes have soft edges and letters tails
_MORE_ROUNDS = 2  # what stood too near to a line to be told from it shows once this is masked
_FRAME_PX = 3  # width of the frame whose median grey fills a mask
_MAX_CROP_SHARE = 0.3  # of a side; text further inside is masked, not cut off

Area = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Margins:
    """What happens to the margins of an image.

    Attributes:
        sizes: Pixels on top, at the right, at the bottom and at the left; None for the text that
            was found.
        crop: Whether they are cut off; else filled.
    """

    sizes: tuple[int, int, int, int] | None
    crop: bool


class _Task(NamedTuple):
    record: Record
    boxes: tuple[TextBox, ...]
    target: str


def clean_rows(
    records: Sequence[Record],
    by_cell: Mapping[Cell, Sequence[Finding]],
    *,
    key: bytes | None,
    rename: bool,
) -> list[dict[str, str]]:
    """Rows of the clean table.

    Args:
        records: The rows as they are.
        by_cell: What was found in their cells.
        key: Of the pseudonyms of all patients; None gives one to those with a finding only, by
            a key that nobody keeps.
        rename: Whether all images are numbered.
    """
    pseudonyms = Pseudonyms(key or secrets.token_bytes(MIN_KEY_BYTES))
    names = target_names(records, as_png=True)
    digits = len(str(len(records)))
    rows = []
    for number, (record, name) in enumerate(zip(records, names), start=1):
        row = {}
        for column, cell in record.row.items():
            findings = by_cell.get((column, cell), ())
            if column == "file_name":
                row[column] = f"images/{number:0{digits}d}.png" if findings or rename else name
            elif column == "patient_id" and cell.strip():
                row[column] = pseudonyms.of(cell.strip()) if key or findings else cell
            else:
                row[column] = redact(cell, findings)
        rows.append(row)
    return _with_free_names(rows, digits)


def _with_free_names(rows: list[dict[str, str]], digits: int) -> list[dict[str, str]]:
    """Numbered names that a kept one has already go into a folder of their own."""
    taken: set[str] = set()
    for number, row in enumerate(rows, start=1):
        if row["file_name"].lower() in taken:
            row["file_name"] = f"renamed/{number:0{digits}d}.png"
        taken.add(row["file_name"].lower())
    return rows


def write_clean_images(
    folder: Path,
    records: Sequence[Record],
    names: Sequence[str],
    reports: Sequence[PictureReport],
    *,
    margins: Margins,
    num_workers: int | None = None,
) -> None:
    """Write each image anew as PNG, its margins treated; nothing but pixels is copied.

    Args:
        folder: Of the clean data set.
        records: The images.
        names: New name of each, relative to ``folder``.
        reports: What was found in each.
        margins: What happens to the margins.
        num_workers: Processes.
    """
    tasks = [
        _Task(record, report.boxes, str(folder / name))
        for record, name, report in zip(records, names, reports, strict=True)
    ]
    write = partial(_write, margins=margins)
    map_in_processes(write, tasks, description="clean images", num_workers=num_workers)


def _write(task: _Task, *, margins: Margins) -> None:
    image = clean_image(task.record.image(), task.boxes, margins)
    if margins.sizes is None:
        for _ in range(_MORE_ROUNDS):
            image = clean_image(image, find_text(image), margins)
    save_png(image, task.target)


def clean_image(image: Image.Image, boxes: Sequence[TextBox], margins: Margins) -> Image.Image:
    """An image whose margins are masked or cut off.

    Args:
        image: Mode ``L`` or ``RGB``.
        boxes: The text in it; markers are left.
        margins: What to do.
    """
    width, height = image.size
    if margins.sizes is None:
        areas = [_grown(box, image.size) for box in boxes if box.kind == "text"]
        if margins.crop:
            kept, areas = _cut(areas, width, height)
        else:
            kept = (0, 0, width, height)
    else:
        top, right, bottom, left = margins.sizes
        kept = (min(left, width), min(top, height), max(0, width - right), max(0, height - bottom))
        areas = [] if margins.crop else _outside(kept, width, height)
    masked = _masked(image, areas)
    if kept == (0, 0, width, height) or not margins.crop:
        return masked
    return masked.crop(kept)


def _grown(box: TextBox, size: tuple[int, int]) -> Area:
    more = max(2, round(_GROW_SHARE * (box.bottom - box.top)))
    return (
        max(0, box.left - more),
        max(0, box.top - more),
        min(size[0], box.right + more),
        min(size[1], box.bottom + more),
    )


def _cut(areas: Sequence[Area], width: int, height: int) -> tuple[Area, list[Area]]:
    """What is kept when text is cut off by the edge next to it, and text too far inside."""
    left, top, right, bottom = 0, 0, width, height
    inside = []
    for area in areas:
        deep = (area[3] / height, 1 - area[1] / height, area[2] / width, 1 - area[0] / width)
        edge = int(np.argmin(deep))
        if deep[edge] > _MAX_CROP_SHARE:
            inside.append(area)
        elif edge == 0:
            top = max(top, area[3])
        elif edge == 1:
            bottom = min(bottom, area[1])
        elif edge == 2:
            left = max(left, area[2])
        else:
            right = min(right, area[0])
    return (left, top, right, bottom), inside


def _outside(kept: Area, width: int, height: int) -> list[Area]:
    left, top, right, bottom = kept
    strips = [(0, 0, width, top), (right, 0, width, height)]
    strips += [(0, bottom, width, height), (0, 0, left, height)]
    return [area for area in strips if area[0] < area[2] and area[1] < area[3]]


def _masked(image: Image.Image, areas: Sequence[Area]) -> Image.Image:
    if not areas:
        return image
    pixels = np.asarray(image).copy()
    for left, top, right, bottom in areas:
        pixels[top:bottom, left:right] = _ground(pixels, (left, top, right, bottom))
    return Image.fromarray(pixels)


def _ground(pixels: np.ndarray, area: Area) -> np.ndarray:
    """Median grey (or colour) of the frame around an area; black if it is the whole image."""
    left, top, right, bottom = area
    outer = (slice(max(0, top - _FRAME_PX), bottom + _FRAME_PX),)
    outer += (slice(max(0, left - _FRAME_PX), right + _FRAME_PX),)
    frame = np.zeros(pixels.shape[:2], dtype=bool)
    frame[outer] = True
    frame[top:bottom, left:right] = False
    around = pixels[frame]
    if not len(around):
        return np.zeros(pixels.shape[2:], dtype=pixels.dtype)
    return np.median(around, axis=0).astype(pixels.dtype)
