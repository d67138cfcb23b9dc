"""The page of one evaluation: what was compared, every score beside its yardsticks, the images.

Scores are read from the result as metrics.json holds it (see ``utils.scores``).
"""

from __future__ import annotations

from collections.abc import Mapping

from utils.html_report import Page
from utils.html_text import format_number
from utils.image_sets import ImageSet
from utils.metric_names import DIRECTIONS, PAGE_TEXT, RETRIEVAL, RETRIEVAL_SCORES, TITLES

HOW_TO_READ = (
    "No score stands alone; each has its yardsticks. Floor: the same metric between two halves of "
    "the real set that share no patient, as far as patient_id tells; no generator needs to be "
    "closer. VAE's floor: real images against themselves after the generator's autoencoder; none "
    "with this autoencoder can be closer. Real set: the metric's own value on real images.",
    "An interval tells what another draw of as many images would change. Where two intervals "
    "overlap widely, prefer neither set.",
    "Close scores do not show that images are new: copies of training images score best of all, "
    "which is what the audit of copies is for. Nor do they show use for diagnosis: rank generators "
    "by what a classifier trained on their images does on real ones.",
)
RESEARCH_USE = "Research use only, not for diagnosis. Synthetic images show no patient."


def build_page(result: Mapping, *, real: ImageSet, synthetic: ImageSet) -> Page:
    """The page of one evaluation up to the pictures.

    Args:
        result: ``overall``, ``per_label``, ``extractor`` and ``options`` of metrics.json.
        real: The real images.
        synthetic: The synthetic images.
    """
    overall = result["overall"]
    counts = f"{len(synthetic):,} synthetic beside {len(real):,} real images"
    page = Page("Synthetic images against real ones", lead=f"{counts}, {real.resolution} px.")
    page.notice(RESEARCH_USE, title="Purpose")
    page.heading("What was compared")
    where = f"{result['options']['synthetic_dir']}: {len(synthetic):,} images"
    page.facts({"Synthetic": where} | facts_of(result, real))
    if notes := result["options"]["notes"]:
        page.notice([_sentence(note) for note in notes], kind="warning", title="Data")
    page.heading("Scores")
    _score_table(page, overall)
    _equal_n(page, overall.get("fid", {}))
    add_notes(page, overall)
    page.heading("How to read this")
    for text in HOW_TO_READ:
        page.paragraph(text)
    page.bullets([f"{TITLES[name]}: {text}" for name, text in PAGE_TEXT.items() if name in overall])
    add_retrieval(page, overall)
    if result["per_label"]:
        page.heading("Per label")
        for name in TITLES:
            _label_section(page, name, result["per_label"])
    return page


def facts_of(result: Mapping, real: ImageSet) -> dict[str, object]:
    """What a synthetic set was compared with and by which networks: names and values."""
    options = result["options"]
    split = f" ({options['real_split']} split)" if options["real_has_splits"] else ""
    facts = {
        "Real": f"{options['real_dir']}{split}: {len(real):,} images, "
        f"{len(set(real.patients())):,} patients or single images",
        "Size": f"{real.resolution} x {real.resolution} px, {real.resize_mode}, antialiased, "
        "both sets alike",
    }
    if options.get("train_dir"):
        facts["Training images"] = f"{options['train_dir']}: {options['num_train']:,} images"
    if network := result["extractor"]:
        facts["Feature network"] = (
            f"{network['name']}: {network['dim']} features at {network['input_px']} px. "
            f"{network['note']}"
        )
        facts["Its weights"] = f"{network['weights']}, SHA-256 {network['sha256']}"
    for key, name in (
        ("classifier", "Classifier"),
        ("model", "VAE"),
        ("retrieval_encoder", "Retrieval encoder"),
    ):
        if options.get(f"{key}_sha256"):
            facts[name] = f"{options[key]}, SHA-256 {options[f'{key}_sha256']}"
    return facts | {"Seed": str(options["seed"])}


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."


