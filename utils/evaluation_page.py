"""The page of one evaluation: what was compared, every score beside its yardstick, the images.

Reads the result as metrics.json holds it (see ``utils.scores``), so a page can be made again
without the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from utils.html_report import Page
from utils.html_text import format_number
from utils.image_sets import ImageSet

TITLES = {
    "fid": "Fréchet distance",
    "inception_score": "Inception score",
    "ms_ssim": "MS-SSIM within a prompt",
    "agreement": "Agreement with the label",
}
DIRECTIONS = {"lower": "lower is closer", "higher": "higher is better", "real": "near the real set"}
HOW_TO_READ = (
    "No score stands alone. Read a Fréchet distance beside its floor, the distance between two "
    "halves of the real set: a synthetic set at the floor is as close as real images are to each "
    "other. The floor is taken over half the images, and fewer images make every Fréchet distance "
    "larger, so it is on the high side.",
    "MS-SSIM tells how alike the images of one prompt are. Above the real set's own value they "
    "repeat each other; far below it they are noisier than real scans.",
    "The inception score sees no real image: it says whether predictions are sure and varied. "
    "Agreement says whether a classifier trained on real images finds in a synthetic one what was "
    "asked for; the real set's own value is about the most a perfect generator would reach.",
    "An interval tells what another draw of as many images would change. Where two intervals "
    "overlap widely, prefer neither.",
    "Close scores do not show that images are new: copies of training images score best of all. "
    "Nor do they show use for diagnosis: rank generators by what a classifier trained on their "
    "images does on real ones.",
)
RESEARCH_USE = "Research use only, not for diagnosis. Synthetic images show no patient."
MAX_LABELS_WITH_IMAGES = 20
TILE_PX = 128


def build_page(
    result: Mapping, *, real: ImageSet, synthetic: ImageSet, labels: Sequence[str], tiles: int
) -> Page:
    """The page of one evaluation.

    Args:
        result: ``overall``, ``per_label``, ``extractor`` and ``options`` of metrics.json.
        real: The real images.
        synthetic: The synthetic images.
        labels: Labels in the order to show.
        tiles: Images of each set per label.
    """
    counts = f"{len(synthetic):,} synthetic beside {len(real):,} real images"
    page = Page("Synthetic images against real ones", lead=f"{counts}, {real.resolution} px.")
    page.notice(RESEARCH_USE, title="Purpose")
    page.heading("What was compared")
    page.facts(_facts(result, real, synthetic))
    if notes := result["options"]["notes"]:
        page.notice([_sentence(note) for note in notes], kind="warning", title="Data")
    page.heading("Scores")
    _score_table(page, result["overall"])
    _notes(page, result["overall"])
    page.heading("How to read this")
    for text in HOW_TO_READ:
        page.paragraph(text)
    if result["per_label"]:
        page.heading("Per label")
        for name in TITLES:
            _label_section(page, name, result["per_label"])
    page.heading("Images")
    _galleries(page, real, synthetic, labels=labels, tiles=tiles, seed=result["options"]["seed"])
    return page


def _facts(result: Mapping, real: ImageSet, synthetic: ImageSet) -> dict[str, object]:
    """Names and values of the first section."""
    options = result["options"]
    split = f" ({options['real_split']} split)" if options["real_split"] else ""
    facts = {
        "Real": f"{options['real_dir']}{split}: {len(real):,} images, "
        f"{len(set(real.patients())):,} patients or single images",
        "Synthetic": f"{options['synthetic_dir']}: {len(synthetic):,} images",
        "Size": f"{real.resolution} x {real.resolution} px, {real.resize_mode}, antialiased, "
        "both sets alike",
    }
    if result["extractor"]:
        network = result["extractor"]
        facts["Feature network"] = (
            f"{network['name']}: {network['dim']} features. {network['note']}"
        )
        facts["Its weights"] = f"{network['weights']}, SHA-256 {network['sha256']}"
    if options["classifier"]:
        facts["Classifier"] = f"{options['classifier']}, SHA-256 {options['classifier_sha256']}"
    return facts | {"Seed": str(options["seed"])}


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."


def _interval(entry: Mapping) -> str | None:
    if "ci95" in entry:
        return " – ".join(format_number(bound) for bound in entry["ci95"])
    return f"± {format_number(entry['std'])}" if "std" in entry else None


def _score_table(page: Page, overall: Mapping[str, Mapping]) -> None:
    rows = [
        {
            "metric": TITLES[name],
            "value": entry["value"],
            "interval": _interval(entry),
            "floor": entry.get("floor"),
            "real": entry.get("real"),
            "direction": DIRECTIONS[entry["direction"]],
            "n": f"{entry['n_real']:,} / {entry['n_synthetic']:,}",
        }
        for name, entry in overall.items()
    ]
    columns = {
        "metric": "Metric",
        "value": "Value",
        "interval": "95 % interval",
        "floor": "Floor",
        "real": "Real set",
        "direction": "Direction",
        "n": "N real / synthetic",
    }
    page.table(
        rows,
        columns,
        caption="Floor: the metric between two halves of the real set. Real set: its own value. "
        "±: standard deviation over splits. A dash: does not apply, or a note below says why.",
    )


def _notes(page: Page, overall: Mapping[str, Mapping]) -> None:
    for name, entry in overall.items():
        if notes := entry.get("notes"):
            page.notice([_sentence(note) for note in notes], kind="warning", title=TITLES[name])


def _label_section(page: Page, name: str, per_label: Mapping[str, Mapping]) -> None:
    """Bars of one metric over the labels, then its table with intervals and counts."""
    found = {label: entries[name] for label, entries in per_label.items() if name in entries}
    if not found:
        return
    yardstick = "floor" if name == "fid" else "real"
    beside = "real (floor)" if name == "fid" else "real"
    page.heading(TITLES[name], level=3)
    page.bars(
        {
            label: {beside: entry.get(yardstick), "synthetic": entry["value"]}
            for label, entry in found.items()
        },
        title=f"{TITLES[name]} per label",
        intervals={
            label: {beside: entry.get("real_ci95"), "synthetic": entry.get("ci95")}
            for label, entry in found.items()
        },
        x_label=f"{TITLES[name]}, {DIRECTIONS[next(iter(found.values()))['direction']]}",
        caption="Whiskers: 95 % intervals.",
    )
    _label_table(page, found, yardstick)


def _label_table(page: Page, found: Mapping[str, Mapping], yardstick: str) -> None:
    """One row per label; notes where a number is missing, the others are told above."""
    rows = [
        {
            "label": label,
            "value": entry["value"],
            "interval": _interval(entry),
            yardstick: entry.get(yardstick),
            "n": f"{entry['n_real']:,} / {entry['n_synthetic']:,}",
            "notes": "; ".join(entry.get("notes", [])) or None,
        }
        for label, entry in found.items()
    ]
    for row in rows:
        if None not in (row["value"], row[yardstick]):
            row["notes"] = None
    columns = {
        "label": "Label",
        "value": "Synthetic",
        "interval": "95 % interval",
        yardstick: "Floor" if yardstick == "floor" else "Real set",
        "n": "N real / synthetic",
        "notes": "Notes",
    }
    if not any(row["notes"] for row in rows):
        del columns["notes"]
    page.table(rows, columns)


def _galleries(
    page: Page,
    real: ImageSet,
    synthetic: ImageSet,
    *,
    labels: Sequence[str],
    tiles: int,
    seed: int,
) -> None:
    """Real beside synthetic images, per label, drawn by chance."""
    page.paragraph("Drawn by chance with the run's seed, not picked, at the size they are scored.")
    everything = {"All images": [np.arange(len(images)) for images in (real, synthetic)]}
    shown = {name: [real.having(name), synthetic.having(name)] for name in labels}
    for name, members in list((shown or everything).items())[:MAX_LABELS_WITH_IMAGES]:
        page.heading(name, level=3)
        rng = np.random.default_rng(seed)
        sides = {
            f"{images.name.capitalize()} ({len(indices):,})": _draw(images, indices, tiles, rng)
            for images, indices in zip((real, synthetic), members)
        }
        page.gallery(sides, tile_px=TILE_PX)
    if len(shown) > MAX_LABELS_WITH_IMAGES:
        page.paragraph(f"{len(shown) - MAX_LABELS_WITH_IMAGES} more labels are not shown.")


def _draw(
    images: ImageSet, indices: np.ndarray, count: int, rng: np.random.Generator
) -> list[Image.Image]:
    chosen = rng.choice(indices, min(count, len(indices)), replace=False)
    return [images.image(int(index)) for index in np.sort(chosen)]
