"""Pictures with text burnt in at the margins, on simulated scans and on plain grounds."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo.simulate import FINDINGS, simulate

STRIPS = (
    "LINDQVIST, HANNA  03/12/1951",
    "MRN 4482913",
    "Okafor^Ngozi OD",
    "2019-04-12 09:31",
    "Patient: Finch R.",
    "St. Mary Eye Clinic",
    "ID 55123  DOB 5 Jun 1947",
    "Exam 17-Jun-2020",
)
SIZES = (10, 12, 14, 18, 24, 32)
CORNERS = ("top left", "top right", "bottom left", "bottom right", "top", "bottom")
GROUNDS = ("scan", "light strip", "dark strip", "light scan", "compressed")
NUM_PICTURES = 60


def scans(number: int, *, resolution: int) -> list[Image.Image]:
    """Simulated scans without any text."""
    return [
        simulate(index, seed=resolution, resolution=resolution, findings=FINDINGS).image
        for index in range(number)
    ]


def planted_pictures() -> Iterator[tuple[str, Image.Image, tuple[int, int, int, int]]]:
    """What it is, the picture, and the box of its text (left, top, right, bottom)."""
    bases = {side: scans(6, resolution=side) for side in (256, 384, 512)}
    for number in range(NUM_PICTURES):
        side = (256, 384, 512)[number % 3]
        ground = GROUNDS[number % len(GROUNDS)]
        size = SIZES[(number // 2) % len(SIZES)]
        corner = CORNERS[(number // 3) % len(CORNERS)]
        base = bases[side][number % 6].convert("L")
        text = STRIPS[number % len(STRIPS)]
        name = f"{number}: {size} px, {corner}, {ground}, scan of {side} px"
        yield (name, *_planted(base, text, size=size, corner=corner, ground=ground))


def _planted(base: Image.Image, text: str, *, size: int, corner: str, ground: str):
    if ground == "light scan":
        base = Image.fromarray(255 - np.asarray(base) // 2)
    picture = base.copy()
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    while draw.textlength(text, font) > base.width - 8 and " " in text:
        text = text.rsplit(" ", 1)[0]
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    x = base.width - (right - left) - 5 if "right" in corner else 4
    x = (base.width - right) // 2 if corner in ("top", "bottom") else x
    y = 4 - top if "top" in corner else base.height - bottom - 4
    if ground.endswith("strip"):
        level = 235 if ground == "light strip" else 0
        edge = (0, base.height - bottom - 8) if "bottom" in corner else (0, 0)
        draw.rectangle((*edge, base.width, edge[1] + bottom + 8), fill=level)
    dark = ground in ("light strip", "light scan")
    draw.text((x, y), text, fill=10 if dark else 250, font=font)
    if ground == "compressed":
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=80)
        picture = Image.open(file).convert("L")
    return picture, (int(x + left), int(y + top), int(x + right), int(y + bottom))
