"""Answers to one question as arrays: a row for each rater, a column for each image or pair.

Repeats never enter: the first answer of a rater to an item counts, the second one only tells how
well the rater agrees with an own earlier one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.agreement_statistics import MISSING
from utils.dataset_records import split_labels
from utils.rating_table import REAL_ARM, Answer

Score = Callable[[Answer], float]  # NaN where the answer does not count


@dataclass(frozen=True)
class Ratings:
    """All first answers of a study.

    Attributes:
        raters: R names, in the order of the rows.
        arms: ``real`` first, then as the answers name them, sorted.
        answers: First answers.
        repeats: Second answers.
        fixed_raters: Whether figures are about these raters alone.
    """

    raters: tuple[str, ...]
    arms: tuple[str, ...]
    answers: tuple[Answer, ...]
    repeats: tuple[Answer, ...]
    fixed_raters: bool = False

    @property
    def synthetic(self) -> tuple[str, ...]:
        """The arms that are not real."""
        return tuple(arm for arm in self.arms if arm != REAL_ARM)

    def of(self, question: str) -> list[Answer]:
        """First answers to a question."""
        return [answer for answer in self.answers if answer.question == question]

    def labels(self, question: str) -> list[str]:
        """Diagnoses of the images that the question was asked of, sorted."""
        names = {name for answer in self.of(question) for name in split_labels(answer.label)}
        return sorted(names)


def collect(answers: Iterable[Answer], *, fixed_raters: bool = False) -> Ratings:
    """Sort answers for analysis."""
    answers = tuple(answers)
    arms = {arm for one in answers for arm in (one.arm, one.other_arm) if arm}
    return Ratings(
        raters=tuple(sorted({one.rater for one in answers})),
        arms=tuple(sorted(arms, key=lambda arm: (arm != REAL_ARM, arm))),
        answers=tuple(one for one in answers if not one.is_repeat),
        repeats=tuple(one for one in answers if one.is_repeat),
        fixed_raters=fixed_raters,
    )


def anonymous_names(answers: Iterable[Answer]) -> dict[str, str]:
    """Name of a rater -> ``rater 1``, ``rater 2``, ..., in the order of the names."""
    names = sorted({answer.rater for answer in answers})
    return {name: f"rater {number}" for number, name in enumerate(names, start=1)}


def score_table(answers: Sequence[Answer], raters: Sequence[str], score: Score) -> np.ndarray:
    """Scores of some items.

    Args:
        answers: First answers to one question.
        raters: Names of the rows.
        score: Of an answer.

    Returns:
        (R, N) float; NaN where a rater gave no answer, or none that counts.
    """
    columns = {item: n for n, item in enumerate(sorted({one.item for one in answers}))}
    rows = {name: n for n, name in enumerate(raters)}
    table = np.full((len(rows), len(columns)), math.nan)
    for answer in answers:
        table[rows[answer.rater], columns[answer.item]] = score(answer)
    return table


def arm_tables(
    ratings: Ratings, question: str, score: Score, *, label: str | None = None
) -> dict[str, np.ndarray]:
    """Scores arm by arm, of one diagnosis if a label is given; arms without images are absent."""
    found: dict[str, list[Answer]] = {}
    for answer in ratings.of(question):
        if label is None or label in split_labels(answer.label):
            found.setdefault(answer.arm, []).append(answer)
    return {
        arm: score_table(found[arm], ratings.raters, score) for arm in ratings.arms if arm in found
    }


def code_table(
    answers: Sequence[Answer], raters: Sequence[str], code_of: Mapping[str, int]
) -> np.ndarray:
    """(R, N) codes of the answers, ``MISSING`` where there is none."""
    scores = score_table(answers, raters, lambda answer: code_of[answer.value])
    return np.where(np.isnan(scores), MISSING, scores).astype(np.int64)


def only_rater(tables: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """The tables of one rater."""
    return {arm: table[row : row + 1] for arm, table in tables.items()}
