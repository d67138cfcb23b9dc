"""The page of a generated data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from utils.acceptance import (
    LOW_RATE,
    NUM_SCORE_BINS,
    REASONS,
    Acceptance,
    Tally,
    describe_low,
)
from utils.dataset_card import calibration_rows, gate_facts, gray_text, settings
from utils.generation_samples import Sample
from utils.html_report import Page
from utils.images import read_image

MAX_LABELS = 12  # whose images are shown
TILE_PX = 128

RESEARCH_USE = (
    "Every image of this set was made by a diffusion model and shows no patient. For research, not "
    "for diagnosis."
)
_NOT_AUDITED = (
    "Whether images repeat training images was not checked. Compare the set with them before it "
    "leaves the house (evaluate.py --train_dir)."
)
_PROVENANCE = (
    "Each PNG says in its metadata that it is synthetic (also as IPTC's digital source type "
    "trainedAlgorithmicMedia), by which model and from which seed, and names its prompt by a hash. "
    "manifest.csv has every attempt, refused ones with the reason. An image depends on the model, "
    "its prompt, the settings above, the seed, its index and the number of the attempt, and on "
    "nothing else: the same command draws it again."
)


def generation_page(
    summary: Mapping[str, object],
    acceptance: Acceptance,
    accepted: Mapping[str, Sequence[Sample]],
    refused: Mapping[str, Sequence[Sample]],
) -> Page:
    """The page of one set.

    Args:
        summary: As `dataset_card` takes it, with ``num_asked, num_failed, num_attempts``.
        acceptance: Of the whole manifest.
        accepted: Label -> images to show.
        refused: Reason -> images to show; empty where they were not kept.
    """
    page = Page("Synthetic images", lead=_lead(summary))
    page.notice(RESEARCH_USE, title="Purpose")
    _add_warnings(page, summary, acceptance)
    page.heading("How it was drawn")
    page.facts({name[:1].upper() + name[1:]: text for name, text in settings(summary).items()})
    page.paragraph(gray_text(summary))
    _add_gates(page, summary["gates"])
    _add_acceptance(page, acceptance)
    if any(map(sum, acceptance.scores.values())):
        _add_scores(page, acceptance)
    _add_accepted(page, accepted)
    _add_refused(page, refused)
    page.heading("Provenance")
    in_words = " This set's PNGs hold the prompt itself too." if summary["embed_prompt"] else ""
    page.paragraph(_PROVENANCE + in_words)
    return page


def _lead(summary: Mapping[str, object]) -> str:
    """What came of it, in one sentence."""
    failed = f"; {summary['num_failed']:,} were given up" if summary["num_failed"] else ""
    drawn = ""
    if summary["num_attempts"] != summary["num_images"]:
        drawn = f", {summary['num_attempts']:,} images drawn to get them"
    return (
        f"{summary['num_images']:,} of {summary['num_asked']:,} images asked for{drawn}{failed}. "
        f"{summary['resolution']} px, model {summary['model']}."
    )


def _add_warnings(page: Page, summary: Mapping[str, object], acceptance: Acceptance) -> None:
    """What must not be overlooked before the set is used."""
    if found := describe_low(acceptance):
        more = (
            "The model does not draw what these labels ask for, or the classifier does not "
            "recognise it. Look at their images, at the classifier's score for the label, and at "
            "a higher guidance scale, before you use what passed."
        )
        texts = [f"{sentence}." for sentence in found]
        page.notice([*texts, more], kind="warning", title="Labels that hardly pass the gate")
    if "copy" not in summary["gates"]:
        page.notice(_NOT_AUDITED, kind="warning", title="Copies of training images")


def _add_gates(page: Page, gates: Mapping[str, Mapping[str, object]]) -> None:
    page.heading("What an image had to pass")
    if not gates:
        page.paragraph("Nothing: every image drawn is in the set.")
        return
    page.paragraph(
        "An image was refused if one of these was found, and then drawn again from another seed "
        "until the attempts allowed were used up."
    )
    page.facts(
        {REASONS[name].capitalize(): gate_facts(facts) or None for name, facts in gates.items()}
    )
    if calibrated := calibration_rows(gates):
        page.table(
            [{name.capitalize(): value for name, value in row.items()} for row in calibrated],
            caption="The classifier's thresholds on the real images they were found on. Precision: "
            "share of the images that pass which have the label; recall: share of the images with "
            "the label that pass.",
        )


def _add_acceptance(page: Page, acceptance: Acceptance) -> None:
    """The table of counts, and the rates as bars where anything was refused."""
    page.heading("Images per label")
    rows = [_count_row(label, tally) for label, tally in acceptance.per_label.items()]
    if len(rows) > 1:
        rows.append(_count_row("all labels", acceptance.overall))
    reasons = [name for name in REASONS if acceptance.overall.reasons[name]]
    columns = {
        "label": "Label",
        "asked": "Asked for",
        "accepted": "In the set",
        "failed": "Given up",
        "attempts": "Attempts",
        "rate": "Accepted per attempt (95 % interval)",
        "score": "Mean score",
    }
    caption = "Score: the classifier's probability of the asked label, in the set."
    if not any(row["score"] for row in rows):
        del columns["score"]
        caption = None
    page.table(rows, columns, caption=caption)
    if not reasons:
        page.paragraph("No attempt was refused.")
        return
    page.bars(
        {label: {"rate": _percent(tally)} for label, tally in acceptance.per_label.items()},
        title="Accepted attempts",
        intervals={
            label: {"rate": tuple(100 * bound for bound in tally.interval)}
            for label, tally in acceptance.per_label.items()
        },
        x_label="accepted attempts, %",
        caption=f"Whiskers: 95 % intervals. Labels under {100 * LOW_RATE:.0f} % are called out.",
    )
    page.heading("Why attempts were refused", level=3)
    page.table(
        [
            {"label": row["label"]} | {name: row["reasons"][name] for name in reasons}
            for row in rows
        ],
        {"label": "Label"} | {name: REASONS[name].capitalize() for name in reasons},
        caption="Attempts; one refused for two reasons counts in both.",
    )


def _count_row(label: str, tally: Tally) -> dict[str, object]:
    low, high = (100 * bound for bound in tally.interval)
    return {
        "label": label,
        **vars(tally),
        "rate": f"{_percent(tally):.1f} % ({low:.1f} – {high:.1f})",
        "score": tally.mean_score,
    }


def _percent(tally: Tally) -> float:
    return 100 * tally.rate


def _add_scores(page: Page, acceptance: Acceptance) -> None:
    """Histograms of the classifier's scores."""
    page.heading("What the classifier said")
    edges = np.linspace(0, 1, NUM_SCORE_BINS + 1)
    curves = {}
    for name, counts in acceptance.scores.items():
        if any(counts):  # a step per bin, down to zero at both ends
            ys = np.concatenate([[0], np.repeat(counts, 2), [0]])
            curves[name] = list(zip(np.repeat(edges, 2).tolist(), ys.tolist()))
    page.curve(
        curves,
        title="Scores of all attempts",
        x_label="classifier's probability of the asked label",
        y_label="attempts",
        caption="Two hills apart: the classifier is sure. Accepted images right at the threshold "
        "are the ones to look at.",
    )


