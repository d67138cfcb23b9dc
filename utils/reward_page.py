"""The section of a page about a reward: what it foresees, how far it is right, what it likes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from utils.dataset import Dataset
from utils.html_report import Page
from utils.html_text import format_number
from utils.reward_evaluation import RewardReport

NAMES = {
    "spearman": "rank correlation with a held-out rater (Spearman)",
    "spearman_ceiling": "… of another rater instead",
    "pearson": "correlation with a held-out rater (Pearson)",
    "pearson_ceiling": "… of another rater instead",
    "log_loss": "log loss of a rating",
    "log_loss_constant": "… by the frequencies alone",
    "log_loss_gain": "… difference",
    "calibration_slope": "observed on expected rating: slope",
    "calibration_intercept": "… intercept",
    "calibration_error": "mean distance of observed from expected",
    "comparison_accuracy": "preferences foreseen",
    "comparison_log_loss": "log loss of a preference",
}
WHAT = (
    "A reward says what an average rater would say of an image beside its text, from 1 to 5. For "
    "these figures it was learnt anew for each fold, without the images and without the raters "
    "that it is judged by; images that were compared with each other were left out together"
)
NUM_SHOWN = 8
TILE_PX = 128


def add_reward_section(
    page: Page, report: RewardReport, dataset: Dataset, *, show_images: bool, level: int = 2
) -> None:
    """Add heading, warnings, figures, the reliability diagram and the images at both ends.

    Args:
        page: To add to.
        report: Of `utils.reward_training.evaluate_reward`.
        dataset: The N rated images.
        show_images: Whether to show images with their texts; among them may be real scans.
        level: Of the heading, 2 or 3.
    """
    page.heading("What the reward foresees", level=level)
    page.paragraph(WHAT + (", and those of one report." if report.by_text else "."))
    if report.warnings:
        page.notice(report.warnings, kind="warning")
    page.table(
        [_row(name, entry) for name, entry in report.entries.items()],
        {"figure": "held out", "value": "value", "ci95": "95 % interval", "n": "n", "note": ""},
        caption="n: images of correlations, else ratings or preferences.",
    )
    if len(report.raters) > 1:
        names = {"raters": "held-out rater", "images": "images", "spearman": "reward's Spearman"}
        page.table(report.raters, names | {"ceiling": "other raters'"})
    if report.bins:
        _add_reliability(page, report)
    if show_images:
        _add_ends(page, report, dataset)


def _row(name: str, entry: dict[str, object]) -> dict[str, object]:
    bounds = entry["ci95"]
    interval = f"{format_number(bounds[0])} to {format_number(bounds[1])}" if bounds else None
    note = "; ".join(entry.get("notes", ()))
    cells = {"figure": NAMES[name], "value": entry["value"], "ci95": interval}
    return cells | {"n": entry["n"], "note": note}


def _add_reliability(page: Page, report: RewardReport) -> None:
    """Observed over expected rating, beside the diagonal."""
    points = [(row["predicted"], row["observed"]) for row in report.bins]
    bounds = {
        row["predicted"]: None if row["low"] is None else (row["low"], row["high"])
        for row in report.bins
    }
    page.curve(
        {"observed": points, "as expected": [(x, x) for x, _ in points]},
        title="Is a rating of 4 foreseen where 4 is given?",
        x_label="expected rating of held-out images",
        y_label="rating given by held-out raters",
        intervals={"observed": bounds},
        caption=f"{sum(row['ratings'] for row in report.bins)} ratings in bins of as many; "
        "bars: 95 % intervals over images.",
    )


def _add_ends(page: Page, report: RewardReport, dataset: Dataset) -> None:
    """The images that it likes least and most, with what raters gave them."""
    order = np.argsort(report.score, kind="stable")
    order = order[~np.isnan(report.score[order])]
    if not len(order):
        return
    sides = {"lowest": order[:NUM_SHOWN], "highest": order[::-1][:NUM_SHOWN]}
    pictures: dict[str, list[Image.Image]] = {}
    captions: dict[str, list[str]] = {}
    for side, chosen in sides.items():
        pictures[side] = [dataset[int(index)].image() for index in chosen]
        captions[side] = [
            f"{report.score[index]:.1f}, raters {report.observed[index]:.1f}: "
            f"{dataset[int(index)].text}"
            for index in chosen
        ]
    page.gallery(
        sides=pictures,
        captions=captions,
        tile_px=TILE_PX,
        caption="Held-out score, mean rating of the raters, text.",
    )
