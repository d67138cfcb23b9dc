"""Figures of a rating study, one a row: whose, of which question, with interval and test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from utils.dataset_records import split_labels
from utils.rater_inference import Contrast, contrast, correct_family
from utils.rating_matrix import Ratings, Score, arm_tables, score_table
from utils.rating_table import ERROR_KINDS, SCALE, UNSURE, Answer

OVERALL, ARM, ARMS, DIAGNOSIS, RATER = "overall", "arm", "arms", "diagnosis", "rater"
TOP_FROM = 4  # of a scale to 5: what counts as good
ARROW = " \N{MINUS SIGN} "  # between the arms of a difference
ANY_ERROR = "any"
NO_ERRORS = "none"
POINTS = (float(SCALE[0]), float(SCALE[-1]))


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        question: Of the study.
        metric: What is measured.
        scope: ``overall``; ``arm``: of one; ``arms``: two compared; ``diagnosis``; ``rater``.
        name: Which arm, arms, diagnosis or rater.
        arm: Of a diagnosis, in which arm; else empty.
        found: The figure.
        family: Tests of one family are corrected together; empty for none.
    """

    question: str
    metric: str
    scope: str
    name: str
    found: Contrast
    arm: str = ""
    family: str = ""

    def row(self) -> dict[str, object]:
        """As a row of ``figures.csv``."""
        found = self.found
        return {
            "question": self.question,
            "metric": self.metric,
            "scope": self.scope,
            "name": self.name,
            "arm": self.arm,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "p_holm": found.p_holm,
            "num_raters": found.num_raters,
            "num_images": found.num_images,
            "reason": found.reason,
        }


def correct_families(figures: Iterable[Figure]) -> list[Figure]:
    """Fill ``p_holm``: Holm's correction within each family."""
    figures = list(figures)
    places: dict[str, list[int]] = {}
    for place, figure in enumerate(figures):
        if figure.family:
            places.setdefault(figure.family, []).append(place)
    for family in places.values():
        for place, found in zip(family, correct_family([figures[n].found for n in family])):
            figures[place] = replace(figures[place], found=found)
    return figures


@dataclass(frozen=True)
class Measure:
    """A mean that is compared between arms.

    Attributes:
        question: Of the study.
        metric: Name of the mean.
        score: Of an answer.
        limits: Of the score.
        family: Differences with the same family are corrected together.
        by_diagnosis: Whether to give it for each diagnosis too.
    """

    question: str
    metric: str
    score: Score
    limits: tuple[float, float] = (0.0, 1.0)
    family: str = ""
    by_diagnosis: bool = False


def is_right(answer: Answer) -> float:
    """Whether a diagnosis is one of the image's; unsure is not right."""
    return float(answer.value in split_labels(answer.label))


def _right_if_decided(answer: Answer) -> float:
    return float("nan") if answer.value == UNSURE else is_right(answer)


def _has_error(kind: str) -> Score:
    if kind == ANY_ERROR:
        return lambda answer: float(answer.value != NO_ERRORS)
    return lambda answer: float(kind in answer.value.split(";"))


def measures() -> list[Measure]:
    """What is measured of quality, agreement with the text, diagnosis and errors."""
    found = []
    for question in ("quality", "agreement"):
        points = Measure(question, "mean", lambda one: float(one.value), POINTS, by_diagnosis=True)
        good = Measure(question, "share_4_5", lambda one: float(int(one.value) >= TOP_FROM))
        found += [points, good]
    found.append(Measure("diagnosis", "right", is_right, by_diagnosis=True))
    found.append(Measure("diagnosis", "right_of_decided", _right_if_decided))
    found.append(Measure("diagnosis", "unsure", lambda one: float(one.value == UNSURE)))
    found.append(Measure("errors", ANY_ERROR, _has_error(ANY_ERROR)))
    kinds = [Measure("errors", kind, _has_error(kind), family="kinds") for kind in ERROR_KINDS]
    return found + kinds


def compare_arms(ratings: Ratings, measure: Measure) -> list[Figure]:
    """A measure of each arm, and each two arms' difference, the later less the earlier."""
    if measure.question == "diagnosis":  # of images whose diagnosis is known
        ratings = replace(ratings, answers=tuple(one for one in ratings.answers if one.label))
    tables = arm_tables(ratings, measure.question, measure.score)
    key = (measure.question, measure.metric)
    fixed = {"fixed_raters": ratings.fixed_raters}
    found = [
        Figure(*key, ARM, arm, contrast(tables, {arm: 1.0}, limits=measure.limits, **fixed))
        for arm in tables
    ]
    span = measure.limits[1] - measure.limits[0]
    for first, second in combinations(tables, 2):
        weights = {second: 1.0, first: -1.0}
        apart = contrast(tables, weights, null=0.0, limits=(-span, span), **fixed)
        family = f"{measure.question} {measure.family or measure.metric}"
        name = f"{second}{ARROW}{first}"
        found.append(Figure(*key, ARMS, name, apart, family=family))
    for label in ratings.labels(measure.question) if measure.by_diagnosis else ():
        of_label = arm_tables(ratings, measure.question, measure.score, label=label)
        found += [
            Figure(
                *(*key, DIAGNOSIS, label),
                contrast(of_label, {arm: 1.0}, limits=measure.limits, **fixed),
                arm=arm,
            )
            for arm in of_label
        ]
    return found


def preference_figures(ratings: Ratings) -> list[Figure]:
    """How often one arm's image is called the better one of a pair, a tie being half.

    Tested against 1/2. Pairs of images of one arm tell nothing here.
    """
    fixed = {"fixed_raters": ratings.fixed_raters}
    pairs: dict[tuple[str, str], list[Answer]] = {}
    for answer in ratings.of("preference"):
        if answer.arm != answer.other_arm:
            first, second = sorted((answer.arm, answer.other_arm), key=ratings.arms.index)
            pairs.setdefault((first, second), []).append(answer)
    found = []
    for first, second in sorted(pairs, key=lambda pair: [*map(ratings.arms.index, pair)]):
        answers = pairs[first, second]
        won = {second: score_table(answers, ratings.raters, _wins(second))}
        tied = {second: score_table(answers, ratings.raters, lambda one: one.value == "tie")}
        name = f"{second} over {first}"
        share = contrast(won, {second: 1.0}, null=0.5, **fixed)
        found.append(Figure("preference", "win_share", ARMS, name, share, family="preference"))
        found.append(
            Figure("preference", "tie_share", ARMS, name, contrast(tied, {second: 1.0}, **fixed))
        )
    return found


def _wins(arm: str) -> Score:
    def score(answer: Answer) -> float:
        if answer.value == "tie":
            return 0.5
        return float((answer.arm if answer.value == "image" else answer.other_arm) == arm)

    return score


def find(
    figures: Sequence[Figure], question: str, metric: str, scope: str, *, name: str | None = None
) -> list[Figure]:
    """The figures of a kind, in order."""
    return [
        one
        for one in figures
        if (one.question, one.metric, one.scope) == (question, metric, scope)
        and name in (None, one.name)
    ]
