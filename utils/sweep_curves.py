"""Curves of a sweep: how much more labels and more synthetic images are worth, per arm."""

from __future__ import annotations

from collections.abc import Sequence

from utils.html_report import Page
from utils.sweep_cells import (
    SweepScores,
    arm_name,
    arms_of,
    cells_at,
    main_ratio,
    ratios_of,
    shares_of,
)


def add_share_curve(page: Page, scores: SweepScores) -> None:
    """Macro AUROC against the label share, at the main ratio; nothing for a single share."""
    shares, ratio = shares_of(scores.estimates), main_ratio(scores.estimates)
    if len(shares) < 2:
        return
    at = f", synthetic ratio {ratio:g} %" if len(ratios_of(scores.estimates)) > 1 else ""
    _add_curve(
        page,
        scores,
        [(share, (share, ratio)) for share in shares],
        title=f"Label share and AUROC{at}",
        x_label="labelled patients in training, % (logarithmic)",
        level="that uses no real label",
    )


def add_ratio_curves(page: Page, scores: SweepScores) -> None:
    """Macro AUROC against the synthetic ratio, at the smallest and the largest label share."""
    ratios, shares = ratios_of(scores.estimates), shares_of(scores.estimates)
    if len(ratios) < 2:
        return
    page.heading("Synthetic ratios")
    for share in dict.fromkeys((shares[:1] + shares[-1:]) or [0.0]):
        at = f", {share:g} % of the labels" if share else ""
        _add_curve(
            page,
            scores,
            [(ratio, (share, ratio)) for ratio in ratios],
            title=f"Synthetic images and AUROC{at}",
            x_label="synthetic images, % of all real training images (logarithmic)",
            level="without synthetic images",
        )


def _add_curve(
    page: Page,
    scores: SweepScores,
    places: Sequence[tuple[float, tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    level: str,
) -> None:
    """Macro AUROC of every arm at places (x, (label share, ratio)); a cell's interval once."""
    names = [arm_name(arm) for arm in arms_of(scores.estimates)]
    curves, bounds = {name: [] for name in names}, {name: {} for name in names}
    seen, has_level = set(), False
    for x, (share, ratio) in places:
        for arm, cell in cells_at(scores.estimates, share, ratio).items():
            found = scores.macro(cell, "auroc")
            if found is not None:
                curves[arm_name(arm)].append((x, found.value))
                if cell not in seen:
                    bounds[arm_name(arm)][x] = (found.low, found.high)
                has_level = has_level or cell in seen
                seen.add(cell)
    page.curve(
        curves,
        title=title,
        x_label=x_label,
        y_label="macro AUROC",
        caption="Mean over all diagnoses and seeds. Error bars: 95 % intervals."
        + (f" An arm {level} is a level line." if has_level else ""),
        log_x=True,
        intervals=bounds,
    )
