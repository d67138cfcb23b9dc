"""The page of several synthetic sets side by side against one real set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from utils.evaluation_page import RESEARCH_USE, facts_of, interval
from utils.html_report import Page
from utils.html_text import format_number
from utils.image_sets import ImageSet
from utils.metric_names import DIRECTIONS, RETRIEVAL, RETRIEVAL_SCORES, TITLES

TILES = 8
_RETRIEVAL_TITLES = {
    f"retrieval_{direction}_{score}": f"Retrieval {title}, {short}"
    for direction, title in RETRIEVAL.items()
    for score, short in RETRIEVAL_SCORES.items()
}


def build_comparison(
    results: Mapping[str, Mapping], *, real: ImageSet, synthetic: Mapping[str, ImageSet], seed: int
) -> Page:
    """The page of a comparison.

    Args:
        results: Name of a set -> its result as metrics.json holds it.
        real: The real images.
        synthetic: Name of a set -> its images.
        seed: Of the images shown.
    """
    names = list(results)
    counts = ", ".join(f"{name}: {len(synthetic[name]):,}" for name in names)
    page = Page(
        "Synthetic sets side by side",
        lead=f"{len(names)} synthetic sets against {len(real):,} real images, "
        f"{real.resolution} px.",
    )
    page.notice(RESEARCH_USE, title="Purpose")
    page.heading("What was compared")
    page.facts(
        {f"Synthetic: {name}": results[name]["options"]["synthetic_dir"] for name in names}
        | {"Synthetic images": counts}
        | facts_of(results[names[0]], real)
    )
    page.paragraph(
        "All sets have the same number of images, drawn by chance where a set has more, since "
        "distances and scores of unequal numbers do not compare."
    )
    page.heading("Scores")
    titles = {
        key: title
        for key, title in (TITLES | _RETRIEVAL_TITLES).items()
        if any(key in result["overall"] for result in results.values())
    }
    _table(page, results, titles)
    page.heading("Metric by metric")
    for key in (key for key in titles if key in TITLES):
        _bars(page, results, key, titles[key])
    shown = {f"Synthetic: {name}": images for name, images in synthetic.items()}
    _gallery(page, {"Real": real, **shown}, seed)
    page.heading("Each set's own page")
    for name in names:
        page.link(name, f"{name}/report.html")
    return page


def _gallery(page: Page, sets: Mapping[str, ImageSet], seed: int) -> None:
    """Images of each set, drawn by chance."""
    page.heading("Images")
    page.paragraph("Drawn by chance with the run's seed.")
    rng = np.random.default_rng(seed)
    page.gallery(
        {
            name: [
                images.image(int(index))
                for index in rng.choice(len(images), min(TILES, len(images)), replace=False)
            ]
            for name, images in sets.items()
        }
    )


def _table(page: Page, results: Mapping[str, Mapping], titles: Mapping[str, str]) -> None:
    """A row per metric, a column per set; the best value is marked."""
    rows = []
    for key, title in titles.items():
        entries = {name: result["overall"].get(key, {}) for name, result in results.items()}
        first = next(entry for entry in entries.values() if entry)
        best = _best(entries, first["direction"])
        row = {"metric": title, "direction": DIRECTIONS[first["direction"]]}
        for name, entry in entries.items():
            row[f"set {name}"] = _cell(entry) + (" *" if name == best else "")
        row["yardstick"] = first.get("floor", first.get("real"))
        rows.append(row)
        if "equal_n" in first:
            rows.append(_equal_n_row(entries))
    columns = {"metric": "Metric", **{f"set {name}": name for name in results}}
    columns |= {"yardstick": "Floor or real set", "direction": "Direction"}
    page.table(
        rows,
        columns,
        caption="*: best value; where intervals overlap widely, that is no difference.",
    )


def _equal_n_row(entries: Mapping[str, Mapping]) -> dict[str, object]:
    """The Fréchet distance and its floor at one number of images, the one row that compares."""
    found = {name: entry["equal_n"] for name, entry in entries.items() if "equal_n" in entry}
    first = next(iter(found.values()))
    row = {"metric": f"the same at equal N ({first['n']:,})", "yardstick": first["floor"]}
    return row | {f"set {name}": _cell(each) for name, each in found.items()}


def _cell(entry: Mapping) -> str:
    if entry.get("value") is None:
        return "–"
    spread = interval(entry)
    return format_number(entry["value"]) + (f" ({spread})" if spread else "")


def _best(entries: Mapping[str, Mapping], direction: str) -> str | None:
    """The set with the best value; None if fewer than two have one, or they are equal."""
    distance = {
        name: {
            "lower": max(entry["value"], 0.0),  # below 0 is 0, for an unbiased distance
            "higher": -entry["value"],
            "real": abs(entry["value"] - entry.get("real", entry["value"])),
        }[direction]
        for name, entry in entries.items()
        if entry.get("value") is not None
    }
    if len(set(distance.values())) < 2:
        return None
    return min(distance, key=distance.get)


def _bars(page: Page, results: Mapping[str, Mapping], key: str, title: str) -> None:
    """One bar per set, with its interval."""
    entries = {
        name: result["overall"][key] for name, result in results.items() if key in result["overall"]
    }
    page.bars(
        {name: {"value": entry["value"]} for name, entry in entries.items()},
        title=title,
        intervals={name: {"value": entry.get("ci95")} for name, entry in entries.items()},
        x_label=f"{title}, {DIRECTIONS[next(iter(entries.values()))['direction']]}",
    )
