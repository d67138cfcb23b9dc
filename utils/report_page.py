"""The page of report models: do synthetic pairs help, by how much; then the reports themselves.

Texts and scans of patients are on it only where they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils import report_sections
from utils.attention_examples import ReadScan
from utils.attention_maps import overlay, peak
from utils.diagnosis_report import with_interval
from utils.html_cards import DENIED, INVENTED, MISSED, RIGHT, Card, CardText
from utils.html_report import Page, png_data_uri
from utils.report_examples import Example, MarkedReport
from utils.report_scores import METRIC_NAMES
from utils.report_sections import main_figure
from utils.sweep_cells import Cell, MainFigure, SweepScores, arm_name, cell_name
from utils.sweep_sections import MAX_ROWS, add_comparisons
from utils.verdicts import ALL

_LEAD_METRICS = ("bleu_4", "rouge_l")  # behind the main figure
_NUM_OPEN = 8  # cards; the others open on demand
_CARD_PX, _MAP_PX = 420, 200
_PATIENTS_WARNING = (
    "This page holds texts and scans of patients. Do not pass it on, publish it or send it to a "
    "service outside; who may read the data may read this page, and nobody else."
)
_RUN_HEADS = {
    "arm": "arm",
    "label_share": "pairs, %",
    "synthetic_ratio": "synthetic, %",
    "seed": "seed",
    "num_real": "real",
    "num_synthetic": "synthetic",
    "num_val": "val",
    "steps": "steps",
    "best_epoch": "epoch",
    "val_loss": "val loss",
}
_MEANINGS = {
    RIGHT: "the finding is named in the true report too; in a true report: every arm named it",
    INVENTED: "the true report does not name it",
    MISSED: "in a true report: so many arms did not name it",
    DENIED: "as in “no drusen”: not counted",
}


@dataclass(frozen=True)
class ReportStory:
    """What the page has to tell beside its figures.

    Attributes:
        title: Of the page.
        verdict: Sentences that answer the question; none where nothing is compared.
        facts: Name -> value: data, network, training.
        notes: Sentences that must not be overlooked.
        metric: The main figure, as ``ReportScorer.main`` names it.
        kept: The cell of the captioner that is kept.
        named: Finding -> how many of the true test reports name it.
        num_reports: In the test set.
        num_patients: In the test set.
        runs: A row for each run.
    """

    title: str
    verdict: Sequence[str]
    facts: Mapping[str, object]
    notes: Sequence[str]
    metric: str
    kept: Cell
    named: Mapping[str, int]
    num_reports: int
    num_patients: int
    runs: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True)
class ShownReports:
    """Reports that are asked for.

    Attributes:
        examples: Test scans with their reports.
        source: Which models wrote them, as ``5 % of the pairs, seed 0``.
        reads: Scans with maps of the kept captioner's attention.
    """

    examples: Sequence[Example]
    source: str
    reads: Sequence[ReadScan] = ()


def write_page(
    path: Path, story: ReportStory, scores: SweepScores, shown: ShownReports | None
) -> None:
    """Write ``report.html``.

    Args:
        path: Where.
        story: What is told in words.
        scores: The statistics; baselines are cells too.
        shown: Reports and scans; None: the page has no text and no scan of a patient.
    """
    figure = main_figure(story.metric)
    page = Page(story.title, lead=_lead(story, scores, figure))
    page.notice("Research use only, not for diagnosis.")
    if shown is not None:
        page.notice(_PATIENTS_WARNING, kind="warning", title="Patients' data")
    if story.verdict:
        page.heading("Verdict")
        page.bullets(list(story.verdict))
    if story.notes:
        page.notice(list(story.notes), title="Keep in mind")
    report_sections.add_scores(page, scores, figure)
    report_sections.add_findings(page, scores, figure, named=story.named)
    report_sections.add_curves(page, scores, figure)
    add_comparisons(page, scores, figure)
    if shown is None:
        page.heading("Reports")
        page.paragraph(
            "No report and no scan is shown here. The same command with --show_reports adds some, "
            "with their findings marked and with maps of what the model reads; the page then holds "
            "patients' data."
        )
    else:
        _add_examples(page, shown)
        _add_reads(page, shown.reads, cell_name(story.kept, figure))
    _add_runs(page, story.runs)
    page.heading("Data and network")
    page.facts(story.facts)
    page.write(path)


def _lead(story: ReportStory, scores: SweepScores, figure: MainFigure) -> str:
    """The kept captioner's scores in a sentence."""
    figures = [
        f"{METRIC_NAMES[metric]} {with_interval(found)}"
        for metric in (figure.metric, *_LEAD_METRICS)
        if (found := scores.find(story.kept, ALL, metric)) is not None
    ]
    seeds = max((found.num_seeds for found in scores.estimates[story.kept]), default=1)
    return (
        f"{cell_name(story.kept, figure)}: {', '.join(figures)} on {story.num_reports:,} real "
        f"test scans of {story.num_patients:,} patients"
        + (f", the mean over {seeds} seeds" if seeds > 1 else "")
        + "; in brackets the 95 % interval."
    )


