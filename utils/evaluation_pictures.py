"""Pictures on an evaluation's page: grids of both sets, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from utils.html_report import Page
from utils.image_sets import ImageSet

MAX_LABELS = 20
TILE_PX = 128
NEIGHBOURS_SHOWN = 12


def add_galleries(
    page: Page,
    real: ImageSet,
    synthetic: ImageSet,
    *,
    labels: Sequence[str],
    tiles: int,
    seed: int,
) -> None:
    """Real beside synthetic images, per label, drawn by chance."""
    page.heading("Images")
    page.paragraph("Drawn by chance with the run's seed, not picked, at the size they are scored.")
    everything = {"All images": [np.arange(len(images)) for images in (real, synthetic)]}
    shown = {name: [real.having(name), synthetic.having(name)] for name in labels}
    for name, members in list((shown or everything).items())[:MAX_LABELS]:
        page.heading(name, level=3)
        rng = np.random.default_rng(seed)
        sides = {
            f"{images.name.capitalize()} ({len(indices):,})": _draw(images, indices, tiles, rng)
            for images, indices in zip((real, synthetic), members)
        }
        page.gallery(sides, tile_px=TILE_PX)
    if len(shown) > MAX_LABELS:
        page.paragraph(f"{len(shown) - MAX_LABELS} more labels are not shown.")


def _draw(
    images: ImageSet, indices: np.ndarray, count: int, rng: np.random.Generator
) -> list[Image.Image]:
    chosen = rng.choice(indices, min(count, len(indices)), replace=False)
    return [images.image(int(index)) for index in np.sort(chosen)]


def add_nearest(
    page: Page,
    real: ImageSet,
    synthetic: ImageSet,
    *,
    features: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> None:
    """Synthetic images drawn by chance, each beside the real image nearest in feature space.

    Args:
        page: Goes on.
        real: The real images.
        synthetic: The synthetic images.
        features: (N_r, D) and (N_s, D).
        seed: Of the draw.
    """
    count = min(NEIGHBOURS_SHOWN, len(synthetic))
    chosen = np.sort(np.random.default_rng(seed).choice(len(synthetic), count, replace=False))
    pool_r, pool_s = features[0], features[1][chosen]
    squares = np.square(pool_r).sum(axis=1) - 2 * pool_s @ pool_r.T  # but for a constant a row
    page.heading("Nearest neighbours")
    page.paragraph(
        "Synthetic images drawn by chance, and at the same place the real image that the feature "
        "network finds nearest. Copies of training images are the audit's matter, not this one's."
    )
    nearest = squares.argmin(axis=1)
    page.gallery(
        {
            "Synthetic": [synthetic.image(int(index)) for index in chosen],
            "Nearest real image": [real.image(int(index)) for index in nearest],
        },
        captions={
            "Synthetic": [_label(synthetic, index) for index in chosen],
            "Nearest real image": [_label(real, index) for index in nearest],
        },
        tile_px=TILE_PX,
    )


def _label(images: ImageSet, index: int) -> str:
    return ", ".join(images.dataset[int(index)].labels)
