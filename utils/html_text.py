"""Values as text for a page: escaped, and numbers as a reader wants them."""

from __future__ import annotations

import html
import math


def escape(value: object) -> str:
    """Text that is safe inside an element or a quoted attribute; control characters replaced."""
    text = str(value).encode("utf-8", errors="replace").decode("utf-8")
    clean = "".join(c if c >= " " or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape(clean, quote=True)


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
