"""Names, dates, numbers and the like in a text: found by rules, and replaced by tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from utils.privacy_rules import PrivacyRule, PrivacyRules

CLINIC_NAMES = "names"  # the "rule" of findings from the user's list of names
NAME_TAG = "[NAME]"

_WORD = re.compile(r"\w[\w'’-]*", re.UNICODE)
_MIN_NAME_LETTERS = 3  # a shorter word of a listed name is found beside another word of it only
_BETWEEN_NAMES = re.compile(r"[\s,.^_]{1,3}(?:[A-Z]\.? )?")


class Finding(NamedTuple):
    """A place in a text.

    Attributes:
        start: Offset of its first character.
        end: Offset after its last one.
        kind: See `PrivacyRule`.
        rule: Name of the rule that found it.
        replacement: What stands there in a clean copy.
    """

    start: int
    end: int
    kind: str
    rule: str
    replacement: str


@dataclass(frozen=True)
class TextSearch:
    """Looks for what gives a person away.

    Attributes:
        rules: What to look for.
        names: Names of persons, each in one line as a person would write it.
    """

    rules: PrivacyRules
    names: tuple[str, ...] = ()

    def find(self, text: str, *, only_names: bool = False) -> list[Finding]:
        """Findings from left to right; what overlaps is one finding.

        Args:
            text: A caption, or a cell of a table.
            only_names: Whether it is a file's name or a patient: rules for running text are left
                out, and ``_`` is read as a space.
        """
        if only_names:
            text = text.replace("_", " ").replace("/", " ")
        found = [*self._by_rules(text, only_names), *self._by_list(text)]
        if not found:
            return []
        spared = [match.span() for p in self.rules.exceptions for match in p.finditer(text)]
        kept = [
            finding
            for finding in found
            if not any(start <= finding.start and finding.end <= end for start, end in spared)
        ]
        return _joined(kept)

    def _by_rules(self, text: str, only_names: bool) -> Iterator[Finding]:
        worth: dict[re.Pattern | None, bool] = {None: True}
        for rule in self.rules.rules:
            if rule.needs not in worth:
                worth[rule.needs] = rule.needs.search(text) is not None
            if not worth[rule.needs] or (only_names and rule.only_text):
                continue
            for pattern in rule.patterns:
                yield from self._matches(rule, pattern, text)

    def _matches(self, rule: PrivacyRule, pattern: re.Pattern, text: str) -> Iterator[Finding]:
        place = 0
        while match := pattern.search(text, place):
            group = "found" if "found" in pattern.groupindex else 0
            start, end = match.span(group)
            if rule.kind == "name":
                end = self._without_other_words(text, start, end)
            good = rule.listed is None or match["listed"].casefold() in rule.listed
            if good and rule.checked:
                good = not self._has_other_word(text[start:end])
            if good and start < end:
                yield Finding(start, end, rule.kind, rule.name, rule.replacement)
                place = max(end, match.start() + 1)
            else:
                place = match.start() + 1

    def _without_other_words(self, text: str, start: int, end: int) -> int:
        """Where a name ends once the words after it that are no names are cut off."""
        words = list(_WORD.finditer(text, start, end))
        while len(words) > 1 and words[-1][0].casefold() in self.rules.not_names:
            words.pop()
        return words[-1].end() if words else end

    def _has_other_word(self, text: str) -> bool:
        words = [word.casefold() for word in _WORD.findall(text) if len(word) > 1]
        return not words or any(word in self.rules.not_names for word in words)

    def _by_list(self, text: str) -> Iterator[Finding]:
        """Names of the user's list: whole, in any order, or one long word with a capital."""
        if not self.names:
            return
        run: list[re.Match] = []
        for word in _WORD.finditer(text):
            if word[0].casefold() not in self._words:
                yield from self._of_run(run)
                run = []
                continue
            if run and not _BETWEEN_NAMES.fullmatch(text, run[-1].end(), word.start()):
                yield from self._of_run(run)
                run = []
            run.append(word)
        yield from self._of_run(run)

    def _of_run(self, run: Sequence[re.Match]) -> Iterator[Finding]:
        if not run:
            return
        persons = [self._words[word[0].casefold()] for word in run]
        together = len(run) > 1 and bool(frozenset.intersection(*persons))
        capital = [w for w in run if w[0][0].isupper() and len(w[0]) >= _MIN_NAME_LETTERS]
        if together or capital:
            start, end = (run[0].start(), run[-1].end()) if together else (0, 0)
            for word in capital if not together else ():
                yield Finding(word.start(), word.end(), "name", CLINIC_NAMES, NAME_TAG)
            if together:
                yield Finding(start, end, "name", CLINIC_NAMES, NAME_TAG)

    @cached_property
    def _words(self) -> dict[str, frozenset[int]]:
        """Word of a listed name, in lower case, to the numbers of the names that have it."""
        words: dict[str, set[int]] = {}
        for number, name in enumerate(self.names):
            for word in _WORD.findall(name):
                if len(word) > 1:
                    words.setdefault(word.casefold(), set()).add(number)
        return {word: frozenset(numbers) for word, numbers in words.items()}


def _joined(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that overlap as one, named after the longest."""
    joined: list[Finding] = []
    for finding in sorted(findings, key=lambda f: (f.start, -f.end)):
        if joined and finding.start < joined[-1].end:
            last = joined[-1]
            longest = max(last, finding, key=lambda f: f.end - f.start)
            joined[-1] = longest._replace(start=last.start, end=max(last.end, finding.end))
        else:
            joined.append(finding)
    return joined


def redact(text: str, findings: Sequence[Finding]) -> str:
    """The text with each finding replaced by its tag.

    Args:
        text: What the findings were found in.
        findings: As `TextSearch.find` gives them.
    """
    parts, place = [], 0
    for finding in findings:
        parts += [text[place : finding.start], finding.replacement]
        place = finding.end
    return "".join([*parts, text[place:]])
