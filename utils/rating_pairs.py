"""Pairs of images of one text, for the question which of them fits it better."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest

from utils.cli import UserError
from utils.dataset import Record
from utils.rating_draw import label_of
from utils.rating_table import REAL_ARM

Arms = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Pair:
    """Two images to compare.

    Attributes:
        first: Arm and record; likewise ``second``.
        second: See above.
        text: What both are images of: their text, or their diagnosis.
    """

    first: tuple[str, Record]
    second: tuple[str, Record]
    text: str


def draw_pairs(arms: Arms, num_pairs: int, *, seed: int) -> list[Pair]:
    """Pairs between every two arms, and within a synthetic set of several images a text.

    Every kind of pair gets the same number as far as it has them, every image is in one pair at
    most. Where two arms have no text in common left, images of one diagnosis are compared.

    Args:
        arms: Records by the arm's name.
        num_pairs: Of all kinds together.
        seed: Same records and seed, same pairs.

    Raises:
        UserError: If there are not so many.
    """
    chance = random.Random(f"pairs {seed}")
    used: set[tuple[str, str]] = set()
    kinds = [*combinations(arms, 2), *((name, name) for name in arms if name != REAL_ARM)]
    sources = [_pairs_between(arms, kind, chance, used) for kind in kinds]
    found: list[Pair] = []
    while sources and len(found) < num_pairs:
        for source in list(sources):
            pair = next(source, None)
            if pair is None:
                sources.remove(source)
            elif len(found) < num_pairs:
                found.append(pair)
    if len(found) < num_pairs:
        raise UserError(
            f"--num_pairs {num_pairs}: the sets have only {len(found)} pairs of one text or one "
            "diagnosis; ask for fewer, or leave out the question preference"
        )
    chance.shuffle(found)
    return [_either_first(pair, chance) for pair in found]


def _either_first(pair: Pair, chance: random.Random) -> Pair:
    return pair if chance.random() < 0.5 else Pair(pair.second, pair.first, pair.text)


def _pairs_between(
    arms: Arms, kind: tuple[str, str], chance: random.Random, used: set[tuple[str, str]]
) -> Iterator[Pair]:
    """Pairs of two arms, or of one with itself: of one text, then of one diagnosis."""
    one, other = kind
    yield from _pairs_of(kind, _groups(arms, kind, lambda record: record.text), chance, used)
    if one != other:
        yield from _pairs_of(kind, _groups(arms, kind, label_of), chance, used)


def _pairs_of(
    kind: tuple[str, str],
    groups: Mapping[str, list[list[Record]]],
    chance: random.Random,
    used: set[tuple[str, str]],
) -> Iterator[Pair]:
    """Pairs of images that are in none yet, of one group after the other."""
    one, other = kind
    texts = _labels_in_turn(groups, chance)
    members = {
        text: [chance.sample(own, len(own)) for own in groups[text]] for text in texts
    }  # text -> records of one, records of the other
    while texts:
        for text in list(texts):
            first = _unused(members[text][0], one, used)
            second = _unused(members[text][1], other, used)
            if first is None or second is None:
                texts.remove(text)
                if first is not None:
                    used.discard((one, first.file_name))
                continue
            yield Pair((one, first), (other, second), text)


def _groups(
    arms: Arms, kind: tuple[str, str], key: Callable[[Record], str]
) -> dict[str, list[list[Record]]]:
    """By text, or label, that both have: the records of the one arm and of the other."""
    found: dict[str, list[list[Record]]] = {}
    for side, name in enumerate(kind):
        for record in arms[name]:
            if key(record):
                found.setdefault(key(record), [[], []])[side].append(record)
    least = 2 if kind[0] == kind[1] else 1
    return {text: own for text, own in found.items() if min(map(len, own)) >= least}


def _labels_in_turn(groups: Mapping[str, list[list[Record]]], chance: random.Random) -> list[str]:
    """The texts in random order, one of each diagnosis after the other."""
    by_label: dict[str, list[str]] = {}
    for text in chance.sample(sorted(groups), len(groups)):
        by_label.setdefault(label_of(groups[text][0][0]), []).append(text)
    return [text for row in zip_longest(*by_label.values()) for text in row if text is not None]


def _unused(records: list[Record], arm: str, used: set[tuple[str, str]]) -> Record | None:
    """Take the next record that is in no pair yet; None if all are."""
    while records:
        record = records.pop()
        if (arm, record.file_name) not in used:
            used.add((arm, record.file_name))
            return record
    return None