def _add_accepted(page: Page, accepted: Mapping[str, Sequence[Sample]]) -> None:
    if not accepted:
        return
    page.heading("Images")
    page.paragraph("Drawn by chance, not picked. Under each: its index, and its score if it has.")
    _add_gallery(page, dict(list(accepted.items())[:MAX_LABELS]))
    if len(accepted) > MAX_LABELS:
        page.paragraph(f"{len(accepted) - MAX_LABELS} more labels are not shown.")


def _add_refused(page: Page, refused: Mapping[str, Sequence[Sample]]) -> None:
    if not refused:
        return
    page.heading("Refused images")
    page.paragraph("Drawn by chance from those that were kept; they are not part of the set.")
    _add_gallery(
        page,
        {REASONS[name].capitalize(): samples for name, samples in refused.items()},
        labels=True,
    )


def _add_gallery(
    page: Page, sides: Mapping[str, Sequence[Sample]], *, labels: bool = False
) -> None:
    page.gallery(
        {name: [read_image(sample.path) for sample in samples] for name, samples in sides.items()},
        captions={
            name: [_caption(sample, label=labels) for sample in samples]
            for name, samples in sides.items()
        },
        tile_px=TILE_PX,
    )


def _caption(sample: Sample, *, label: bool) -> str:
    parts = [sample.label] if label else []
    parts.append(str(sample.index))
    if sample.score:
        parts.append(f"{float(sample.score):.2f}")
    return ", ".join(parts)
