"""Everything a rating study tells, from its answers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.cli import UserError
from utils.rater_agreement import agreement_rows, self_agreement_rows
from utils.rating_figures import (
    Figure,
    compare_arms,
    correct_families,
    measures,
    preference_figures,
)
from utils.rating_matrix import Ratings, collect
from utils.rating_table import SCALE, Answer
from utils.turing_figures import turing_figures

Row = Mapping[str, object]
COMMENT = "comment"


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        ratings: The answers, sorted.
        figures: With tests corrected within their families.
        agreement: Rows of agreement between raters.
        self_agreement: Rows of agreement with oneself.
        times: A row for each rater.
        comments: Answers that are comments.
    """

    ratings: Ratings
    figures: Sequence[Figure]
    agreement: Sequence[Row]
    self_agreement: Sequence[Row]
    times: Sequence[Row]
    comments: Sequence[Answer]


def analyze(
    answers: Iterable[Answer],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    fixed_raters: bool = False,
) -> Analysis:
    """Analyse a study.

    Args:
        answers: All current answers.
        num_resamples: Bootstrap draws of items, for agreement between raters.
        seed: Of the bootstrap.
        fixed_raters: Whether figures are about these raters alone, see `contrast`.

    Raises:
        UserError: If there is no answer, or one is none of its question.
    """
    answers = list(answers)
    if not answers:
        raise UserError("no answers yet: nothing to analyse")
    check_values(answers)
    ratings = collect(answers, fixed_raters=fixed_raters)
    figures = turing_figures(ratings)
    for measure in measures():
        figures += compare_arms(ratings, measure)
    figures += preference_figures(ratings)
    return Analysis(
        ratings=ratings,
        figures=correct_families(figures),
        agreement=agreement_rows(ratings, num_resamples=num_resamples, seed=seed),
        self_agreement=self_agreement_rows(ratings),
        times=time_rows(ratings),
        comments=[one for one in answers if one.question == COMMENT],
    )


_VALUES = {
    "turing": {"real", "synthetic"},
    "quality": set(map(str, SCALE)),
    "agreement": set(map(str, SCALE)),
    "preference": {"image", "other", "tie"},
}


def check_values(answers: Iterable[Answer]) -> None:
    """Refuse answers that cannot be, and two of one rater to one showing of an item.

    Raises:
        UserError: Naming rater, item and value.
    """
    seen = set()
    for one in answers:
        who = f"{one.rater}, item {one.item}, question {one.question}"
        allowed = _VALUES.get(one.question)
        if allowed is not None and one.value not in allowed:
            raise UserError(f"{who}: {one.value!r} is none of {', '.join(sorted(allowed))}")
        key = (one.rater, one.item, one.is_repeat, one.question)
        if key in seen:
            raise UserError(f"{who}: two answers where there can be one")
        seen.add(key)


def time_rows(ratings: Ratings) -> list[dict[str, object]]:
    """How many items each rater judged and how long it took; an item's questions share a time."""
    seconds: dict[str, dict[tuple[int, bool], float]] = {name: {} for name in ratings.raters}
    for one in (*ratings.answers, *ratings.repeats):
        own = seconds[one.rater]
        key = (one.item, one.is_repeat)
        own[key] = max(own.get(key, 0.0), one.seconds)
    return [
        {
            "rater": rater,
            "num_items": sum(not is_repeat for _, is_repeat in own),
            "num_repeats": sum(is_repeat for _, is_repeat in own),
            "median_seconds": float(np.median(list(own.values()))),
            "p90_seconds": float(np.percentile(list(own.values()), 90)),
            "total_minutes": sum(own.values()) / 60,
        }
        for rater, own in seconds.items()
    ]
