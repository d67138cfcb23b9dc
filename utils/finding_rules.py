"""Rules of a finding labeler, read from YAML: the words of findings, cues and attributes.

All that is wrong with a file is told at once, with its line and the way out. A file may extend
another; its lists are added to those of the other. See configs/findings for the shipped ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.cli import UserError
from utils.phrase_matcher import PhraseMatcher
from utils.rule_file import Keys, RuleFormat, RuleSource, read_rule_file

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "findings"

_STATUSES = ("absent", "uncertain")
_PLACES = ("before", "just_before", "after", "just_after")
_SIDES = ("left", "right", "central", "both")
_WORDS = ("words", "words_if_denied", "words_of_absence")
_LISTS = {"ignore": "ignore", "ends": "end", "breaks": "break", "lists": "list", "counted": "noun"}
_TOP = ("extends", "normal", "findings", "cues", "sides", "numbers", "units_um", "abbreviations")


@dataclass(frozen=True)
class Rules:
    """What a labeler works with.

    Attributes:
        names: Findings in the order of the file, those of an extended file first.
        normal: The finding that says there is none; empty for no such finding.
        beside_normal: Findings that do not contradict `normal`.
        implies: Finding to all findings that follow from it.
        matcher: All phrases with their meanings.
    """

    names: tuple[str, ...]
    normal: str
    beside_normal: frozenset[str]
    implies: dict[str, tuple[str, ...]]
    matcher: PhraseMatcher


def read_rules(name_or_path: str) -> Rules:
    """Read and check rules.

    Args:
        name_or_path: The name of a shipped file of configs/findings (``oct``, ``cxr``), or a path.

    Raises:
        UserError: If there is no such file, or with everything that is wrong with it.
    """
    kind = RuleFormat(SHIPPED, "findings", _problems)
    return _compile(read_rule_file(name_or_path, kind))


def _problems(content: dict) -> Iterator[tuple[Keys, str]]:
    yield from _unknown(content, (), (*_TOP, *_LISTS))
    for key in ("extends", "normal"):
        if key in content and not (isinstance(content[key], str) and content[key].strip()):
            yield (key,), "must be a name"
    for key in (*_LISTS, "abbreviations"):
        yield from _list_problems(content.get(key, []), (key,))
    yield from _unknown(content.get("findings", {}), ("findings",), None)
    for name, finding in _items(content, ("findings",)):
        if not isinstance(name, str) or not name.strip() or ";" in name:
            yield ("findings",), f"{name!r} must be a name without ';': put it in quotes"
        yield from _finding_problems(finding, ("findings", name))
    for key, known in (("cues", _STATUSES), ("sides", _SIDES)):
        yield from _unknown(content.get(key, {}), (key,), known)
    for status, places in _items(content, ("cues",)):
        yield from _unknown(places, ("cues", status), _PLACES)
        for place, words in _items(content["cues"], (status,)):
            yield from _list_problems(words, ("cues", status, place))
    for side, words in _items(content, ("sides",)):
        yield from _list_problems(words, ("sides", side))
    for key in ("numbers", "units_um"):
        yield from _unknown(content.get(key, {}), (key,), None)
        for number, words in _items(content, (key,)):
            if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
                yield (key, number), "the key must be a number above 0, its words a list"
            yield from _list_problems(words, (key, number))


def _items(content: dict, keys: Keys) -> Iterator[tuple[object, object]]:
    inner = content.get(keys[0], {})
    return iter(inner.items()) if isinstance(inner, dict) else iter(())


def _unknown(
    found: object, keys: Keys, known: tuple[str, ...] | None
) -> Iterator[tuple[Keys, str]]:
    if not isinstance(found, dict):
        yield keys, "must be keys and values"
    elif known is not None:
        for key in found:
            if key not in known:
                yield (*keys, key), f"unknown key; known: {', '.join(known)}"


def _finding_problems(finding: object, keys: Keys) -> Iterator[tuple[Keys, str]]:
    yield from _unknown(finding, keys, (*_WORDS, "implies", "beside_normal"))
    if not isinstance(finding, dict):
        return
    for key in (*_WORDS, "implies"):
        yield from _list_problems(finding.get(key, []), (*keys, key), patterns=key != "implies")
    if not isinstance(finding.get("beside_normal", False), bool):
        yield (*keys, "beside_normal"), "must be true or false"


def _list_problems(
    words: object, keys: Keys, *, patterns: bool = True
) -> Iterator[tuple[Keys, str]]:
    if not isinstance(words, list):
        yield keys, "must be a list, e.g. [first phrase, second phrase]"
        return
    for place, word in enumerate(words):
        if not isinstance(word, str):
            yield (*keys, place), f"YAML reads this as {word!r}, not as words: put it in quotes"
        elif patterns:
            try:
                PhraseMatcher().add(word, "trial", True)
            except ValueError as error:
                yield (*keys, place), f"{word!r} {error}"


def _compile(source: RuleSource) -> Rules:
    content = source.content
    findings = content.get("findings", {})
    names, normal = tuple(findings), content.get("normal", "")
    problems = [] if names else ["findings: none; name at least one, with its words"]
    if normal and normal not in names:
        problems.append(f"{source.at('normal')}: {normal!r} is no finding")
    for name, finding in findings.items():
        where = source.at("findings", name)
        if not any(finding.get(key) for key in _WORDS):
            problems.append(f"{where}: has no words; give 'words: [...]'")
        unknown = [other for other in finding.get("implies", []) if other not in names]
        problems += [f"{where}: implies {other!r}, which is no finding" for other in unknown]
    if problems:
        raise UserError("\n".join([f"{source.path}: {len(problems)} problem(s)", *problems]))
    beside = frozenset(name for name in names if findings[name].get("beside_normal"))
    implies = {name: _closure(name, findings) for name in names}
    return Rules(names, normal, beside, implies, _matcher(content))


def _closure(name: str, findings: dict) -> tuple[str, ...]:
    reached: list[str] = []
    queue = list(findings[name].get("implies", []))
    while queue:
        other = queue.pop(0)
        if other != name and other not in reached:
            reached.append(other)
            queue += findings[other].get("implies", [])
    return tuple(reached)


def _matcher(content: dict) -> PhraseMatcher:
    abbreviations = frozenset(word.casefold() for word in content.get("abbreviations", []))
    matcher = PhraseMatcher(abbreviations)
    for pattern, kind, value in _phrases(content):
        matcher.add(pattern, kind, value)
    return matcher


def _phrases(content: dict) -> Iterator[tuple[str, str, object]]:
    """Pattern, kind and value of each phrase, the order deciding nothing but later over earlier."""
    for name, finding in content["findings"].items():
        for key in _WORDS:
            yield from ((word, "finding", ((name, key),)) for word in finding.get(key, []))
    for status, places in content.get("cues", {}).items():
        for place, words in places.items():
            near = place.startswith("just_")
            kind = place.removeprefix("just_")
            yield from ((word, kind, {"status": status, "near": near}) for word in words)
    for key, kind in _LISTS.items():
        yield from ((word, kind, True) for word in content.get(key, []))
    for key, kind in (("sides", "side"), ("numbers", "number"), ("units_um", "unit")):
        for value, words in content.get(key, {}).items():
            yield from ((word, kind, value) for word in words)
