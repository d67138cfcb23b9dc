"""Curves of a sweep: how much more labels and more synthetic images are worth, per arm."""

from __future__ import annotations

from collections.abc import Sequence

from utils.html_report import Page
from utils.sweep_cells import (
    DIAGNOSIS,
    MainFigure,
    SweepScores,
    arm_name,
    arms_of,
    cells_at,
    main_ratio,
    ratios_of,
    shares_of,
)


def add_share_curve(page: Page, scores: SweepScores, figure: MainFigure = DIAGNOSIS) -> None:
    """The main figure against the label share, at the main ratio; nothing for a single share."""
    shares, ratio = shares_of(scores.estimates), main_ratio(scores.estimates)
    if len(shares) < 2:
        return
    at = f", synthetic ratio {ratio:g} %" if len(ratios_of(scores.estimates)) > 1 else ""
    _add_curve(
        page,
        scores,
        [(share, (share, ratio)) for share in shares],
        figure=figure,
        title=f"{figure.share.capitalize()} and {figure.name}{at}",
        x_label=f"{figure.patients}, % (logarithmic)",
        level=figure.level,
    )


def add_ratio_curves(page: Page, scores: SweepScores, figure: MainFigure = DIAGNOSIS) -> None:
    """The main figure against the synthetic ratio, at the smallest and the largest share."""
    ratios, shares = ratios_of(scores.estimates), shares_of(scores.estimates)
    if len(ratios) < 2:
        return
    page.heading("Synthetic ratios")
    for share in dict.fromkeys((shares[:1] + shares[-1:]) or [0.0]):
        at = f", {share:g} % of the {figure.unit}s" if share else ""
        _add_curve(
            page,
            scores,
            [(ratio, (share, ratio)) for ratio in ratios],
            figure=figure,
            title=f"Synthetic images and {figure.name}{at}",
            x_label="synthetic images, % of all real training images (logarithmic)",
            level="without synthetic images",
        )


def _add_curve(
    page: Page,
    scores: SweepScores,
    places: Sequence[tuple[float, tuple[float, float]]],
    *,
    figure: MainFigure,
    title: str,
    x_label: str,
    level: str,
) -> None:
    """The figure of every arm at places (x, (label share, ratio)); a cell's interval once."""
    names = [arm_name(arm) for arm in arms_of(scores.estimates)]
    curves, bounds = {name: [] for name in names}, {name: {} for name in names}
    seen, has_level = set(), False
    for x, (share, ratio) in places:
        for arm, cell in cells_at(scores.estimates, share, ratio).items():
            found = scores.find(cell, figure.target, figure.metric)
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
        y_label=figure.over_all,
        caption=f"Mean over {figure.mean_over}. Error bars: 95 % intervals."
        + (f" An arm {level} is a level line." if has_level else ""),
        log_x=True,
        intervals=bounds,
    )
