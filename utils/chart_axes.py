"""Axes of a chart: round ticks, the map from data to the drawing, grid lines and their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.html_text import escape

WIDTH = 640
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 78, 22, 34, 58
PLOT_HEIGHT = 250


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


class Scale:
    """Maps data to user units along one axis, linear or logarithmic."""

    def __init__(
        self,
        values: Sequence[float],
        *,
        start: float,
        end: float,
        log: bool,
        ticks: Sequence[float] | None = None,
    ):
        """Fit the axis to data.

        Args:
            values: The data, all positive if ``log``.
            start: Where the axis begins, in user units; likewise ``end``.
            end: See above.
            log: Whether it is logarithmic.
            ticks: Ascending, the ends of the axis among them; None: round ones.
        """
        self.log = log
        self.ticks = ticks or (log_ticks if log else nice_ticks)(min(values), max(values))
        self._low, self._high = self._project(self.ticks[0]), self._project(self.ticks[-1])
        self._start, self._end = start, end

    def _project(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        """Where a value lies, in user units."""
        share = (self._project(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def labels(self) -> list[tuple[float, str]]:
        """(position, text) of every tick."""
        if self.log:
            return [(self(t), f"{t:,.0f}" if t >= 1 else f"{t:g}") for t in self.ticks]
        step = self.ticks[1] - self.ticks[0]
        return [(self(t), _tick_label(t, step)) for t in self.ticks]


def draw_axes(x_scale: Scale, y_scale: Scale, *, x_label: str, y_label: str) -> list[str]:
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
