"""Line and bar charts as inline SVG, for pages that must be read without a network or scripts.

Colours, fonts and the phone layout live in the style sheet of ``html_report``: a chart only names
classes (``c0`` … ``c5`` for the series), so one page has one look, in light, dark and print.
Coordinates are in user units of a drawing ``WIDTH`` units wide that scales with the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256

from utils.html_text import escape, format_number

WIDTH = 640
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 78, 22, 34, 58
PLOT_HEIGHT = 250
NUM_COLOURS = 6
MAX_POINTS = 1000
SMOOTH_FROM = 100  # a curve of fewer points (validation) is drawn as it is
BAR_PX, BAR_GAP_PX, GROUP_GAP_PX, NAME_PX = 16, 5, 20, 24
VALUE_ROOM = 96

Point = tuple[float, float]


def nice_ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) that enclose ``low`` … ``high``."""
    if high <= low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(f for f in (1, 2, 2.5, 5, 10) if raw <= f * magnitude * (1 + 1e-9)) * magnitude
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose two positive values, at most about six of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    stride = max(1, math.ceil((last - first) / 6))
    return [10.0**power for power in range(first, last + stride, stride)]


def _tick_label(value: float, step: float) -> str:
    """One axis label, with as many decimals as the step between ticks needs."""
    if abs(value) < 1e-3 and (value != 0 or step < 1e-3):
        return f"{value:.0e}" if value else "0"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    if step < 1 and round(step, decimals) != round(step, decimals + 1):
        decimals += 1
    if 1 <= step < 10 and step != int(step):
        decimals = 1
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


class _Scale:
    """Maps data to user units along one axis, linear or logarithmic."""

    def __init__(self, values: Sequence[float], *, start: float, end: float, log: bool):
        self.log = log
        self.ticks = (log_ticks if log else nice_ticks)(min(values), max(values))
        self._low, self._high = self._project(self.ticks[0]), self._project(self.ticks[-1])
        self._start, self._end = start, end

    def _project(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        share = (self._project(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def labels(self) -> list[tuple[float, str]]:
        """(position, text) of every tick."""
        if self.log:
            return [(self(t), f"{t:,.0f}" if t >= 1 else f"{t:g}") for t in self.ticks]
        step = self.ticks[1] - self.ticks[0]
        return [(self(t), _tick_label(t, step)) for t in self.ticks]


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


def legend(names: Sequence[str]) -> str:
    """An HTML list naming the series; nothing for a single one, the title names that."""
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li><span class="key c{i % NUM_COLOURS}"></span>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _axes(x_scale: _Scale, y_scale: _Scale, *, x_label: str, y_label: str) -> list[str]:
    """Horizontal grid lines, tick labels and axis names."""
    right, bottom = WIDTH - MARGIN_RIGHT, MARGIN_TOP + PLOT_HEIGHT
    parts = [f'<text class="axis" x="0" y="16">{escape(y_label)}</text>']
    for y, label in y_scale.labels():
        parts.append(
            f'<line class="grid" x1="{MARGIN_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text class="end mid" x="{MARGIN_LEFT - 8}" y="{y:.1f}">{label}</text>')
    for x, label in x_scale.labels():
        parts.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
        )
        parts.append(f'<text class="centre" x="{x:.1f}" y="{bottom + 24}">{label}</text>')
    parts.append(
        f'<text class="axis centre" x="{(MARGIN_LEFT + right) / 2:.0f}" y="{bottom + 50}">'
        f"{escape(x_label)}</text>"
    )
    return parts


def _path(points: Sequence[Point], x_scale: _Scale, y_scale: _Scale, css: str) -> str:
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

    Returns:
        SVG and legend; a sentence instead when no point can be drawn.
    """
    curves = {n: _drawable(p, log_x=log_x, log_y=log_y) for n, p in series.items()}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return f"<p>{escape(title)}: nothing to draw, no finite value was recorded.</p>"
    bottom = MARGIN_TOP + PLOT_HEIGHT
    x_scale = _Scale([x for x, _ in points], start=MARGIN_LEFT, end=WIDTH - MARGIN_RIGHT, log=log_x)
    y_scale = _Scale([y for _, y in points], start=bottom, end=MARGIN_TOP, log=log_y)
    body, spoken = _axes(x_scale, y_scale, x_label=x_label, y_label=y_label), []
    for index, (name, curve) in enumerate(curves.items()):
        css = f"c{index % NUM_COLOURS}"
        if smooth and len(curve) >= SMOOTH_FROM:
            body.append(_path(curve, x_scale, y_scale, f"{css} faint"))
            curve = smooth_points(curve, smooth)
        body.append(_path(curve, x_scale, y_scale, css))
        spoken.append(f"{name}: {_first_and_last(curve)}")
    description = f"{y_label} over {x_label}. " + "; ".join(spoken)
    height = bottom + MARGIN_BOTTOM
    return _svg(body, height=height, title=title, description=description) + legend(list(series))


def _bar_axis(scale: _Scale, *, bottom: float, x_label: str) -> list[str]:
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


def _bar(
    value: float | None, interval: Point | None, *, top: float, scale: _Scale, css: str
) -> str:
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
    scale = _Scale([0.0, *finite], start=2.0, end=WIDTH - VALUE_ROOM, log=False)
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
