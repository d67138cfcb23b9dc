"""The memorisation audit's section of a page: what was found, the similarities, the pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from utils.copy_audit import Audit
from utils.html_report import Page
from utils.images import contact_sheet

NUM_PAIRS = 12
PAIRS_PER_ROW = 3
TILE_PX = 148
_BINS = 40
_FLOOR_TEXT = (
    "The threshold is set so that about 5 % of the held-out real images, which nobody copied, lie "
    "above it too. So a share of about 5 % is what a set without any copy has, and no sign of "
    "copying; a share clearly above the floor is. The stricter count asks for more: images more "
    "similar to a training image than every held-out one."
)
_LIMITS_TEXT = (
    "A share at the floor does not prove that the images are anonymous: a copy of one lesion in "
    "another retina, or a copy cropped by more than a third, is not found. Look at the pairs."
)

ImageOf = Callable[[int], Image.Image]


def add_audit(page: Page, audit: Audit, *, synthetic_image: ImageOf, train_image: ImageOf) -> None:
    """Add the section to a page.

    Args:
        page: Where.
        audit: What was found.
        synthetic_image: Index to synthetic image; asked for the pairs shown only.
        train_image: Index to training image.
    """
    page.heading("Copies of training images")
    page.paragraph(
        "For every synthetic image, its nearest training image was looked up in an embedding "
        "trained for this: a network that knows a training image again when it is mirrored, "
        "cropped, brighter, smoother or noisy. It is called a copy if it is more similar to its "
        "neighbour than 95 % of the held-out real images are to theirs."
    )
    page.facts(_facts(audit))
    if audit.notes:
        texts = [f"{note[:1].upper()}{note[1:]}." for note in audit.notes]
        page.notice(texts, kind="warning", title="Copies")
    page.paragraph(_FLOOR_TEXT)
    if audit.threshold is not None:
        _add_curves(page, audit)
    _add_pairs(page, audit, synthetic_image, train_image)
    page.paragraph(_LIMITS_TEXT)


def _facts(audit: Audit) -> dict[str, str]:
    """Names and values of the section's head."""
    entry, total = audit.entry(), len(audit.names)
    facts = {
        "Compared": f"{total:,} synthetic with {len(audit.train_names):,} training images; "
        f"threshold from {len(audit.held_out):,} held-out images"
    }
    if audit.share is not None:
        low, high = entry["ci95"]
        facts |= {
            "Copies": f"{entry['num_copies']:,} of {total:,}: {_percent(audit.share)} "
            f"(95 % interval {_percent(low)} – {_percent(high)}), "
            f"{entry['num_mirrored']:,} of them mirrored, of {entry['num_sources']:,} training "
            "images",
            "Floor": f"{_percent(entry['floor'])}: the held-out images' own share",
            "Above every held-out image": f"{entry['num_certain']:,}",
            "Threshold": f"similarity {audit.threshold:.4f}",
        }
    return facts | {
        "Equal to a training image": f"{entry['exact_duplicates']:,} pixel for pixel, mirrored or "
        f"not; {entry['perceptual_duplicates']:,} by their perceptual hash",
        "Equal to another synthetic image": f"{entry['exact_repeats']:,} pixel for pixel; "
        f"{entry['perceptual_repeats']:,} by their perceptual hash",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _add_curves(page: Page, audit: Audit) -> None:
    """Histograms of both sets' similarities over the same bins, and the threshold."""
    sides = {"held-out real": audit.held_out, "synthetic": audit.similarities}
    edges = np.linspace(min(side.min() for side in sides.values()), 1.0, _BINS + 1)
    series = {}
    for name, values in sides.items():
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        # A step per bin: down to zero at both ends, so that the areas can be compared.
        xs, ys = np.repeat(edges, 2), np.concatenate([[0], np.repeat(shares, 2), [0]])
        series[name] = list(zip(xs.tolist(), ys.tolist()))
    top = max(y for points in series.values() for _, y in points)
    series["threshold"] = [(audit.threshold, 0.0), (audit.threshold, top)]
    page.curve(
        series,
        title="Similarity to the nearest training image",
        x_label="Cosine similarity of the embeddings",
        y_label="Images, %",
        caption="Right of the threshold lie the copies. A hill of synthetic images there that the "
        "held-out images do not have is memorisation.",
    )


def _add_pairs(page: Page, audit: Audit, synthetic_image: ImageOf, train_image: ImageOf) -> None:
    """The most similar pairs, side by side, and a table of them."""
    page.heading("The most similar pairs", level=3)
    chosen = audit.by_similarity()[:NUM_PAIRS]
    rows = [audit.row(index) | {"pair": n} for n, index in enumerate(chosen, start=1)]
    if not rows:
        return
    tiles, captions = [], []
    for row, index in zip(rows, chosen):
        tiles += [synthetic_image(index), train_image(int(audit.neighbours[index]))]
        mirrored = ", mirrored" if row["mirrored"] else ""
        captions += [f"{row['pair']}: synthetic", f"training{mirrored}"]
    sheet = contact_sheet(tiles, columns=2 * PAIRS_PER_ROW, captions=captions, tile_px=TILE_PX)
    page.image(
        sheet,
        f"The {len(rows)} most similar of {len(audit.names):,}: on the left of each pair the "
        "synthetic image, on the right its nearest training image.",
    )
    for row in rows:
        row["verdict"] = _verdict(row)
        row["similarity"] = f"{row['similarity']:.4f}"
    columns = {
        "pair": "Pair",
        "synthetic": "Synthetic",
        "train": "Nearest training image",
        "similarity": "Similarity",
        "verdict": "Verdict",
    }
    page.table(rows, columns)


def _verdict(row: dict[str, object]) -> str:
    """What is said of one pair, in words."""
    if not row["copy"]:
        return "below the threshold" if row["threshold"] is not None else "no threshold"
    kind = "equal pixel for pixel" if row["exact"] else "copy"
    return f"{kind}, mirrored" if row["mirrored"] else kind
