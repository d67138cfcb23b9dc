"""Text that must stand on one line of a table: folding it, and what forbids it; nothing heavy."""

import unicodedata

MAX_CHARS = 100_000  # the csv module reads no longer fields than 131,072
_FORBIDDEN = {"Cc": "control character", "Cs": "half of a character"}  # Unicode categories


def fold_spaces(text: str) -> str:
    """Text on one line: runs of white space become one blank, none at the ends."""
    return " ".join(text.split())


def text_problem(text: str) -> tuple[str, str] | None:
    """What forbids a (folded) text: (kind, particulars), or None.

    Halves of characters (lone surrogates) stand for bytes of the command line that are not UTF-8
    (PEP 383, https://peps.python.org/pep-0383), or come from an escape in JSON; no file takes them.
    """
    if len(text) > MAX_CHARS:
        return "prompt too long", f"{len(text)} characters, the limit is {MAX_CHARS}"
    for position, character in enumerate(text, start=1):
        kind = _FORBIDDEN.get(unicodedata.category(character))
        if kind is not None:
            broken = ": is this UTF-8?" if "\udc80" <= character <= "\udcff" else ""
            return kind, f"U+{ord(character):04X} at character {position}{broken}"
    return None
