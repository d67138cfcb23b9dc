"""Prompts composed from a template file: sentences with slots, and the words for each slot.

The file is JSON::

    {
      "templates": [
        "{severity} {finding}, {side}",
        {"template": "normal retina, {side}", "label": "normal"}
      ],
      "label": "{finding}",
      "slots": {
        "severity": ["", "mild", "severe"],
        "finding": {"edema": ["macular edema", "cysts"], "drusen": "soft drusen"},
        "side": ["left eye", "right eye"]
      }
    }

The words of a slot are a list, or an object whose keys are what labels say for them. ``{{`` and
``}}`` are braces. Empty words leave a part out, together with the comma and blank that held it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import Formatter

from utils.cli import UserError
from utils.dataset_records import Problem
from utils.json_file import read_json
from utils.line_text import fold_spaces, text_problem
from utils.prompts import Prompt, PromptError, collect

MAX_PROMPTS = 100_000  # more are a slip: a data set has tens of thousands of images

_KEYS = ("template", "templates", "label", "slots")
_LEFT_OUT = "\0"  # stands where a wording is empty; no text that was read may hold it

Pieces = list[tuple[str, str | None]]  # literal text, then the slot that follows it
Slots = Mapping[str, Sequence[tuple[str, str]]]  # (what labels say, what prompts say)


@dataclass(frozen=True)
class _Template:
    where: str
    text: Pieces
    label: Pieces

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots in the order of the text, each once."""
        return tuple(_names(self.text))


def read_template_file(path: Path) -> list[Prompt]:
    """All prompts that a template file makes, in a fixed order.

    Templates in their order; the words of a template's last slot change fastest.

    Args:
        path: See the module's example.

    Raises:
        UserError: If the file is not JSON.
        PromptError: With everything that is wrong with it, by slot and template.
    """
    content = read_json(path)
    problems: list[Problem] = []
    if not isinstance(content, dict):
        raise PromptError(path, [Problem(path.name, "wrong kind", "it must be an object {...}")])
    problems += [
        Problem(path.name, "unknown key", f"{key!r}; known: {', '.join(_KEYS)}")
        for key in content
        if key not in _KEYS
    ]
    slots = _read_slots(content.get("slots", {}), path.name, problems)
    templates = _read_templates(content, path.name, problems)
    problems += _misuse(templates, slots, path.name)
    if problems:
        raise PromptError(path, problems)
    total = sum(math.prod(len(slots[name]) for name in template.slots) for template in templates)
    if total > MAX_PROMPTS:
        raise UserError(
            f"{path}: its templates make {total} prompts, the limit is {MAX_PROMPTS}: give the "
            "slots fewer words, or put fewer slots into one template"
        )
    prompts = collect(_combine(templates, slots, path.name), path, [])
    _refuse_duplicates(prompts, path)
    return prompts


def _read_slots(content: object, name: str, problems: list[Problem]) -> Slots:
    """Each slot's words, checked."""
    if not isinstance(content, dict):
        problems.append(Problem(f"{name}, slots", "wrong kind", "an object {slot: words}"))
        return {}
    slots = {}
    for slot, value in content.items():
        where = f"{name}, slot {slot}"
        if not slot.isidentifier():
            detail = f"{slot!r}: a letter, then letters, digits and _"
            problems.append(Problem(where, "wrong name", detail))
        if isinstance(value, dict):
            pairs = [(key, text) for key, words in value.items() for text in _listed(words)]
            empty = [key for key, words in value.items() if words == []]
        else:
            pairs = [(text, text) for text in _listed(value)]
            empty = []
        if not pairs or empty:
            problems.append(Problem(where, "no words", f"the list{_of(empty)} is empty"))
        slots[slot] = _check_words(pairs, where, list(content), problems)
    return slots


def _listed(words: object) -> list:
    return words if isinstance(words, list) else [words]


def _of(keys: Sequence[str]) -> str:
    return f" of {', '.join(map(repr, keys))}" if keys else ""


def _check_words(
    pairs: Sequence[tuple[str, object]], where: str, slots: Sequence[str], problems: list[Problem]
) -> list[tuple[str, str]]:
    """The pairs of a slot on one line each, as far as they are sound."""
    sound: dict[str, str] = {}
    for word, wording in pairs:
        if not isinstance(wording, str):
            problems.append(Problem(where, "wrong kind", f"{wording!r}, but a text is needed"))
            continue
        text = fold_spaces(wording)
        nested = next((f"{{{slot}}}" for slot in slots if f"{{{slot}}}" in text), None)
        if (problem := text_problem(text) or text_problem(word)) is not None:
            problems.append(Problem(where, *problem))
        elif nested is not None:
            detail = f"{nested} in {text!r}; only a template has slots"
            problems.append(Problem(where, "slot in words", detail))
        elif text in sound:
            problems.append(Problem(where, "repeated words", repr(text)))
        else:
            sound[text] = fold_spaces(word)
    return [(word, text) for text, word in sound.items()]


