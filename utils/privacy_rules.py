"""Rules that say what gives a person away in a text, read from YAML (configs/privacy)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli import UserError
from utils.rule_file import Keys, RuleFormat, RuleSource, read_rule_file

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "privacy"

_TOP = ("extends", "fragments", "rules", "exceptions", "lists")
_NAMES = {"kind", "replace_by", "listed", "needs"}
_SWITCHES = {"ignore_case", "checked", "only_text", "unused"}
_FRAGMENT = re.compile(r"\{([a-z_]+)\}")  # a repetition such as {2,3} begins with a number
NOT_NAMES = "not_names"


@dataclass(frozen=True)
class PrivacyRule:
    """One thing to look for.

    Attributes:
        name: Of the rule.
        kind: What it finds: name, date, id, age, contact, place, or the user's own word.
        patterns: What is looked for; a group ``found`` is the part that is meant.
        replacement: What takes its place in a clean copy.
        checked: Whether a word of `PrivacyRules.not_names` makes it no finding.
        listed: Words (lower case) of which the group ``listed`` must be one; None for any.
        only_text: Whether file names and patients are left out.
        needs: A text in which this is not found is passed over; None searches every text.
    """

    name: str
    kind: str
    patterns: tuple[re.Pattern, ...]
    replacement: str
    checked: bool
    listed: frozenset[str] | None
    only_text: bool
    needs: re.Pattern | None


@dataclass(frozen=True)
class PrivacyRules:
    """What the search works with: rules, what they must not take, words that are no names."""

    rules: tuple[PrivacyRule, ...]
    exceptions: tuple[re.Pattern, ...]
    not_names: frozenset[str]


def read_privacy_rules(names_or_paths: Sequence[str]) -> PrivacyRules:
    """Read and check files of rules; several are used together.

    Args:
        names_or_paths: Names of shipped files of configs/privacy (``en``, ``de``), or paths.

    Raises:
        UserError: If there is no such file, or with everything that is wrong with one.
    """
    kind = RuleFormat(SHIPPED, "rules", _problems)
    parts = [_compile(read_rule_file(name, kind)) for name in names_or_paths]
    return PrivacyRules(
        tuple(rule for part in parts for rule in part.rules),
        tuple(pattern for part in parts for pattern in part.exceptions),
        frozenset(word for part in parts for word in part.not_names),
    )


def _problems(content: dict) -> Iterator[tuple[Keys, str]]:
    for key in content:
        if key not in _TOP:
            yield (key,), f"unknown key; known: {', '.join(_TOP)}"
    for key in ("fragments", "rules", "lists"):
        if not isinstance(content.get(key, {}), dict):
            yield (key,), "must be keys and values"
    if "extends" in content and not isinstance(content["extends"], str):
        yield ("extends",), "must be a name or a path"
    for name, text in _items(content, "fragments"):
        if not isinstance(text, str):
            yield ("fragments", name), "must be a regular expression in quotes"
    for name, words in _items(content, "lists"):
        yield from _list_problems(words, ("lists", name))
    yield from _list_problems(content.get("exceptions", []), ("exceptions",))
    for name, rule in _items(content, "rules"):
        yield from _rule_problems(rule, ("rules", name))


def _items(content: dict, key: str) -> Iterator[tuple[object, object]]:
    inner = content.get(key, {})
    return iter(inner.items()) if isinstance(inner, dict) else iter(())


def _list_problems(words: object, keys: Keys) -> Iterator[tuple[Keys, str]]:
    if not isinstance(words, list):
        yield keys, "must be a list, e.g. [first, second]"
        return
    for place, word in enumerate(words):
        if not isinstance(word, str) or not word:
            yield (*keys, place), f"YAML reads this as {word!r}, not as words: put it in quotes"


def _rule_problems(rule: object, keys: Keys) -> Iterator[tuple[Keys, str]]:
    if not isinstance(rule, dict):
        yield keys, "must be keys and values, e.g. kind and patterns"
        return
    for key, value in rule.items():
        if key in _NAMES and not (isinstance(value, str) and value.strip()):
            yield (*keys, key), "must be a word"
        elif key in _SWITCHES and not isinstance(value, bool):
            yield (*keys, key), "must be true or false"
        elif key == "patterns":
            yield from _list_problems(value, (*keys, key))
        elif key not in _NAMES | _SWITCHES:
            known = ", ".join(("patterns", *sorted(_NAMES | _SWITCHES)))
            yield (*keys, key), f"unknown key; known: {known}"


def _compile(source: RuleSource) -> PrivacyRules:
    """Put fragments into patterns; all that is wrong across files is told at once."""
    content, problems = source.content, []
    fragments: dict[str, str] = {}
    for name, text in content.get("fragments", {}).items():
        fragments[name] = _filled(text, fragments, source.at("fragments", name), problems)
    lists = {
        name: frozenset(word.casefold() for word in words)
        for name, words in content.get("lists", {}).items()
    }
    rules = tuple(
        _rule(name, rule, source=source, fragments=fragments, lists=lists, problems=problems)
        for name, rule in content.get("rules", {}).items()
        if not rule.get("unused")
    )
    if not rules:
        problems.append(f"{source.path.name}: has no rules; give 'rules:'")
    exceptions = [
        _pattern(text, fragments, source.at("exceptions", place), problems)
        for place, text in enumerate(content.get("exceptions", []))
    ]
    if problems:
        raise UserError("\n".join([f"{source.path}: {len(problems)} problem(s)", *problems]))
    return PrivacyRules(rules, tuple(exceptions), lists.get(NOT_NAMES, frozenset()))


def _rule(
    name: str, rule: dict, *, source: RuleSource, fragments: dict, lists: dict, problems: list[str]
) -> PrivacyRule:
    where = source.at("rules", name)
    flags = re.IGNORECASE if rule.get("ignore_case") else re.NOFLAG
    patterns = tuple(
        _pattern(text, fragments, source.at("rules", name, "patterns", place), problems, flags)
        for place, text in enumerate(rule.get("patterns", []))
    )
    if "kind" not in rule or not patterns:
        problems.append(f"{where}: needs 'kind' and at least one of 'patterns'")
    wanted = rule.get("listed")
    if wanted is not None and wanted not in lists:
        problems.append(f"{where}: listed: {wanted!r} is none of the lists")
    if wanted is not None and any(p and "listed" not in p.groupindex for p in patterns):
        problems.append(f"{where}: listed: each pattern needs a group (?P<listed>...)")
    kind = rule.get("kind", "")
    return PrivacyRule(
        name=name,
        kind=kind,
        patterns=patterns,
        replacement=rule.get("replace_by", f"[{kind.upper()}]"),
        checked=rule.get("checked", False),
        listed=None if wanted is None else lists.get(wanted),
        only_text=rule.get("only_text", False),
        needs=None
        if "needs" not in rule
        else _pattern(rule["needs"], fragments, source.at("rules", name, "needs"), problems),
    )


def _filled(text: str, fragments: dict[str, str], where: str, problems: list[str]) -> str:
    for name in _FRAGMENT.findall(text):
        if name not in fragments:
            problems.append(f"{where}: {{{name}}} is no fragment above it")
    return _FRAGMENT.sub(lambda match: fragments.get(match[1], ""), text)


def _pattern(
    text: str, fragments: dict, where: str, problems: list[str], flags: int = re.NOFLAG
) -> re.Pattern | None:
    try:
        pattern = re.compile(_filled(text, fragments, where, problems), flags)
    except re.error as error:
        problems.append(f"{where}: {_short(text)} is no regular expression: {error}")
        return None
    if pattern.match(""):
        problems.append(f"{where}: {_short(text)} fits an empty text: it would find everything")
    return pattern


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
