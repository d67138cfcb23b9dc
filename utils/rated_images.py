"""What raters said of each image, and which images are worth looking at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.rating_matrix import Ratings
from utils.rating_table import REAL_ARM

NAN = math.nan


@dataclass(frozen=True)
class ImageSummary:
    """First answers to one image, over its raters.

    Attributes:
        image: Name in the export folder.
        arm: ``real`` or the synthetic set.
        label: Diagnosis.
        text: Of the item.
        num_raters: Who judged it.
        taken_for_real: Share of raters in [0, 1]; NaN where it was not asked, as the next two.
        quality: Mean points.
        agreement: Mean points.
        errors: Kinds that any rater named, joined by ``;``.
    """

    image: str
    arm: str
    label: str
    text: str
    num_raters: int
    taken_for_real: float
    quality: float
    agreement: float
    errors: str


def summarize_images(ratings: Ratings) -> list[ImageSummary]:
    """A summary of every image that was judged alone, in the order of the names."""
    said: dict[str, dict[str, list[str]]] = {}
    facts = {}
    for one in ratings.answers:
        if one.other_image or one.question == "comment":
            continue
        facts.setdefault(one.image, one)
        said.setdefault(one.image, {}).setdefault(one.question, []).append(one.value)
    return [_summary(facts[image], said[image]) for image in sorted(said)]


def _summary(fact, said: dict[str, list[str]]) -> ImageSummary:
    kinds = {kind for value in said.get("errors", ()) for kind in value.split(";")} - {"none"}
    return ImageSummary(
        image=fact.image,
        arm=fact.arm,
        label=fact.label,
        text=fact.text,
        num_raters=max(map(len, said.values())),
        taken_for_real=_mean([value == "real" for value in said.get("turing", ())]),
        quality=_mean([int(value) for value in said.get("quality", ())]),
        agreement=_mean([int(value) for value in said.get("agreement", ())]),
        errors=";".join(sorted(kinds)),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else NAN


def remarkable(images: Sequence[ImageSummary], count: int) -> dict[str, list[ImageSummary]]:
    """Images to show: title -> the first ``count``; empty lists are left out."""
    synthetic = [one for one in images if one.arm != REAL_ARM]
    real = [one for one in images if one.arm == REAL_ARM]

    def first(
        some: Sequence[ImageSummary],
        key: Callable[[ImageSummary], float],
        keep: Callable[[ImageSummary], bool],
    ) -> list[ImageSummary]:
        return sorted(filter(keep, some), key=lambda one: (key(one), one.image))[:count]

    wanted = {
        "Synthetic, most often taken for real": first(
            synthetic, lambda one: -one.taken_for_real, lambda one: one.taken_for_real > 0
        ),
        "Synthetic, most often recognised": first(
            synthetic, lambda one: one.taken_for_real, lambda one: one.taken_for_real < 1
        ),
        "Real, most often taken for synthetic": first(
            real, lambda one: one.taken_for_real, lambda one: one.taken_for_real < 1
        ),
        "Worst quality": first(images, lambda one: one.quality, lambda one: one.quality < 4),
        "Least in agreement with the text": first(
            images, lambda one: one.agreement, lambda one: one.agreement < 4
        ),
    }
    return {title: found for title, found in wanted.items() if found}
