"""How well the raters of a study agree with each other, and with themselves on repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from utils.agreement_statistics import Agreement, krippendorff_alpha, undefined
from utils.intervals import bootstrap_interval, wilson_interval
from utils.intraclass import intraclass_correlations
from utils.kappas import cohen_kappa, fleiss_kappa, light_kappa
from utils.rating_matrix import Ratings, code_table
from utils.rating_table import ERROR_KINDS, SCALE, Answer

SCALES = ("quality", "agreement")
CHOICES = ("turing", "diagnosis", "preference")
FEW_REPEATS = 10  # per rater; a share of fewer says little
NO_REPEATS = "no repeat was answered"
SHOWN_ICC = ("ICC(2,1)", "ICC(3,1)")

Coded = tuple[str, Sequence[Answer], Mapping[str, int]]


def coded_questions(ratings: Ratings) -> list[Coded]:
    """Name, answers and code of each answer, question by question; errors kind by kind."""
    found: list[Coded] = []
    for question in (*CHOICES, *SCALES, "errors"):
        answers = ratings.of(question)
        if not answers:
            continue
        values = {one.value for one in (*answers, *_repeats(ratings, question))}
        if question in SCALES:
            found.append((question, answers, {str(point): point - 1 for point in SCALE}))
        elif question == "errors":
            for kind in ERROR_KINDS:
                codes = {value: int(kind in value.split(";")) for value in values}
                found.append((f"errors: {kind}", answers, codes))
        else:
            found.append((question, answers, {v: n for n, v in enumerate(sorted(values))}))
    return found


def _repeats(ratings: Ratings, question: str) -> list[Answer]:
    return [one for one in ratings.repeats if one.question == question]


def agreement_rows(ratings: Ratings, *, num_resamples: int, seed: int) -> list[dict[str, object]]:
    """Every coefficient of every question, for all raters and, Cohen's kappa, for each two.

    Args:
        ratings: Of the study; first answers count.
        num_resamples: Bootstrap draws of items.
        seed: Of the bootstrap.
    """
    rows = []
    for question, answers, code_of in coded_questions(ratings):
        codes = code_table(answers, ratings.raters, code_of)
        options = {"num_resamples": num_resamples, "seed": seed}
        scale = question in SCALES
        weighting = "quadratic" if scale else "none"
        found = {
            "share of equal answers": equal_share(codes, **options),
            f"mean of Cohen's kappas{', quadratic weights' if scale else ''}": light_kappa(
                codes, weighting=weighting, **options
            ),
            "Fleiss' kappa": fleiss_kappa(codes, **options),
            f"Krippendorff's alpha, {'ordinal' if scale else 'nominal'}": krippendorff_alpha(
                codes, level="ordinal" if scale else "nominal", **options
            ),
        }
        if scale:
            del found["Fleiss' kappa"]  # it takes 4 and 5 for as different as 1 and 5
            found |= _intraclass(codes)
        rows += [_row(question, name, "all", one) for name, one in found.items()]
        if len(ratings.raters) > 2:
            rows += _pairs(question, codes, ratings.raters, weighting)
    return rows


def _intraclass(codes: np.ndarray) -> dict[str, Agreement]:
    points = np.where(codes < 0, math.nan, codes + 1.0)
    points = points[np.isfinite(points).any(axis=1)]
    found = intraclass_correlations(points)
    shown = [one for one in found if one.name in SHOWN_ICC or one.name == found[4].name]
    return {
        one.name: Agreement(one.value, one.low, one.high, one.num_items, one.num_raters, one.reason)
        for one in shown
    }


def _pairs(
    question: str, codes: np.ndarray, raters: Sequence[str], weighting: str
) -> list[dict[str, object]]:
    name = "Cohen's kappa" + (", quadratic weights" if weighting == "quadratic" else "")
    return [
        _row(
            question,
            name,
            f"{raters[one]}, {raters[other]}",
            cohen_kappa(codes[one], codes[other], weighting=weighting),
        )
        for one, other in combinations(range(len(raters)), 2)
    ]


def _row(question: str, coefficient: str, raters: str, found: Agreement) -> dict[str, object]:
    return {"question": question, "coefficient": coefficient, "raters": raters, **vars(found)}


def equal_share(codes: np.ndarray, *, num_resamples: int, seed: int) -> Agreement:
    """Share of equal answers among the pairs of raters of an item, the mean over items.

    Args:
        codes: (R, N).
        num_resamples: Bootstrap draws of items.
        seed: Of the bootstrap.
    """
    size = int(codes.max(initial=0)) + 1
    counts = (codes[:, :, None] == np.arange(size)).sum(axis=0)  # (N, K)
    totals = counts.sum(axis=1)
    counts, totals = counts[totals >= 2], totals[totals >= 2]
    if not len(counts):
        return undefined("no item was judged by two raters", num_raters=len(codes))
    shares = (counts * (counts - 1)).sum(axis=1) / (totals * (totals - 1))
    ends = bootstrap_interval(shares, num_resamples=num_resamples, seed=seed)
    low, high = ends or (math.nan, math.nan)
    return Agreement(float(shares.mean()), low, high, len(shares), len(codes))


def self_agreement_rows(ratings: Ratings) -> list[dict[str, object]]:
    """What raters say when they see an item again: share of equal answers, kappa, mean shift."""
    rows = []
    for question, answers, code_of in coded_questions(ratings):
        first = {(one.rater, one.item): code_of[one.value] for one in answers}
        asked = question.split(":", 1)[0]
        for rater in ratings.raters:
            pairs = [
                (first[rater, one.item], code_of[one.value])
                for one in _repeats(ratings, asked)
                if one.rater == rater and (rater, one.item) in first
            ]
            rows.append(
                {"question": question, "rater": rater} | _self(np.array(pairs), asked in SCALES)
            )
    return rows


def _self(pairs: np.ndarray, scale: bool) -> dict[str, object]:
    if not len(pairs):
        return {"num_repeats": 0, "reason": NO_REPEATS}
    first, second = pairs.T
    kappa = cohen_kappa(first, second, weighting="quadratic" if scale else "none")
    equal = int((first == second).sum())
    low, high = wilson_interval(equal, len(pairs))
    few = f"fewer than {FEW_REPEATS} repeats" if len(pairs) < FEW_REPEATS else ""
    return {
        "num_repeats": len(pairs),
        "equal": equal / len(pairs),
        "equal_low": low,
        "equal_high": high,
        "kappa": kappa.value,
        "kappa_low": kappa.low,
        "kappa_high": kappa.high,
        "mean_shift": float((second - first).mean()) if scale else None,
        "reason": "; ".join(filter(None, (few, kappa.reason))),
    }