def interval(entry: Mapping) -> str | None:
    """Interval or deviation of an entry as one cell."""
    if "ci95" in entry:
        return " – ".join(format_number(bound) for bound in entry["ci95"])
    return f"± {format_number(entry['std'])}" if "std" in entry else None


def _score_table(page: Page, overall: Mapping[str, Mapping]) -> None:
    rows = [
        {
            "metric": title,
            **overall[name],
            "interval": interval(overall[name]),
            "direction": DIRECTIONS[overall[name]["direction"]],
            "n": f"{overall[name]['n_real']:,} / {overall[name]['n_synthetic']:,}",
        }
        for name, title in TITLES.items()
        if name in overall
    ]
    columns = {
        "metric": "Metric",
        "value": "Value",
        "interval": "95 % interval",
        "floor": "Floor",
        "vae_floor": "VAE's floor",
        "real": "Real set",
        "direction": "Direction",
        "n": "N real / synthetic",
    }
    if not any("vae_floor" in row for row in rows):
        del columns["vae_floor"]
    if rows:
        page.table(
            rows,
            columns,
            caption="±: standard deviation, over splits (inception score) or subsets (KID). "
            "A dash: does not apply, or a note below says why.",
        )


def _equal_n(page: Page, frechet: Mapping) -> None:
    if found := frechet.get("equal_n"):
        page.paragraph(
            f"Fréchet distance at equal N, {found['n']:,} against {found['n']:,} images: "
            f"{format_number(found['value'])} ± {format_number(found['std'])} over draws; two "
            f"halves of the real set: {format_number(found['floor'])}."
        )


def add_notes(page: Page, overall: Mapping[str, Mapping]) -> None:
    """What to know about each score; the same note under several names stands once."""
    told: dict[str, list[str]] = {}
    for name, entry in overall.items():
        if name == "copies":  # told in the audit's own section
            continue
        for note in entry.get("notes", []):
            told.setdefault(note, []).append(TITLES.get(name, "Retrieval"))
    by_title: dict[str, list[str]] = {}
    for note, titles in told.items():
        by_title.setdefault(", ".join(dict.fromkeys(titles)), []).append(_sentence(note))
    for title, notes in by_title.items():
        page.notice(notes, kind="warning", title=title)


def add_retrieval(page: Page, overall: Mapping[str, Mapping]) -> None:
    """Recall and rank of each direction, beside the real set's and chance."""
    rows = []
    for direction, title in RETRIEVAL.items():
        for score, short in RETRIEVAL_SCORES.items():
            entry = overall.get(f"retrieval_{direction}_{score}")
            if entry is not None:
                rows.append({"what": f"{title}, {short}", **entry, "interval": interval(entry)})
    if not rows:
        return
    page.heading("Retrieval")
    columns = {
        "what": "Query → gallery",
        "value": "Synthetic",
        "interval": "95 % interval",
        "real": "Real set",
        "chance": "Chance",
        "gallery_size": "Gallery",
        "num_queries": "Queries",
    }
    page.table(
        rows,
        columns,
        caption="Recall@k: share of queries with a relevant item among the k most similar. Median "
        "rank of the first relevant item: lower is better. Relevant: of the same label, or text.",
    )
    curves = {}
    for direction, title in RETRIEVAL.items():
        entries = {k: overall.get(f"retrieval_{direction}_recall_at_{k}") for k in (1, 5, 10)}
        for side, key in (("synthetic", "value"), ("real", "real")):
            points = [(k, e[key]) for k, e in entries.items() if e and e.get(key) is not None]
            if points:
                curves[f"{title}, {side}"] = points
    page.curve(curves, title="Recall@k", x_label="k", y_label="share of queries")


def _label_section(page: Page, name: str, per_label: Mapping[str, Mapping]) -> None:
    """Bars of one metric over the labels, then its table with intervals and counts."""
    found = {label: entries[name] for label, entries in per_label.items() if name in entries}
    if not found:
        return
    has_floor = any("floor" in entry for entry in found.values())
    yardstick = "floor" if has_floor else "real"
    beside = "real (floor)" if has_floor else "real"
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
            "interval": interval(entry),
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
