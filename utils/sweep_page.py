"""The page of a sweep: does it help, by how much, is it chance; then what to look at closely."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from utils import diagnosis_sections as sections
from utils import sweep_details, sweep_sections
from utils.diagnosis_report import with_interval
from utils.error_sheet import write_error_sheet
from utils.html_report import Page
from utils.sweep_cells import Cell, SweepScores, cell_name, runs_of
from utils.sweep_curves import add_ratio_curves, add_share_curve
from utils.sweep_results import SweepResults


@dataclass(frozen=True)
class SweepStory:
    """What a sweep has to tell beside its figures.

    Attributes:
        title: Of the page.
        verdict: Sentences that answer the question; none where nothing is compared.
        facts: Name -> value: data, network, training.
        notes: Sentences that must not be overlooked.
        robustness: How the best cell's test images were smoothed -> accuracy and AUROC.
        add_more: Adds what else belongs to the page, before the facts.
    """

    title: str
    verdict: Sequence[str]
    facts: Mapping[str, object]
    notes: Sequence[str] = ()
    robustness: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    add_more: Callable[[Page], None] | None = None


def write_page(
    path: Path, story: SweepStory, results: SweepResults, scores: SweepScores, *, best: Cell
) -> None:
    """Write ``report.html`` and, beside it, ``errors.png`` if the best cell makes errors.

    Args:
        path: Where.
        story: What is told in words and pictures.
        results: The runs.
        scores: Their statistics.
        best: The winning cell, which is shown in detail.
    """
    page = Page(story.title, lead=_lead(results, scores, best))
    page.notice("Research use only, not for diagnosis.")
    if story.verdict:
        page.heading("Verdict")
        page.bullets(list(story.verdict))
    if story.notes:
        page.notice(list(story.notes), title="Keep in mind")
    several = len(scores.estimates) > 1
    if several:
        sweep_sections.add_diagnoses(page, results, scores)
        sweep_sections.add_shares(page, results, scores)
        add_share_curve(page, scores)
        add_ratio_curves(page, scores)
        sweep_sections.add_comparisons(page, scores)
        page.heading("The winning arm in detail")
        page.paragraph(f"{cell_name(best)}.")
    else:
        page.heading("Scores by diagnosis")
    sections.add_scores(page, scores.estimates[best], results.targets, results.labels)
    sweep_details.add_decisions(page, results, scores)
    _add_errors(page, write_error_sheet(path.with_name("errors.png"), results, best))
    sweep_details.add_calibration(page, results, scores, best=best)
    sweep_details.add_sources(page, results, scores)
    if story.robustness:
        page.heading("Smoothed images")
        sections.add_robustness(page, story.robustness)
    sweep_details.add_training(page, results, scores)
    sweep_details.add_runs(page, results, scores)
    if story.add_more is not None:
        story.add_more(page)
    page.heading("Data and network")
    page.facts(story.facts)
    page.write(path)


def _lead(results: SweepResults, scores: SweepScores, best: Cell) -> str:
    """The best cell's scores in a sentence."""
    figures = [
        f"{name} {with_interval(found)}"
        for metric, name in (("auroc", "macro AUROC"), ("accuracy", "accuracy"))
        if (found := scores.macro(best, metric)) is not None
    ]
    seeds = len(runs_of(results, best))
    return (
        f"{cell_name(best)}: {', '.join(figures)} on {len(results.targets):,} real "
        f"test images of {_count_patients(results)}"
        + (f", the mean over {seeds} seeds" if seeds > 1 else "")
        + "; in brackets the 95 % interval."
    )


def _add_errors(page: Page, errors: Image.Image | None) -> None:
    page.heading("Most confident errors")
    if errors is None:
        page.paragraph("No test image is called wrong.")
        return
    page.image(
        errors,
        "Test images that the winning arm is surest about and wrong, one of each patient at most. "
        "Under each picture the true diagnosis, then what was said and the probability given to "
        "it, the mean over seeds.",
    )


def _count_patients(results: SweepResults) -> str:
    """How many patients are tested, or that it is not known."""
    if any(record.patient_id is None for record in results.records):
        return "patients who are not all known"
    return f"{len(set(results.patients)):,} patients"
