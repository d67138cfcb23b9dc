"""The quickstart's section on doctors: what they said, and what a generator made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.html_text import format_change
from utils.json_file import read_json

if TYPE_CHECKING:
    from utils.html_report import Page

STAGES = {
    "few": "hide the reports of four patients in five",
    "forgetful": "make the base forget the words",
    "weak": "train a weak generator on few reports",
    "weak_drawn": "draw scans to be rated",
    "second": "simulate a second clinic",
    "second_split": "split it by patient",
    "oracle": "train the simulated doctors' oracle on it",
    "study": "make a blinded study",
    "raters": "simulated doctors rate it",
    "ratings": "export their answers",
    "rating_report": "analyse their answers",
    "improved": "a round of training by what they said",
}
PAGES = ("rating_report", "improved")
SCORES = {
    "agreement": "asked finding seen by the judge",
    "held_out_reward": "reward of held-out raters, 1 to 5",
    "fid": "Fréchet distance on the judge's features",
    "recall": "recall",
}
_TILES = 12


def add_doctors(page: Page, run_dir: Path) -> None:
    """What simulated doctors said of a weak generator, and whether learning from it helped."""
    ratings = read_json(run_dir / "rating_report" / "results.json")
    found = read_json(run_dir / "improved" / "results.json")
    page.heading("Doctors in the loop")
    page.paragraph(
        "A generator that learned the words from the reports of a fifth of the patients draws "
        "scans; four simulated doctors (an oracle classifier with noise, no real doctors) rate "
        "them and real ones blindly. A reward learned from some of them weighs what the generator "
        "draws next, and it trains on that beside the real pairs."
    )
    page.bullets(ratings["findings"])
    page.bullets([_foreseen(found), _outcome(found)])
    page.table(
        [_row(name, text, found) for name, text in SCORES.items() if name in found["first"]],
        caption="Texts of val patients, the same seeds before and after; brackets are 95 % "
        "intervals of the change over prompts, of recall over patients. One round of 120 steps.",
    )
    sheets = {"before": "round-0", "after one round": "round-1"}
    page.gallery(
        {name: _drawn(run_dir / "improved" / folder) for name, folder in sheets.items()},
        caption="Image by image the same text and the same noise.",
    )


def _foreseen(found: dict) -> str:
    entry = found["rewards"]["reward"]["entries"]["spearman"]
    text = "The reward's rank correlation with ratings of raters and scans that it had not seen: "
    text += f"{entry['value']:.2f}"
    if entry["ci95"]:
        text += " [{:.2f}, {:.2f}]".format(*entry["ci95"])
    return text + "."


def _outcome(found: dict) -> str:
    if not found["best_round"]:
        return f"The round was not kept: {found['stopped']}. The output is the weak generator."
    return "The round is better by what it was chosen by, and is the output."


def _row(name: str, text: str, found: dict) -> dict[str, str]:
    last = found["last"]
    row = {"score": text, "before": f"{found['first'][name]:.3g}"}
    row["after"] = f"{last['scores'][name]:.3g}"
    row["change"] = format_change(last["compared"][name])
    return row


def _drawn(folder: Path) -> list:
    """Some of a round's images that measure it, label by label."""
    from utils.dataset import load_dataset
    from utils.improvement import HELD_OUT, sheet_records

    data = load_dataset(folder / HELD_OUT, check_pixels=False)
    chosen = sheet_records(data)
    return [data[index].image() for index in chosen[:: max(1, len(chosen) // _TILES)]][:_TILES]