def _add_examples(page: Page, shown: ShownReports) -> None:
    """Scans with the true report and each arm's."""
    page.heading(f"Reports of {len(shown.examples)} test scans")
    page.paragraph(
        "One scan of a patient, drawn with a fixed seed, finding by finding in turn, so that rare "
        "ones occur: not a sample to count in. The arms' reports are by models that learned from "
        f"{shown.source}: with few pairs the arms differ most. A finding is named if the report "
        "says that it is present or uncertain."
    )
    page.cards(
        [_card(number, one) for number, one in enumerate(shown.examples, start=1)],
        meanings=_MEANINGS,
        num_open=_NUM_OPEN,
    )


def _card(number: int, example: Example) -> Card:
    image = example.record.image().convert("L")
    image.thumbnail((_CARD_PX, _CARD_PX), Image.Resampling.LANCZOS)
    texts = [CardText("true report", example.true.text, example.true.marks)]
    texts += [
        CardText(arm_name(arm), one.text, one.marks, _remark(one))
        for arm, one in example.written.items()
    ]
    title = f"{number}. {', '.join(example.named) or 'no finding named'}"
    return Card(title, example.record.file_name, png_data_uri(image), texts)


def _remark(report: MarkedReport) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in report.counts.items() if count)


def _add_reads(page: Page, reads: Sequence[ReadScan], kept: str) -> None:
    """The scans beside what was read while a word was written."""
    if not reads:
        return
    page.heading("What the model reads while it writes")
    page.paragraph(
        f"Captioner that is kept: {kept}. Under each picture the words that were being written."
    )
    sides, captions = {}, {}
    for number, one in enumerate(reads, start=1):
        name = f"{number}. {one.text}"
        sides[name] = [Image.fromarray(one.pixels), *(overlay(one.pixels, m) for _, m in one.maps)]
        captions[name] = [
            "scan",
            *(f"{words}, {peak(m):.1f}\N{NO-BREAK SPACE}×" for words, m in one.maps),
        ]
    page.gallery(
        sides,
        captions=captions,
        tile_px=_MAP_PX,
        large=True,
        caption="Cross-attention of the decoder's last layer, mean over its heads. Gray: read no "
        "more than if the whole scan were read evenly; the number says how many times as much the "
        "brightest patch is read (near 1: evenly, the picture says nothing). Attention is no "
        "explanation: other weights can give the same words (Jain and Wallace 2019, "
        "arxiv.org/abs/1902.10186).",
    )


def _add_runs(page: Page, runs: Sequence[Mapping[str, object]]) -> None:
    if not runs:
        return
    page.heading("Runs")
    missing = len(runs) - MAX_ROWS
    page.table(
        [row | {"arm": arm_name(row["arm"])} for row in runs[:MAX_ROWS]],
        _RUN_HEADS,
        dense=True,
        caption="Pairs that a run learned from, the epoch that is kept and its validation loss per "
        "word piece." + (f" {missing} more runs are in runs.csv." if missing > 0 else ""),
    )
