"""Parts of a set that keep its mixture of labels: nested, by seed.

A smaller part is within every larger one of the same seed, so that a curve over shares compares
like with like. Of real images whole patients are taken.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from utils.dataset import Record
from utils.patient_division import patients_of


def labelled_subset(
    records: Sequence[Record], labels: Sequence[str], *, share: float, seed: int
) -> list[int]:
    """Indices of the images that keep their labels.

    Args:
        records: N images of one split.
        labels: Every one of them that occurs in ``records`` occurs in the subset as well, so it
            can be a little larger than asked for.
        share: Of the patients, in percent, > 0.
        seed: Another seed is another subset; 100 percent is everything in any case.

    Returns:
        Ascending places in ``records``.
    """
    order, num_needed = _nested_order(records, labels, seed)
    count = max(1, num_needed, round(share / 100 * len(order)))
    chosen = set(order[:count])
    return [place for place, name in enumerate(patients_of(records)) if name in chosen]


def _nested_order(
    records: Sequence[Record], labels: Sequence[str], seed: int
) -> tuple[list[str], int]:
    """Patients so that every beginning of the list is stratified, and how many cover all labels."""
    found: dict[str, set[str]] = {}
    for name, record in zip(patients_of(records), records):
        found.setdefault(name, set()).update(record.labels)
    drawn = sorted(found, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    counts = Counter(label for own in found.values() for label in own)
    by_rarity = sorted((label for label in labels if counts[label]), key=lambda k: (counts[k], k))
    needed: list[str] = []
    for label in by_rarity:
        if not any(label in found[name] for name in needed):
            needed.append(next(name for name in drawn if label in found[name]))
    # Each patient stands for its rarest label; the places of a label are spread evenly.
    members: dict[str, list[str]] = {}
    for name in drawn:
        rarest = min(found[name], key=lambda label: (counts[label], label), default="")
        members.setdefault(rarest, []).append(name)
    places = {
        name: (place + 0.5) / len(own) for own in members.values() for place, name in enumerate(own)
    }
    others = [name for name in drawn if name not in needed]
    rest = sorted(others, key=places.get)
    return needed + rest, len(needed)


def draw_stratified(records: Sequence[Record], count: int, *, seed: int) -> list[int]:
    """So many images at random, each label (the first, of several; or none) with its share.

    Args:
        records: N of them.
        count: How many; all where there are no more. Of the same seed, fewer are part of more.
        seed: Of the draw.

    Returns:
        Ascending places in ``records``.
    """
    members: dict[str, list[int]] = {}
    for index in np.random.default_rng(seed).permutation(len(records)):
        members.setdefault((*records[index].labels, "")[0], []).append(int(index))
    places = {
        index: (place + 0.5) / len(own)
        for own in members.values()
        for place, index in enumerate(own)
    }
    return sorted(sorted(places, key=places.get)[:count])
