"""The page of a captioned set: how many, how sure the model was, how often it repeats itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from utils.captioner import Written
from utils.html_report import Page

NUM_BINS = 40  # of the histogram
NUM_FREQUENT = 10  # reports that are counted one by one
KEPT_SHARES = (100, 95, 90, 75, 50, 25, 10)  # percent of the scans, for the choice of a threshold

_PURPOSE = (
    "Every report of this set was written by a model from the image alone; no doctor has read it. "
    "For research, not for diagnosis. In metadata.csv the column text_source says so in every row."
)
_SHOWN = (
    "This page quotes reports. A model may repeat words of the patients' reports that it was "
    "trained on: treat the page as patients' data."
)
_CONFIDENCE = (
    "Confidence is the mean log-probability of a report's tokens: 0 is certainty, -0.1 means that "
    "the tokens had a probability of 90 % in the (geometric) mean. It tells how usual the wording "
    "is to the model, not whether the finding is right: check a threshold on scans whose reports "
    "are known."
)


def captioned_page(
    summary: Mapping[str, object], reports: Sequence[Written], *, show_reports: bool
) -> Page:
    """The page of one set.

    Args:
        summary: Of the run: ``num_scans, num_accepted, num_unusable, num_skipped, source, model,
            model_hash, min_confidence, mixed_precision``, and the decoding's flags.
        reports: One of each scan.
        show_reports: Whether the most frequent reports are quoted; else they are only counted.
    """
    page = Page("Reports of unlabeled scans", lead=_lead(summary))
    page.notice(_PURPOSE, title="Written by a model", kind="warning")
    if show_reports:
        page.notice(_SHOWN, title="Patients' texts", kind="warning")
    page.heading("How they were written")
    page.facts({name.replace("_", " ").capitalize(): fact for name, fact in summary.items()})
    _add_confidence(page, [report.confidence for report in reports])
    _add_frequent(page, [report.text for report in reports], show_reports=show_reports)
    return page


def _lead(summary: Mapping[str, object]) -> str:
    limit = summary["min_confidence"]
    wanted = "" if limit is None else f" with a confidence of {limit:g} or more"
    return f"{summary['num_accepted']:,} of {summary['num_scans']:,} scans are in the set{wanted}."


def _add_confidence(page: Page, confidences: Sequence[float]) -> None:
    """Histogram, and what a threshold would keep."""
    page.heading("Confidence")
    page.paragraph(_CONFIDENCE)
    values = np.array(confidences)
    counts, edges = np.histogram(values, NUM_BINS, range=(min(values.min(), -1e-3), 0))
    ys = np.concatenate([[0], np.repeat(counts, 2), [0]])  # a step per bin, zero at both ends
    page.curve(
        {"scans": list(zip(np.repeat(edges, 2).tolist(), ys.tolist()))},
        title="Confidence of all scans",
        x_label="mean log-probability of the report's tokens",
        y_label="scans",
    )
    ordered = np.sort(values)[::-1]
    rows = []
    for share in KEPT_SHARES:
        limit = ordered[max(1, round(share / 100 * len(ordered))) - 1]
        kept = int((values >= limit).sum())
        rows.append({"share": f"{share} %", "limit": f"{limit:.3f}", "kept": kept})
    page.table(
        rows,
        {"share": "To keep", "limit": "--min_confidence", "kept": "Scans kept"},
        caption="The same command with another threshold writes the set anew; no report is "
        "written again.",
    )


def _add_frequent(page: Page, texts: Sequence[str], *, show_reports: bool) -> None:
    """How often the most frequent reports stand there; their words only if asked for."""
    page.heading("Repeated reports")
    counts = Counter(texts)
    page.paragraph(
        f"{len(counts):,} different reports for {len(texts):,} scans. A model that writes the same "
        "report for most scans has learned the wording, not the images."
    )
    rows = []
    for rank, (text, count) in enumerate(counts.most_common(NUM_FREQUENT), start=1):
        row = {"rank": rank, "scans": count, "share": f"{100 * count / len(texts):.1f} %"}
        rows.append(row | {"report": text or "(empty)"})
    columns = {"rank": "Rank", "scans": "Scans", "share": "Share"}
    caption = "The words are left out: they may be patients'. --show_reports quotes them."
    if show_reports:
        columns["report"], caption = "Report", "The most frequent reports."
    page.table(rows, columns, caption=caption)
