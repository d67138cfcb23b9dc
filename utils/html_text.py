"""Values as text for a page: escaped, and numbers as a reader wants them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping


def escape(value: object) -> str:
    """Text that is safe inside an element or a quoted attribute; control characters replaced."""
    text = str(value).encode("utf-8", errors="replace").decode("utf-8")
    clean = "".join(c if c >= " " or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape(clean, quote=True)


def format_change(change: Mapping) -> str:
    """A difference with its sign, and its interval where it has one, e.g. ``+0.1 [0.02, 0.18]``.

    Args:
        change: ``difference`` and ``ci95``, as `utils.round_scores.compare` gives them.
    """
    text = f"{change['difference']:+.3g}"
    if change["ci95"]:
        text += " [{:.3g}, {:.3g}]".format(*change["ci95"])
    return text


def format_number(value: float | None) -> str:
    """A number for reading: four significant digits, thousands separated, a true minus sign."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    size = abs(value)
    if isinstance(value, int):
        text = f"{value:,}"
    elif size >= 1000 or size == 0:
        text = f"{value:,.0f}"
    elif size < 5e-4:
        text = f"{value:.2e}"
    else:
        text = f"{value:.{max(0, min(4, 3 - math.floor(math.log10(size))))}f}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text
