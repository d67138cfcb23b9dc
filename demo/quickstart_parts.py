"""What the sections of the quickstart's page have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

PICTURES_PER_FINDING = 6


def format_entry(entry: dict | None) -> str:
    """A score with its interval or deviation, as one cell."""
    if entry is None or entry.get("value") is None:
        return "–"
    text = f"{entry['value']:.3g}"
    low, high = entry.get("ci95") or (None, None)
    if low is not None:
        return f"{text} [{low:.3g}, {high:.3g}]"
    return f"{text} ± {entry['std']:.2g}" if entry.get("std") is not None else text


def first_pictures(folder: Path, label: str, *, split: str | None) -> list[Image.Image]:
    """The first scans of one finding."""
    from utils.dataset import load_dataset

    data = load_dataset(folder, split=split, check_pixels=False)
    chosen = [record for record in data if record.labels == (label,)]
    return [record.image() for record in chosen[:PICTURES_PER_FINDING]]
