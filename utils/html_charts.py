"""Line and bar charts as inline SVG, for pages that must be read without a network or scripts.

Colours, fonts and the phone layout live in the style sheet of ``html_report``: a chart only names
classes (``c0`` … ``c5`` for the series), so one page has one look, in light, dark and print.
Coordinates are in user units of a drawing ``WIDTH`` units wide that scales with the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256

from utils.chart_axes import (
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    PLOT_HEIGHT,
    WIDTH,
    Scale,
    draw_axes,
)
from utils.chart_marks import NUM_COLOURS, Point, line_key, marked_path
from utils.html_text import escape, format_number

MAX_POINTS = 1000
SMOOTH_FROM = 100  # a curve of fewer points (validation) is drawn as it is
BAR_PX, BAR_GAP_PX, GROUP_GAP_PX, NAME_PX = 16, 5, 20, 24
VALUE_ROOM = 96
EDGE_PX = 24  # room for error bars beside the first and the last x
DODGE_PX = 5  # between the error bars of two series at the same x


def _drawable(points: Sequence[Point], *, log_x: bool, log_y: bool) -> list[Point]:
    """Finite points that the axes can show, thinned evenly to ``MAX_POINTS``, last one kept."""
    kept = [
        (float(x), float(y))
        for x, y in points
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
        if (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    if len(kept) <= MAX_POINTS:
        return kept
    stride = math.ceil(len(kept) / MAX_POINTS)
    return kept[:-1:stride] + kept[-1:]


def smooth_points(points: Sequence[Point], weight: float) -> list[Point]:
    """Exponential moving average of y with bias correction (``weight`` in [0, 1) of the past)."""
    average, norm, smoothed = 0.0, 0.0, []
    for x, y in points:
        average = weight * average + (1 - weight) * y
        norm = weight * norm + (1 - weight)
        smoothed.append((x, average / norm))
    return smoothed


def _svg(body: Sequence[str], *, height: float, title: str, description: str) -> str:
    """Wrap drawing elements with the names that a screen reader speaks."""
    names = escape(title), escape(description)
    # Of the content: the same chart has the same bytes on every page.
    key = "chart" + sha256("\n".join([*names, *body]).encode()).hexdigest()[:12]
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'aria-labelledby="{key}t {key}d"><title id="{key}t">{names[0]}</title>'
        f'<desc id="{key}d">{names[1]}</desc>{"".join(body)}</svg>'
    )


def legend(names: Sequence[str], *, marked: bool = False) -> str:
    """An HTML list naming the series; nothing for a single one, the title names that.

    Args:
        names: Of the series.
        marked: Whether to show each one's dashes and mark instead of its colour alone.
    """
    if len(names) < 2:
        return ""
    items = "".join(
        f"<li>{line_key(i) if marked else _colour_key(i)}{escape(name)}</li>"
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _colour_key(index: int) -> str:
    return f'<span class="key c{index % NUM_COLOURS}"></span>'


def _path(points: Sequence[Point], x_scale: Scale, y_scale: Scale, css: str) -> str:
    """One polyline, with a dot at its last point (the only mark of a one-point series)."""
    if not points:
        return ""
    places = [(x_scale(x), y_scale(y)) for x, y in points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dot = f'<circle class="dot {css}" cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="3.5"/>'
    return f'<polyline class="line {css}" points="{joined}"/>{"" if "faint" in css else dot}'


def _first_and_last(curve: Sequence[Point]) -> str:
    if not curve:
        return "no value"
    first, last = format_number(curve[0][1]), format_number(curve[-1][1])
    return f"{first} at the start, {last} at the end"


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    smooth: float = 0.0,
    intervals: Mapping[str, Mapping[float, Point | None]] | None = None,
) -> str:
    """Curves over a common x axis.

    Args:
        series: Name -> (x, y) in order of x; points that no axis can show are left out.
        title: Spoken name of the drawing.
        x_label: What x is, with its unit; likewise ``y_label``.
        y_label: See above.
        log_x: Logarithmic x axis; likewise ``log_y``.
        log_y: See above.
        smooth: Weight of the past in [0, 1) of an average drawn over long curves, then faint.
        intervals: Name -> x -> (low, high). With them the points are few: each has a mark and an
            error bar, and the x axis its tick there.

    Returns:
        SVG and legend; a sentence instead when no point can be drawn.
    """
    curves = {n: _drawable(p, log_x=log_x, log_y=log_y) for n, p in series.items()}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return f"<p>{escape(title)}: nothing to draw, no finite value was recorded.</p>"
    scales = _scales(points, intervals, log_x=log_x, log_y=log_y)
    body, spoken = draw_axes(*scales, x_label=x_label, y_label=y_label), []
    for index, (name, curve) in enumerate(curves.items()):
        css = f"c{index % NUM_COLOURS}"
        if intervals is not None:
            shift = DODGE_PX * (index - (len(curves) - 1) / 2)
            bounds = intervals.get(name, {})
            body.append(marked_path(curve, bounds, scales, index=index, shift=shift))
        elif smooth and len(curve) >= SMOOTH_FROM:
            body.append(_path(curve, *scales, f"{css} faint"))
            curve = smooth_points(curve, smooth)
        if intervals is None:
            body.append(_path(curve, *scales, css))
        spoken.append(f"{name}: {_first_and_last(curve)}")
    description = f"{y_label} over {x_label}. " + "; ".join(spoken)
    height = MARGIN_TOP + PLOT_HEIGHT + MARGIN_BOTTOM
    names = legend(list(series), marked=intervals is not None)
    return _svg(body, height=height, title=title, description=description) + names


def _scales(
    points: Sequence[Point],
    intervals: Mapping[str, Mapping[float, Point | None]] | None,
    *,
    log_x: bool,
    log_y: bool,
) -> tuple[Scale, Scale]:
    """The axes of curves; with intervals, wide enough for them and with ticks at the points."""
    left, right, bottom = MARGIN_LEFT, WIDTH - MARGIN_RIGHT, MARGIN_TOP + PLOT_HEIGHT
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ticks = None
    if intervals is not None:
        left, right = left + EDGE_PX, right - EDGE_PX
        bounds = [b for row in intervals.values() for pair in row.values() if pair for b in pair]
        ys += [b for b in bounds if math.isfinite(b) and (b > 0 or not log_y)]
        places = sorted(set(xs))
        ticks = places if len(places) > 1 else None
    return (
        Scale(xs, start=left, end=right, log=log_x, ticks=ticks),
        Scale(ys, start=bottom, end=MARGIN_TOP, log=log_y),
    )


def _bar_axis(scale: Scale, *, bottom: float, x_label: str) -> list[str]:
    """The zero line, tick labels and axis name under a bar chart."""
    axis = [f'<path class="zero" d="M{scale(0.0):.1f} 4V{bottom:.0f}"/>']
    for x, label in scale.labels():
        axis.append(f'<path class="tick" d="M{x:.1f} {bottom:.0f}v5"/>')
        axis.append(
            f'<text class="centre" x="{max(x, 14):.1f}" y="{bottom + 22:.0f}">{label}</text>'
        )
    if x_label:
        axis.append(f'<text class="axis" x="2" y="{bottom + 48:.0f}">{escape(x_label)}</text>')
    return axis


def _bar(value: float | None, interval: Point | None, *, top: float, scale: Scale, css: str) -> str:
    """One horizontal bar from zero, its whisker if it has an interval, and its value."""
    middle = top + BAR_PX / 2
    if value is None or not math.isfinite(value):
        return f'<text class="mid" x="6" y="{middle:.1f}">\N{EN DASH}</text>'
    zero, end = scale(0.0), scale(value)
    left, width = min(zero, end), max(abs(end - zero), 1.0)
    parts = [
        f'<rect class="bar {css}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{BAR_PX}" rx="2"/>'
    ]
    reach = max(zero, end)
    if interval is not None and all(math.isfinite(bound) for bound in interval):
        low, high = scale(interval[0]), scale(interval[1])
        reach = max(reach, high)
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}'
            f"M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8" + '"/>'
        )
    parts.append(
        f'<text class="mid" x="{reach + 7:.1f}" y="{middle:.1f}">{format_number(value)}</text>'
    )
    return "".join(parts)


def bar_chart(
    groups: Mapping[str, Mapping[str, float | None]],
    *,
    title: str,
    intervals: Mapping[str, Mapping[str, Point | None]] | None = None,
    x_label: str = "",
) -> str:
    """Horizontal bars, one per series, under the name of each group.

    Args:
        groups: Group -> series -> value; None or NaN draws a dash instead of a bar.
        title: Spoken name of the drawing.
        intervals: Group -> series -> (low, high), drawn as a whisker.
        x_label: What the length of a bar is, with its unit.

    Returns:
        SVG and legend; a sentence instead when no value can be drawn.
    """
    names = list(dict.fromkeys(name for row in groups.values() for name in row))
    bounds = {(g, n): (intervals or {}).get(g, {}).get(n) for g in groups for n in names}
    numbers = [v for row in groups.values() for v in row.values() if v is not None]
    numbers += [bound for pair in bounds.values() if pair for bound in pair]
    finite = [float(v) for v in numbers if math.isfinite(v)]
    if not finite:
        return f"<p>{escape(title)}: nothing to draw, no finite value was recorded.</p>"
    scale = Scale([0.0, *finite], start=2.0, end=WIDTH - VALUE_ROOM, log=False)
    body, spoken, y = [], [], 4.0
    for group, row in groups.items():
        body.append(f'<text class="name" x="7" y="{y + NAME_PX - 8:.1f}">{escape(group)}</text>')
        y += NAME_PX
        for index, name in enumerate(names):
            css = f"c{index % NUM_COLOURS}"
            body.append(_bar(row.get(name), bounds[group, name], top=y, scale=scale, css=css))
            spoken.append(f"{group}, {name}: {format_number(row.get(name))}")
            y += BAR_PX + BAR_GAP_PX
        y += GROUP_GAP_PX - BAR_GAP_PX
    axis = _bar_axis(scale, bottom=y - 8, x_label=x_label)
    height = y + (50 if x_label else 26)
    description = f"{x_label or title}. " + "; ".join(spoken)
    return _svg(axis + body, height=height, title=title, description=description) + legend(names)
