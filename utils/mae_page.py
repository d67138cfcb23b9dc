"""What a pre-training shows: its table, its loss curve, its reconstructions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.html_report import Page

COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "images_per_s", "seconds", "val_loss")
SHEET_IMAGES = 6
_GAP_PX = 2
_WHITE = 255


def pretraining_rows(
    rows: Sequence[Mapping[str, str]], held_out: Sequence[tuple[int, float]]
) -> list[dict[str, object]]:
    """Rows of pretraining.csv: the training's log, with the validation loss where measured.

    Args:
        rows: Of ``utils.training_journal``.
        held_out: (step, loss) pairs.
    """
    losses = dict(held_out)
    return [
        {name: row[name] for name in COLUMNS[:-1]} | {"val_loss": losses.get(int(row["step"]), "")}
        for row in rows
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of pretraining.csv."""
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def picture_sheet(
    original: torch.Tensor, masked: torch.Tensor, filled: torch.Tensor
) -> Image.Image:
    """Images beside each other, above each other what they are: as is, masked, reconstructed.

    Args:
        original: (N, 1, H, W) in [0, 1]; likewise the others.
        masked: See above.
        filled: See above.
    """
    count, _, height, width = original.shape
    sheet = np.full((3 * (height + _GAP_PX), count * (width + _GAP_PX)), _WHITE, np.uint8)
    for row, images in enumerate((original, masked, filled)):
        top = row * (height + _GAP_PX)
        for column, image in enumerate((images[:, 0] * 255).round().byte().cpu().numpy()):
            left = column * (width + _GAP_PX)
            sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet[:-_GAP_PX, :-_GAP_PX])


def add_pretraining(
    page: Page,
    *,
    facts: Mapping[str, object],
    notes: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    sheet: Image.Image,
) -> None:
    """The section on the pre-training.

    Args:
        page: Gets the section.
        facts: What was trained on what.
        notes: What was decided about the data.
        rows: Of ``pretraining_rows``.
        sheet: Of ``picture_sheet``.
    """
    page.heading("Pre-training")
    page.facts(facts)
    page.bullets(notes)
    curves = {
        "training": [(float(row["step"]), float(row["loss"])) for row in rows],
        "held-out patients": [
            (float(row["step"]), float(row["val_loss"])) for row in rows if row["val_loss"] != ""
        ],
    }
    page.curve(
        curves,
        title="Loss of the masked patches",
        x_label="step",
        y_label="mean squared error",
        caption="Lower is better; held-out images keep their mask and are not cropped.",
        smooth=0.9,
    )
    page.image(
        sheet,
        "Images of held-out patients: as they are, what the encoder sees, what is reconstructed "
        "(hidden patches only).",
    )
