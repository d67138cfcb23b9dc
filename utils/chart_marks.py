"""Curves with a mark and an error bar at every point, told apart without colour too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from utils.chart_axes import Scale

NUM_COLOURS = 6
# Paths that start in the middle: circle, square, triangle up, diamond, triangle down, plus.
MARKS = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "m-3.6 -3.6h7.2v7.2h-7.2z",
    "m0 -4.8l4.6 8h-9.2z",
    "m0 -5l5 5l-5 5l-5 -5z",
    "m0 4.8l4.6 -8h-9.2z",
    "m-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
)

Point = tuple[float, float]


def line_key(index: int) -> str:
    """What a legend shows of a series: its dashes and its mark."""
    css = f"c{index % NUM_COLOURS}"
    return (
        '<svg class="line-key" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path class="line {css}" d="M1 6H33"/>{_mark(17, 6, index)}</svg>'
    )


def marked_path(
    points: Sequence[Point],
    bounds: Mapping[float, Point | None],
    scales: tuple[Scale, Scale],
    *,
    index: int,
    shift: float,
) -> str:
    """A line with a mark and an error bar at every point, ``shift`` units to the right."""
    x_scale, y_scale = scales
    css = f"c{index % NUM_COLOURS}"
    places = [(x_scale(x) + shift, y_scale(y)) for x, y in points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line {css}" points="{joined}"/>']
    for (value, _), (x, y) in zip(points, places):
        pair = bounds.get(value)
        if pair is not None and all(map(math.isfinite, pair)):
            low, high = map(y_scale, pair)
            parts.append(
                f'<path class="bound {css}" d="M{x:.1f} {low:.1f}V{high:.1f}'
                f'M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"/>'
            )
        parts.append(_mark(x, y, index))
    return "".join(parts)


def _mark(x: float, y: float, index: int) -> str:
    """The mark of a series at a point; shapes differ, for eyes and printers without colour."""
    shape = MARKS[index % NUM_COLOURS]
    return f'<path class="dot c{index % NUM_COLOURS}" d="M{x:.1f} {y:.1f}{shape}"/>'
