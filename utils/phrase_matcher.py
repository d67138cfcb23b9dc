"""Phrases in a text of any language: words, punctuation and the longest phrase at each place.

Text is cut into tokens: a run of letters, a number, or a single character of anything else. Scripts
written without spaces (Chinese, Japanese, Thai, …) give one token a character, so phrases need word
boundaries only where the script has them. Tokens are compared in Unicode's NFKC form without case.

Notation of a pattern: ``(cystoid|diffuse) edema``, ``cyst(s)`` have an optional part, ``<under|in
front of> the fovea`` has one out of several, which between single words needs no brackets:
``is|are seen``. Blank and hyphen are the same. A word in capitals (``OS``) matches capitals only.
``re:`` starts a regular expression (Python's, case ignored).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import NamedTuple

MAX_WORDINGS = 5000  # of one pattern; more are a slip
REGEX_MARK = "re:"

# Thai to Khmer, kana, Han, Hangul (whose particles cling to the noun)
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(
    rf"(?P<number>\d+(?:[.,]\d+)*)|(?:[^\W\d_{_SPACELESS}][\u0300-\u036f]*)+|\n\s*|\S"
)
_HYPHENS = "-\u2010\u2011\u2013"
_FULL_STOPS = {"。", "।", "؟", "۔"}  # end a sentence without a blank behind them
_STOPS = {".", "!", "?", "…"}
_GROUP = re.compile(r"(?P<optional>\([^()<>]*\))|<[^()<>]*>")
_APOSTROPHES = str.maketrans("’‘", "''")


class Token(NamedTuple):
    """A word, number or character: its folded form, and its place in the text."""

    word: str
    raw: str
    start: int
    end: int


class Match(NamedTuple):
    """A phrase at tokens [first, last), and what it means: kind to value."""

    first: int
    last: int
    meanings: dict[str, object]


@lru_cache(maxsize=1 << 16)
def _fold(word: str) -> str:
    return unicodedata.normalize("NFKC", word).translate(_APOSTROPHES).casefold()


def tokenize(text: str) -> list[Token]:
    """Tokens of a text in order; hyphens that join or trail a word are left out."""
    tokens = []
    for found in _TOKEN.finditer(text):
        start, end = found.span()
        raw = found.group()
        if raw in _HYPHENS and _clings(text, start):
            continue
        if raw[0] == "\n":  # a line wrapped within its sentence goes on in lower case
            if end < len(text) and not text[end].islower():
                tokens.append(Token("\n", "\n", start, start + 1))
            continue
        tokens.append(Token(_fold(raw), raw, start, end))
    return tokens


def _clings(text: str, at: int) -> bool:
    after = text[at + 1 : at + 2]
    return at > 0 and text[at - 1].isalnum() and (after.isalnum() or after.isspace())


def wordings(pattern: str) -> list[str]:
    """All texts that a pattern without ``re:`` stands for.

    Raises:
        ValueError: If a bracket is open, a wording is empty, or there are over `MAX_WORDINGS`.
    """
    group = _GROUP.search(pattern)
    if group is None:
        if set(pattern) & set("()<>"):
            raise ValueError("has an open bracket")
        words = [word.split("|") for word in pattern.split()]
        if not words or not all(all(word) for word in words):
            raise ValueError("has an empty wording")
        made = [" ".join(chosen) for chosen in product(*words)]
    else:
        head, tail = pattern[: group.start()], pattern[group.end() :]
        choices = [*group.group()[1:-1].split("|"), *([""] if group["optional"] else [])]
        made = [text for choice in choices for text in wordings(head + choice + tail)]
    if len(made) > MAX_WORDINGS:
        raise ValueError(f"stands for over {MAX_WORDINGS} wordings: make it two patterns")
    return made


@dataclass(frozen=True)
class PhraseMatcher:
    """Finds phrases; the leftmost begins, the longest of those that begin there wins.

    Attributes:
        abbreviations: Folded words whose full stop ends no sentence.
    """

    abbreviations: Collection[str] = ()
    _tree: dict = field(default_factory=dict)  # token to subtree; None to the meanings
    _regexes: list[tuple[re.Pattern[str], dict]] = field(default_factory=list)

    def add(self, pattern: str, kind: str, value: object) -> None:
        """Let `pattern` mean `kind`: `value`; a tuple is joined to what the kind has already.

        Raises:
            ValueError: If the pattern breaks the notation.
        """
        if pattern.startswith(REGEX_MARK):
            try:
                regex = re.compile(pattern.removeprefix(REGEX_MARK), re.IGNORECASE)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from error
            self._regexes.append((regex, {kind: value}))
            return
        for wording in wordings(pattern):
            node = self._tree
            for token in tokenize(wording):
                capitals = len(token.raw) > 1 and token.raw.isupper()
                node = node.setdefault(token.raw if capitals else token.word, {})
            meanings = node.setdefault(None, {})
            known = meanings.get(kind)
            joined = isinstance(value, tuple) and isinstance(known, tuple)
            meanings[kind] = (*known, *value) if joined else value

    def sentences(self, text: str) -> list[tuple[list[Token], list[Match]]]:
        """Tokens of a text and the phrases in them, one pair a sentence; indices are the text's."""
        tokens = tokenize(text)
        by_regex = self._regex_matches(text, tokens)
        found, matches, at = [], [], 0
        while at < len(tokens):
            match = self._longest(tokens, at, by_regex)
            if match is None and tokens[at].word[0].isdigit():
                match = Match(at, at + 1, {"figure": tokens[at].word})
            if match is not None:
                matches.append(match)
            last = match.last if match is not None else at + 1
            if any(self._ends_sentence(text, tokens, place) for place in range(at, last)):
                found.append((tokens, matches))
                matches = []
            at = last
        return [*found, (tokens, matches)]

    def _longest(
        self, tokens: list[Token], at: int, by_regex: dict[int, list[Match]]
    ) -> Match | None:
        best = max(by_regex.get(at, ()), key=lambda match: match.last, default=None)
        nodes, place = [self._tree], at
        while place < len(tokens):
            keys = {tokens[place].word, tokens[place].raw}
            nodes = [node[key] for node in nodes for key in keys if key in node]
            if not nodes:
                break
            place += 1
            meanings = [node[None] for node in nodes if None in node]
            if meanings and (best is None or place > best.last):
                best = Match(at, place, meanings[0])
            elif meanings and place == best.last:
                best = Match(at, place, {**best.meanings, **meanings[0]})
        return best

    def _regex_matches(self, text: str, tokens: list[Token]) -> dict[int, list[Match]]:
        found: dict[int, list[Match]] = {}
        starts, ends = [token.start for token in tokens], [token.end for token in tokens]
        for regex, meanings in self._regexes:
            for match in regex.finditer(text):
                first = bisect_left(starts, match.start())
                last = bisect_right(ends, match.end())
                if first < last:
                    found.setdefault(first, []).append(Match(first, last, meanings))
        return found

    def _ends_sentence(self, text: str, tokens: list[Token], at: int) -> bool:
        token = tokens[at]
        if token.word == "\n" or token.word in _FULL_STOPS:
            return True
        if token.word not in _STOPS:
            return False
        if token.raw not in _STOPS or token.end == len(text):  # full-width, or the last
            return True
        behind_word = at > 0 and tokens[at - 1].end == token.start
        abbreviated = token.word == "." and at > 0 and tokens[at - 1].word in self.abbreviations
        after = text[token.end]
        return behind_word and not abbreviated and (after.isspace() or after in "\"')]”")