def _read_templates(content: Mapping, name: str, problems: list[Problem]) -> list[_Template]:
    """The templates with their labels; none if one is broken."""
    if ("template" in content) == ("templates" in content):
        problems.append(Problem(name, "wrong key", "either template or templates is needed"))
        return []
    entries = content.get("templates", [content.get("template")])
    if not isinstance(entries, list) or not entries:
        problems.append(Problem(f"{name}, templates", "wrong kind", "a list [...] of templates"))
        return []
    num_problems = len(problems)
    templates = []
    for number, entry in enumerate(entries, start=1):
        where = f"{name}, template {number}"
        fields = entry if isinstance(entry, dict) else {"template": entry}
        for key in sorted(fields.keys() - {"template", "label"}):
            problems.append(Problem(where, "unknown key", f"{key!r}; known: template, label"))
        text = _parse(fields.get("template"), where, problems)
        label = fields.get("label", content.get("label", ""))
        templates.append(_Template(where, text, _parse(label, f"{where}, label", problems)))
    return templates if len(problems) == num_problems else []


def _parse(text: object, where: str, problems: list[Problem]) -> Pieces:
    """Split a template at its slots; nothing of it is ever evaluated."""
    if not isinstance(text, str):
        problems.append(Problem(where, "wrong kind", f"{text!r}, but a text is needed"))
        return []
    text = fold_spaces(text)
    if (problem := text_problem(text)) is not None:
        problems.append(Problem(where, *problem))
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        detail = f"{error} in {text!r}; a brace that is no slot is written twice"
        problems.append(Problem(where, "broken braces", detail))
        return []
    for _, field, spec, conversion in parsed:
        if field is not None and (spec or conversion or not field.isidentifier()):
            detail = f"in {text!r}; between braces stands the name of a slot and nothing else"
            problems.append(Problem(where, "wrong slot", detail))
            return []
    return [(literal, field) for literal, field, _, _ in parsed]


def _names(pieces: Pieces) -> dict[str, None]:
    return dict.fromkeys(slot for _, slot in pieces if slot is not None)


def _misuse(templates: Sequence[_Template], slots: Slots, name: str) -> Iterator[Problem]:
    """Slots that templates and labels name wrongly, or not at all."""
    known = ", ".join(slots) or "none"
    for template in templates:
        used, labelled = _names(template.text), _names(template.label)
        for slot in used:
            if slot not in slots:
                yield Problem(template.where, "unknown slot", f"{{{slot}}} (slots: {known})")
        for slot in labelled:
            if slot not in used:
                detail = f"{{{slot}}} is not in the template, so its label would be a guess"
                yield Problem(f"{template.where}, label", "unknown slot", detail)
        plain = "".join(literal for literal, _ in template.label)
        with_words = [slot for slot in used if any(a != b for a, b in slots.get(slot, ()))]
        if not labelled and (plain in slots or with_words):
            slot = plain if plain in slots else with_words[0]
            detail = f'it names no slot; meant is perhaps "label": "{{{slot}}}"'
            yield Problem(f"{template.where}, label", "no slot", detail)
    everywhere = {slot for template in templates for slot in _names(template.text)}
    for slot in slots:
        if templates and slot not in everywhere:
            yield Problem(f"{name}, slot {slot}", "unused slot", "no template has it")


def _combine(templates: Sequence[_Template], slots: Slots, name: str) -> Iterator[Prompt]:
    number = 0
    for template in templates:
        for chosen in product(*(slots[slot] for slot in template.slots)):
            number += 1
            words = dict(zip(template.slots, chosen))
            text = _fill(
                template.text, {slot: pair[1] or _LEFT_OUT for slot, pair in words.items()}
            )
            label = _fill(template.label, {slot: pair[0] for slot, pair in words.items()})
            yield Prompt(_close_gaps(text), label, "", f"{name}#{number}")


def _fill(pieces: Pieces, words: Mapping[str, str]) -> str:
    return "".join(literal + (words[slot] if slot else "") for literal, slot in pieces)


def _close_gaps(text: str) -> str:
    r"""Take out what was left out, with the commas and blanks that would hang in the air.

    ``"edema, \0, left eye"`` becomes ``"edema, left eye"``, ``"edema (\0), \0."`` ``"edema."``.
    """

    def close(match: re.Match) -> str:
        gap = match[0]
        if _LEFT_OUT not in gap:
            return gap
        before = text[: match.start()][-1:]
        after = text[match.end() : match.end() + 1]
        if not before or before == "(" or not after or after in ".:!?)":
            return ""
        comma = next((character for character in gap if character in ",;"), "")
        return comma + " " * (comma != "" or " " in gap)

    text = re.sub(rf"\( ?{_LEFT_OUT} ?\)", _LEFT_OUT, text)
    return re.sub(rf"[ ,;{_LEFT_OUT}]+", close, text)


def _refuse_duplicates(prompts: Sequence[Prompt], path: Path) -> None:
    first: dict[str, str] = {}
    problems = []
    for prompt in prompts:
        earlier = first.setdefault(prompt.text, prompt.where)
        if earlier != prompt.where:
            problems.append(
                Problem(prompt.where, "duplicate prompt", f"{prompt.text!r} is also {earlier}")
            )
    if problems:
        raise PromptError(path, problems)
