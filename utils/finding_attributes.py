"""Side, size and number of findings: which of a sentence's attributes belongs to which finding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from utils.phrase_matcher import Match, Token

_NOUN_REACH = 4  # words between a number and what it counts: "five small, dark cysts"
_SHARED_UNIT = {"x", "×", "*", "to", "by"}  # "300 x 200 µm", "200 to 300 µm"
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
_BREAK_COST = 1000  # a comma or "with" in between outweighs any distance in words


def joined(matches: Sequence[Match], left: int, right: int) -> bool:
    """Whether two findings stand in a list: commas, "and" and one plain word between them."""
    between = matches[left + 1 : right]
    listing = all("list" in match.meanings for match in between)
    plain = matches[right].first - matches[left].last - sum(m.last - m.first for m in between)
    return listing and plain <= (1 if between else 0)


def sentence_attributes(
    tokens: Sequence[Token], matches: Sequence[Match], mentions: Sequence[int]
) -> dict[int, dict[str, str]]:
    """Attributes of the findings of one sentence.

    A side, size or number goes to the nearest finding, a break ("," or "with") counting more than
    any number of words; a side also to all findings of a list that it follows, or that it heads.

    Args:
        tokens: Tokens of the text.
        matches: Phrases of the sentence in order.
        mentions: Indices of the phrases that name findings, ascending, at least one.

    Returns:
        Mention to ``side`` (left, right, central, both), ``size_um`` and ``count`` (integers as
        text), as far as they are told.
    """
    found: dict[int, dict[str, str]] = {mention: {} for mention in mentions}
    sizes = _sizes(tokens, matches)
    for place, size_um in sizes.items():
        owner = found[_nearest(matches, mentions, place)]
        owner["size_um"] = str(max(size_um, int(owner.get("size_um", 0))))
    for place in range(len(matches)):
        number = _number(matches[place])
        if number is None or place in sizes or number != int(number):
            continue
        noun = _counted(matches, place)
        if noun is not None:
            owner = noun if noun in found else _nearest(matches, mentions, place)
            found[owner].setdefault("count", str(int(number)))
    for mention, side in _sides(matches, mentions).items():
        found[mention]["side"] = side
    return found


def merge_attributes(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Attributes of one finding that a report names several times.

    The first value said is kept; left and right are both, the largest size counts.
    """
    merged: dict[str, str] = {}
    for part in parts:
        for name, value in part.items():
            known = merged.setdefault(name, value)
            if name == "size_um":
                merged[name] = str(max(int(known), int(value)))
            elif name == "side":
                merged[name] = _union([known, value])
    return merged


def _union(sides: Sequence[str]) -> str:
    if "both" in sides or {"left", "right"} <= set(sides):
        return "both"
    return sides[0]


def _number(match: Match) -> float | None:
    if "number" in match.meanings:
        return float(match.meanings["number"])
    figure = match.meanings.get("figure")
    if figure is None:
        return None
    if _THOUSANDS.fullmatch(figure):
        return float(figure.replace(",", ""))
    try:
        return float(figure.replace(",", "."))
    except ValueError:  # a date or version: 3.5.2020
        return None


def _sizes(tokens: Sequence[Token], matches: Sequence[Match]) -> dict[int, int]:
    """Phrases that are part of a size, each with its size in µm (the largest of a range)."""
    sizes: dict[int, int] = {}
    for place in range(1, len(matches)):
        unit = matches[place].meanings.get("unit")
        if unit is None or matches[place - 1].last != matches[place].first:
            continue
        figures = _figures_before(tokens, matches, place)
        if figures:
            largest = max(_number(matches[figure]) for figure in figures)
            sizes.update(dict.fromkeys(figures, round(largest * unit)))
    return sizes


def _figures_before(tokens: Sequence[Token], matches: Sequence[Match], place: int) -> list[int]:
    figures: list[int] = []
    border = matches[place].first
    for at in range(place - 1, -1, -1):
        between = [token.word for token in tokens[matches[at].last : border]]
        linked = not between or (len(between) == 1 and between[0] in _SHARED_UNIT)
        plain = "figure" in matches[at].meanings or not figures
        if not (linked and plain) or _number(matches[at]) is None:
            break
        figures.append(at)
        border = matches[at].first
    return figures


def _counted(matches: Sequence[Match], place: int) -> int | None:
    """The phrase a number counts: the first finding or countable noun close behind it."""
    for at in range(place + 1, len(matches)):
        meanings = matches[at].meanings
        near = matches[at].first - matches[place].last <= _NOUN_REACH
        if not near or "break" in meanings or "end" in meanings:
            return None
        if "finding" in meanings or "noun" in meanings:
            return at
    return None


def _cost(matches: Sequence[Match], place: int, mention: int) -> tuple[int, bool]:
    low, high = sorted((place, mention))
    words = matches[high].first - matches[low].last
    return _breaks(matches, low, high) * _BREAK_COST + words, mention > place


def _breaks(matches: Sequence[Match], left: int, right: int) -> int:
    return sum(
        "break" in match.meanings or "end" in match.meanings for match in matches[left + 1 : right]
    )


def _nearest(matches: Sequence[Match], mentions: Sequence[int], place: int) -> int:
    return min(mentions, key=lambda mention: _cost(matches, place, mention))


def _sides(matches: Sequence[Match], mentions: Sequence[int]) -> dict[int, str]:
    places = [place for place, match in enumerate(matches) if "side" in match.meanings]
    if len(places) == 1 and places[0] < mentions[0] and _breaks(matches, places[0], mentions[0]):
        # a heading: "Left eye: drusen, no fluid"
        return dict.fromkeys(mentions, str(matches[places[0]].meanings["side"]))
    said: dict[int, list[str]] = {}
    for place in sorted(places, key=lambda at: min(_cost(matches, at, m) for m in mentions)):
        owner = _nearest(matches, mentions, place)
        said.setdefault(owner, []).append(str(matches[place].meanings["side"]))
    sides = {mention: _union(values) for mention, values in said.items()}
    for left, right in reversed(list(pairwise(mentions))):
        if left not in sides and right in sides and joined(matches, left, right):
            sides[left] = sides[right]
    return sides
