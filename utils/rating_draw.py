"""Which images a study shows: as many of each diagnosis from every arm."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from utils.cli import UserError
from utils.dataset import Record


def label_of(record: Record) -> str:
    """The labels in one cell, as tables have them."""
    return ";".join(record.labels)


def labels_known(arms: Mapping[str, Sequence[Record]]) -> bool:
    """Whether every arm has labels at all."""
    return all(any(record.labels for record in records) for records in arms.values())


def draw_balanced(
    arms: Mapping[str, Sequence[Record]], num_images: int, *, seed: int
) -> dict[str, list[Record]]:
    """So many images of each arm at random; of each diagnosis, all arms give the same number.

    Else a rater who knows what is frequent where could tell the arms by the diagnosis. Where an
    arm has no labels at all, labels are not looked at.

    Args:
        arms: Records by the arm's name.
        num_images: Of each arm.
        seed: Same records and seed, same images.

    Raises:
        UserError: If there are not so many with the diagnoses in common.
    """
    by_label = labels_known(arms)
    chance = random.Random(seed)
    members: dict[str, dict[str, list[Record]]] = {}
    for name, records in arms.items():
        own = members.setdefault(name, {})
        for record in chance.sample(list(records), len(records)):
            own.setdefault(label_of(record) if by_label else "", []).append(record)
    room = {
        label: min(len(own.get(label, ())) for own in members.values())
        for label in sorted({label for own in members.values() for label in own})
    }
    if sum(room.values()) < num_images:
        held = "; ".join(
            f"{name}: " + ", ".join(f"{len(own[label])} {label or '-'}" for label in sorted(own))
            for name, own in members.items()
        )
        raise UserError(
            f"--num_images {num_images}: only {sum(room.values())} images of each arm can be "
            f"drawn so that all arms show the same diagnoses ({held})"
        )
    counts = _shared_out(num_images, room)
    return {
        name: [record for label, count in counts.items() for record in own.get(label, [])[:count]]
        for name, own in members.items()
    }


def _shared_out(total: int, room: Mapping[str, int]) -> dict[str, int]:
    """As evenly as the room of each allows."""
    counts = dict.fromkeys(room, 0)
    while total:
        for label in room:
            if total and counts[label] < room[label]:
                counts[label] += 1
                total -= 1
    return counts
