"""Cards of a page: a picture beside texts in which parts are marked, by colour and by a sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils.html_text import escape

RIGHT, MISSED, INVENTED, DENIED = "right", "missed", "invented", "denied"
SIGNS = {RIGHT: "✓", MISSED: "○", INVENTED: "✗", DENIED: ""}


@dataclass(frozen=True)
class Mark:
    """A part of a text that names findings.

    Attributes:
        start: First character.
        end: Behind the last one.
        kind: Of ``SIGNS``; denied where the text says that it is absent.
        tag: To show behind it, as how many missed it; else empty.
        note: Finding and judgement in words.
    """

    start: int
    end: int
    kind: str
    tag: str
    note: str


@dataclass(frozen=True)
class CardText:
    """A text of a card: whose it is, a remark under that, and its marks, in order and apart."""

    name: str
    text: str
    marks: Sequence[Mark]
    remark: str = ""


@dataclass(frozen=True)
class Card:
    """A picture with its texts.

    Attributes:
        title: Over the card.
        remark: Behind the title, in small letters.
        picture: Address of the picture.
        texts: From top to bottom.
    """

    title: str
    remark: str
    picture: str
    texts: Sequence[CardText]


def marked_text(text: str, marks: Sequence[Mark]) -> str:
    """A text as HTML, its marks with sign and tag."""
    parts, at = [], 0
    for mark in marks:
        sign = SIGNS[mark.kind]
        inner = escape(text[mark.start : mark.end])
        inner += f"<b>{sign}</b>" if sign else ""
        inner += f"<i>{escape(mark.tag)}</i>" if mark.tag else ""
        parts.append(escape(text[at : mark.start]))
        parts.append(f'<span class="mark {mark.kind}" title="{escape(mark.note)}">{inner}</span>')
        at = mark.end
    return "".join(parts) + escape(text[at:])


def key_of_marks(meanings: Mapping[str, str]) -> str:
    """A list of the kinds of marks: kind -> what it means."""
    items = "".join(
        f'<li><span class="mark {kind}">{escape(kind)}'
        + (f"<b>{SIGNS[kind]}</b>" if SIGNS[kind] else "")
        + f"</span> {escape(meaning)}</li>"
        for kind, meaning in meanings.items()
    )
    return f'<ul class="legend marks">{items}</ul>'


def cards(items: Sequence[Card], *, num_open: int) -> str:
    """Cards under each other; those after the first ``num_open`` open on demand."""
    drawn = [_card(item) for item in items]
    rest = drawn[num_open:]
    more = f"<details><summary>{len(rest)} more</summary>{''.join(rest)}</details>" if rest else ""
    return f'<div class="cards">{"".join(drawn[:num_open])}{more}</div>'


def _card(item: Card) -> str:
    texts = "".join(
        f"<dt>{escape(one.name)}"
        + (f"<small>{escape(one.remark)}</small>" if one.remark else "")
        + f"</dt><dd>{marked_text(one.text, one.marks) or '–'}</dd>"
        for one in item.texts
    )
    return (
        f'<article class="card"><h4>{escape(item.title)} <small>{escape(item.remark)}</small></h4>'
        f'<img src="{escape(item.picture)}" alt="{escape(item.title)}"><dl>{texts}</dl></article>'
    )
