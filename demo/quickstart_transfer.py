"""The quickstart's section on chest X-rays: what the OCT model learned, and what it forgot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from demo.quickstart_parts import first_pictures, format_entry
from utils.json_file import read_json

if TYPE_CHECKING:
    from utils.html_report import Page

STAGES = {
    "films": "simulate a chest clinic",
    "films_split": "split it by patient",
    "film_diagnosis": "train a classifier on its films",
    "transferred": "carry the generator over to chest X-rays",
    "films_drawn": "draw films",
    "scans_after": "draw OCT scans after it",
    "film_evaluation": "evaluate the films",
    "scans_evaluation": "evaluate the OCT scans",
}
LEARNED = 0.5  # of the drawn films show what was asked for: the words have been learned
PAGES = ("film_evaluation", "scans_evaluation")


def add_transfer(page: Page, run_dir: Path) -> None:
    """Films before all eyes, whether the asked finding is in them, and what became of OCT."""
    films, after, before = (
        read_json(run_dir / name / "metrics.json")
        for name in ("film_evaluation", "scans_evaluation", "evaluation")
    )
    page.heading("Carried over to chest X-rays")
    page.paragraph(
        "The fine-tuned OCT model goes on learning from simulated chest films. Prompts begin with "
        "CXR or OCT, and a fifth of what it sees is OCT, so that one model keeps both. A "
        "classifier trained on the clinic's films finds the finding that was asked for in "
        f"{films['overall']['agreement']['value']:.0%} of the drawn ones; one trained on its OCT "
        f"scans found it in {before['overall']['agreement']['value']:.0%} of the OCT scans before, "
        f"and in {after['overall']['agreement']['value']:.0%} after."
    )
    if films["overall"]["agreement"]["value"] < LEARNED:
        page.paragraph(
            "So few steps teach what a film looks like, but hardly what its words mean: "
            "docs/transfer.md tells how far more steps lead."
        )
    rows = [
        {
            "finding": label,
            "recognised in drawn films": format_entry(scores["agreement"]),
            "in real test films": scores["agreement"].get("real"),
        }
        for label, scores in films["per_label"].items()
    ]
    page.table(rows, caption="Share of the images; brackets are 95 % intervals.")
    page.paragraph("Left and right are the patient's: the left lung is on the right of a film.")
    for label in films["per_label"]:
        page.heading(label, level=3)
        page.gallery(
            {
                "real": first_pictures(run_dir / "films", label, split="test"),
                "synthetic": first_pictures(run_dir / "films_drawn", label, split=None),
            }
        )
