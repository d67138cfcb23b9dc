"""Names and numbers of persons that one cell gave away, looked for in the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from utils.caption_privacy import Finding, TextSearch
from utils.privacy_rules import PrivacyRules

KNOWN = "known_from_elsewhere"  # the "rule" of what is found so

_PARTS = re.compile(r"[^\W\d_]+|\d+")  # K991827-2: K, 991827, 2
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MIN_LETTERS = 3  # a shorter number is one as a whole cell only: it would be in many file names


class KnownIdentities(NamedTuple):
    """What is known.

    Attributes:
        names: Search for the names.
        numbers: The numbers, each as its runs of letters and of digits.
        lengths: How many runs a number has, each once.
    """

    names: TextSearch
    numbers: frozenset[tuple[str, ...]]
    lengths: tuple[int, ...]

    def find(self, text: str) -> list[Finding]:
        """The first known name or number in a file's name or a patient, as a list of one."""
        for finding in self.names.find(text, only_names=True):
            return [finding._replace(rule=KNOWN)]
        parts = list(_PARTS.finditer(text))
        words = [part[0].casefold() for part in parts]
        for length in self.lengths:
            for place in range(len(words) - length + 1):
                number = tuple(words[place : place + length])
                long_enough = len("".join(number)) >= _MIN_LETTERS or length == len(words)
                if long_enough and number in self.numbers:
                    start, end = parts[place].start(), parts[place + length - 1].end()
                    return [Finding(start, end, "id", KNOWN, "[ID]")]
        return []


def known_identities(
    by_cell: Mapping[tuple[str, str], Sequence[Finding]], not_names: Iterable[str]
) -> KnownIdentities:
    """Collect the names and numbers that were found.

    Args:
        by_cell: Findings by (column, cell).
        not_names: Words, in lower case, that are no names even beside one.
    """
    spared = frozenset(not_names)
    names, numbers = set(), set()
    for (_, cell), findings in by_cell.items():
        for finding in findings:
            matched = cell[finding.start : finding.end]
            if finding.kind == "name":
                words = _WORD.findall(matched)
                names.add(" ".join(word for word in words if word.casefold() not in spared))
            elif finding.kind == "id":
                numbers.add(tuple(part.casefold() for part in _PARTS.findall(matched)))
    search = TextSearch(PrivacyRules((), (), frozenset()), tuple(sorted(names - {""})))
    numbers.discard(())
    lengths = tuple(sorted({len(number) for number in numbers}))
    return KnownIdentities(search, frozenset(numbers), lengths)
