"""Pairs for preference training from doctors' answers: of two images of a text, the better one.

A row is what one rater said of one pair; a tie is no row. Weight: 1 / raters who judged the pair,
ties included, so that a pair adds at most 1 however many judged it, raters of different opinions
give opposite rows that cancel in proportion, and ties make a pair count less. Repeats never count:
the first answer does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from utils.rating_flags import PREFERENCE, RATINGS
from utils.rating_table import Answer

POINT_QUESTIONS = ("quality", "agreement")
COLUMNS = ("text", "preferred", "rejected", "weight", "rater", "origin")


@dataclass(frozen=True)
class Pair:
    """One rater's choice; file names relative to the table's folder.

    Attributes:
        text: What both images were drawn from.
        preferred: The better image.
        rejected: The other.
        weight: In (0, 1].
        rater: Whose.
        origin: ``preference``: asked for; ``ratings``: from the points of both.
    """

    text: str
    preferred: str
    rejected: str
    weight: float
    rater: str
    origin: str


def preference_pairs(answers: Iterable[Answer]) -> list[Pair]:
    """Pairs from answers to the question which is better."""
    asked = [one for one in answers if one.question == "preference" and not one.is_repeat]
    num_raters: dict[int, int] = {}
    for one in asked:
        num_raters[one.item] = num_raters.get(one.item, 0) + 1
    found = []
    for one in sorted(asked, key=lambda one: (one.item, one.rater)):
        if one.value == "tie":
            continue
        images = (one.image, one.other_image)
        preferred, rejected = images if one.value == "image" else images[::-1]
        weight = 1 / num_raters[one.item]
        found.append(Pair(one.text, preferred, rejected, weight, one.rater, PREFERENCE))
    return found


def rating_pairs(answers: Iterable[Answer], *, min_gap: int = 1) -> list[Pair]:
    """Pairs of two images of one text whose points of one rater differ.

    Points are quality + agreement, or the one of them that the study asked; images that a rater
    gave only one of two make no pair, as those without text.

    Args:
        answers: Of the study.
        min_gap: Least difference of the points.
    """
    points, texts = _points(answers)
    by_text: dict[str, list[str]] = {}
    for image, text in sorted(texts.items()):
        by_text.setdefault(text, []).append(image)
    found = []
    for text, images in sorted(by_text.items()):
        for pair in combinations(images, 2):
            found += _of_two(text, pair, points, min_gap)
    return found


def _points(answers: Iterable[Answer]) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Rater -> image -> points, and image -> text."""
    rated = [one for one in answers if one.question in POINT_QUESTIONS and not one.is_repeat]
    given: dict[tuple[str, str], dict[str, int]] = {}
    for one in rated:
        given.setdefault((one.rater, one.image), {})[one.question] = int(one.value)
    asked = {one.question for one in rated}
    points: dict[str, dict[str, int]] = {}
    for (rater, image), own in given.items():
        if own.keys() == asked:
            points.setdefault(rater, {})[image] = sum(own.values())
    return points, {one.image: one.text for one in rated if one.text.strip()}


def _of_two(
    text: str, pair: Sequence[str], points: dict[str, dict[str, int]], min_gap: int
) -> list[Pair]:
    judges = [rater for rater, own in sorted(points.items()) if own.keys() >= set(pair)]
    found = []
    for rater in judges:
        better, worse = sorted(pair, key=lambda image: -points[rater][image])
        if points[rater][better] - points[rater][worse] >= min_gap:
            found.append(Pair(text, better, worse, 1 / len(judges), rater, RATINGS))
    return found
