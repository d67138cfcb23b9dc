"""The card of a synthetic data set: what it is, from what, how many of which, what was checked.

Markdown with the head that the Hugging Face hub reads
(https://huggingface.co/docs/hub/datasets-cards). No prompt of the set is quoted, since prompts may
come from patients' reports.
"""

import json
from collections.abc import Mapping

from utils.acceptance import REASONS, describe_reasons
from utils.html_text import format_number

# Which files are the data set: without this, pictures that were refused and kept count as data.
DATA_FILES = {"folder": ("metadata.csv", "images/*.png"), "webdataset": ("**/*.tar",)}
_FACT_NAMES = {
    "sha256": "SHA-256",
    "detector_sha256": "detector's SHA-256",
    "num_train": "training images",
    "num_held_out": "held-out real images",
    "held_out_share": "share of them that lies above the threshold too",
    "accept_prob": "thresholds from",
    "accept_precision": "thresholds chosen for a precision of",
    "real_dir": "on",
    "real_split": "split",
    "min_contrast": "least standard deviation of the grey levels",
    "max_distance": "bits of the perceptual hash that may differ",
    "num_bits": "of",
}
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
_TEMPLATE = """\
---
pretty_name: Synthetic retinal images
license: unknown
annotations_creators:
- machine-generated
size_categories:
- {size}
task_categories:
- image-classification
- text-to-image
tags:
- synthetic
- medical
- medical-imaging
- diffusion
configs:
- config_name: default
  data_files:
{data_files}
---

# Synthetic images

Every image in this folder was made by a diffusion model; none was taken of a patient. They are
meant for research, not for diagnosis; what they teach a model must be checked on real images.

Before you pass the set on, name it and set its licence in the head of this card: the licence of
the model and the terms of the data it was trained on bind its images. The hub reads the card under
the name `README.md`.

## Contents

{counts}

## How it was drawn

{facts}

{gray}

## What an image had to pass

{gates}

## Copies of training images

{copies}

## Provenance

Each image's prompt, label and seed go with it; each attempt, refused ones with the reason, is in
`manifest.csv`. Each PNG says in its metadata that it is synthetic, by which model and from which
seed, and names its prompt by a hash{in_words}. Software that rewrites PNGs may drop this.
"""
_UNCHECKED = (
    "**Not checked.** Diffusion models can repeat images they were trained on. Whether this one "
    "does is not known until it is measured: compare the set with the training images before it "
    "leaves the house."
)
_CHECKED = (
    "Every image was compared with the training images while the set was drawn; those more "
    "similar to one than the threshold above were refused. That is no proof of anonymity: a copy "
    "of one lesion in another retina is not found."
)


def dataset_card(summary: Mapping[str, object]) -> str:
    """Text of ``dataset_card.md``.

    Args:
        summary: Of the run: ``num_images`` (accepted), ``num_prompts, prompts_source, model,
            model_hash, sampler, steps, eta, guidance_scale, guidance_interval, guidance_rescale,
            negative_prompt, seed, precision, resolution, format`` (folder or webdataset),
            ``embed_prompt``; ``acceptance`` as `Acceptance.as_dict` gives it; ``gates``, reason
            (`REASONS`) -> facts by name, e.g. thresholds and where they are from; ``num_gray``,
            ``chroma_dropped_mean``, ``chroma_dropped_max``.
    """
    return _TEMPLATE.format(
        size=next((name for limit, name in _SIZES if summary["num_images"] < limit), "10M<n<100M"),
        data_files="\n".join(
            f"  - {json.dumps(pattern)}" for pattern in DATA_FILES[summary["format"]]
        ),
        counts=_counts(summary["acceptance"]),
        facts=_table(("", ""), settings(summary).items()),
        gray=gray_text(summary),
        gates=_gates(summary["gates"]),
        copies=_CHECKED if "copy" in summary["gates"] else _UNCHECKED,
        in_words=" and in words" if summary["embed_prompt"] else "",
    )


