"""In which order a rater sees the items, and which of them twice."""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_REPEAT_SHARE = 0.5  # what is repeated is first shown in the first half


@dataclass(frozen=True)
class Showing:
    """One place in a rater's order.

    Attributes:
        item: Number of the item.
        is_repeat: Whether the rater has seen it before.
        swapped: Of a pair, whether its second image is on the left.
    """

    item: int
    is_repeat: bool
    swapped: bool


def draw_order(items: list[int], *, repeat_share: float, repeat_seed: str) -> list[Showing]:
    """All items in random order, and a share of them once more, well after their first showing.

    The order comes from the operating system, not from the seed: who knows the program, the
    data and the seed must not be able to work out what stands where.

    Args:
        items: Numbers of the N items, N >= 1.
        repeat_share: Of the items that are shown twice, in [0, 0.5].
        repeat_seed: Draws which ones, so that a study of the same seed repeats the same ones.

    Returns:
        N plus the repeats; at least N / 3 others lie between the two showings of an item.
    """
    chance = random.SystemRandom()
    num_repeats = round(repeat_share * len(items))
    repeated = random.Random(repeat_seed).sample(sorted(items), num_repeats)
    others = [item for item in items if item not in set(repeated)]
    chance.shuffle(others)
    early = max(num_repeats, len(items) // 2)
    first_half = repeated + others[: early - num_repeats]
    chance.shuffle(first_half)
    firsts = first_half + others[early - num_repeats :]
    order = [(item, False) for item in firsts]
    gap = len(items) // 3
    for item in chance.sample(repeated, num_repeats):
        earliest = min(len(order), order.index((item, False)) + 1 + gap)
        order.insert(chance.randint(earliest, len(order)), (item, True))
    return [Showing(item, again, chance.random() < 0.5) for item, again in order]
