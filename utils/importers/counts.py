"""Counts of what a layout left out or did not find, told in the log."""

from collections import Counter

from utils.run_folder import get_logger


def tell_counts(layout: str, what: str, counts: Counter[str]) -> None:
    """Tell in the log how many files or rows went another way, by reason; nothing if none did."""
    if counts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        get_logger("import").info("%s: %d %s: %s", layout, counts.total(), what, reasons)