def settings(summary: Mapping[str, object]) -> dict[str, str]:
    """What decides over the images, by name; the page of the run shows the same."""
    rescaled = f", rescaled {summary['guidance_rescale']:g}" if summary["guidance_rescale"] else ""
    first, last = summary["guidance_interval"]
    part = f", from {first:g} to {last:g} of the steps" if (first, last) != (0, 1) else ""
    eta = f", eta {summary['eta']:g}" if summary["eta"] else ""
    return {
        "images": f"{summary['num_images']:,}, {summary['resolution']} px",
        "prompts": f"{summary['num_prompts']:,}, from {summary['prompts_source']}",
        "model": str(summary["model"]),
        "model hash": f"SHA-256 {summary['model_hash']}",
        "sampler": f"{summary['sampler']}, {summary['steps']} steps{eta}",
        "guidance": f"{summary['guidance_scale']:g}{rescaled}{part}",
        "negative prompt": summary["negative_prompt"] or "none",
        "seed": str(summary["seed"]),
        "precision": summary["precision"],
    }


def gray_text(summary: Mapping[str, object]) -> str:
    """How many images are gray, and what became of their colour."""
    text = f"{summary['num_gray']:,} of {summary['num_images']:,} images are 8-bit gray"
    if summary["num_gray"]:
        text += (
            f"; dropped chroma: mean {format_number(summary['chroma_dropped_mean'])}, largest "
            f"{format_number(summary['chroma_dropped_max'])} grey levels"
        )
    return f"{text}."


def gate_facts(facts: Mapping[str, object]) -> str:
    """What to know of one gate, as one line."""
    return "; ".join(
        f"{_FACT_NAMES.get(name, name.replace('_', ' '))}: {_words(value)}"
        for name, value in facts.items()
        if name != "calibration"
    )


def calibration_rows(gates: Mapping[str, Mapping]) -> list[dict[str, object]]:
    """What calibrated thresholds do to the real images they were found on, label by label."""
    rows = []
    for label, found in gates.get("class", {}).get("calibration", {}).items():
        numbers = (found["precision"], *found["precision_ci95"])
        share, low, high = (format_number(number) for number in numbers)
        rows.append(
            {
                "label": label,
                "threshold": format_number(found["threshold"]),
                "precision (95 % interval)": f"{share} ({low} – {high})",
                "recall": format_number(found["recall"]),
                "real images with the label": found["num_positive"],
                "real images that pass": found["num_accepted"],
            }
        )
    return rows


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counts(acceptance: Mapping) -> str:
    """Images of each label, and how hard they were to get."""
    rows = []
    for label, entry in [*acceptance["per_label"].items(), ("all", acceptance["overall"])]:
        rate = "–" if entry["rate"] is None else f"{100 * entry['rate']:.1f} %"
        rows.append((label, entry["accepted"], entry["failed"], entry["attempts"], rate))
    table = _table(("label", "images", "failed", "attempts", "accepted per attempt"), rows)
    refused = acceptance["overall"]["reasons"]
    if refused:
        table += f"\n\nAttempts refused, by reason: {describe_reasons(refused)}."
    low = [*acceptance["low"], *acceptance["missing"]]
    if low:
        names = ", ".join(dict.fromkeys(low))
        table += (
            f"\n\n**Hardly ever accepted: {_cell(names)}.** The model does not draw what these "
            "labels ask for, or the classifier does not recognise it; the few that passed may "
            "not be typical."
        )
    return table


def _gates(gates: Mapping[str, Mapping[str, object]]) -> str:
    if not gates:
        return "Nothing: every image drawn is in the set."
    rows = [(REASONS[name], gate_facts(facts) or "–") for name, facts in gates.items()]
    table = _table(("refused if", "how it is told"), rows)
    if calibrated := calibration_rows(gates):
        table += "\n\nThe thresholds on the real images they were found on:\n\n"
        table += _table(tuple(calibrated[0]), (row.values() for row in calibrated))
    return table


def _table(heads: tuple[str, ...], rows) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
