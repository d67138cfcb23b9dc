"""The most confident errors of a classifier, as a picture sheet for a doctor to look through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from utils.classification_metrics import predicted_labels
from utils.dataset import Record
from utils.images import contact_sheet
from utils.run_folder import atomic_path
from utils.sweep_cells import Cell, mean_probs
from utils.sweep_results import SweepResults

MAX_ERRORS = 24
COLUMNS = 4
TILE_PX, CAPTION_PX, LINE_PX = 224, 40, 16
FONT_SIZES = (13, 12, 11, 10, 9, 8)  # the largest with which a line fits


@dataclass(frozen=True)
class ConfidentError:
    """A test image that is called wrong: its number, what it has, what was said, how surely."""

    index: int
    true: str
    predicted: str
    prob: float


def confident_errors(
    probs: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    *,
    multi_label: bool,
    patients: Sequence[str],
) -> list[ConfidentError]:
    """Up to ``MAX_ERRORS`` errors, the surest first, one of each patient.

    Of several labels that may occur together, an image's error is the label of which the
    classifier is surest and wrong.

    Args:
        probs: (N, L).
        targets: (N, L) bool.
        labels: L names.
        multi_label: Whether labels may occur together.
        patients: (N,) names.
    """
    decided = predicted_labels(probs, multi_label=multi_label)
    # How sure the decision on each label is; of exclusive labels only the chosen one's counts.
    sure = np.where(decided, probs, 1 - probs) if multi_label else np.where(decided, probs, -1)
    sure = np.where(decided != targets, sure, -1)
    worst = sure.argmax(axis=1)
    confidence = sure[np.arange(len(sure)), worst]
    found: dict[str, ConfidentError] = {}
    for index in np.argsort(-confidence, kind="stable"):
        if confidence[index] < 0 or len(found) == MAX_ERRORS:
            break
        name = labels[worst[index]]
        error = ConfidentError(
            int(index),
            " + ".join(label for label, yes in zip(labels, targets[index]) if yes) or "none",
            name if decided[index, worst[index]] else f"not {name}",
            float(confidence[index]),
        )
        found.setdefault(patients[index], error)
    return list(found.values())


def write_error_sheet(path: Path, results: SweepResults, cell: Cell) -> Image.Image | None:
    """Write the errors of a cell (mean probabilities over its seeds) as a PNG.

    Returns:
        The picture; None, and no file, where no test image is called wrong.
    """
    errors = confident_errors(
        mean_probs(results, cell),
        results.targets,
        results.labels,
        multi_label=results.multi_label,
        patients=results.patients,
    )
    if not errors:
        return None
    sheet = draw_errors(errors, results.records)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return sheet


def draw_errors(errors: Sequence[ConfidentError], records: Sequence[Record]) -> Image.Image:
    """Tiles in reading order, under each what the image has, what was said and how surely."""
    tiles = [_tile(error, records[error.index].image()) for error in errors]
    return contact_sheet(tiles, columns=COLUMNS, tile_px=TILE_PX).convert("L")  # scans are gray


def _tile(error: ConfidentError, image: Image.Image) -> Image.Image:
    """A square tile: the picture above two lines of text."""
    height = TILE_PX - CAPTION_PX
    picture = ImageOps.contain(image.convert("L"), (TILE_PX, height), Image.Resampling.LANCZOS)
    tile = Image.new("L", (TILE_PX, TILE_PX))
    tile.paste(picture, ((TILE_PX - picture.width) // 2, 0))
    draw = ImageDraw.Draw(tile)
    lines = (error.true, f"-> {error.predicted}, {error.prob:.2f}")
    for number, line in enumerate(lines):
        fonts = [ImageFont.load_default(size=size) for size in FONT_SIZES]
        font = next((font for font in fonts if font.getlength(line) <= TILE_PX), fonts[-1])
        top = height + 2 + number * LINE_PX
        draw.text((TILE_PX // 2, top), line, font=font, fill="white", anchor="ma")
    return tile
