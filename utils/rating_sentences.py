"""What a rating study says, in plain sentences: findings, and what is weak about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from utils.rater_agreement import FEW_REPEATS
from utils.rater_inference import Contrast
from utils.rating_analysis import Analysis
from utils.rating_figures import ARM, ARMS, OVERALL, Figure, find
from utils.rating_table import REAL_ARM
from utils.verdicts import SIGNIFICANCE

ENOUGH_RATERS = 3
ENOUGH_IMAGES = 30  # of an arm
_NARROW = "\N{NO-BREAK SPACE}"
_QUESTIONS = {"quality": "Quality", "agreement": "Agreement with the text"}
_ASKED = {
    "turing": "real or synthetic",
    "quality": "quality",
    "agreement": "agreement with the text",
    "diagnosis": "diagnosis",
    "preference": "preference",
}


def share(found: Contrast) -> str:
    """``63 % [55, 71]``; a dash where undefined."""
    return _text(found, scale=100, digits=0, unit=f"{_NARROW}%")


def points(found: Contrast, *, signed: bool = False) -> str:
    """``3.41 [3.10, 3.72]``, with a sign for differences."""
    return _text(found, scale=1, digits=2, unit="", signed=signed)


def signed_share(found: Contrast) -> str:
    """``−12 [−20, −4] percentage points``, without the unit."""
    return _text(found, scale=100, digits=0, unit="", signed=True)


def _text(found: Contrast, *, scale: int, digits: int, unit: str, signed: bool = False) -> str:
    if math.isnan(found.value):
        return "–"
    sign = "+" if signed else ""

    def number(value: float) -> str:
        rounded = round(scale * value, digits) + 0.0  # no minus zero
        return minus(f"{rounded:{sign if rounded else ''}.{digits}f}")

    if math.isnan(found.low):
        return number(found.value) + unit
    return f"{number(found.value)}{unit} [{number(found.low)},{_NARROW}{number(found.high)}]"


def asked_name(question: str) -> str:
    """What a question is called in sentences."""
    return _ASKED.get(question, question)


def minus(text: str) -> str:
    """Figures with true minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    """A p value for a sentence or cell."""
    if math.isnan(p):
        return "–"
    return f"<{_NARROW}0.001" if p < 0.001 else f"{p:.3f}"


def _p(p: float) -> str:
    return f"p {p_text(p)}" if p < 0.001 else f"p = {p_text(p)}"


def findings(analysis: Analysis) -> list[str]:
    """The main results, most important first."""
    found = [*_turing(analysis.figures), *_turing_arms(analysis.figures)]
    for question in _QUESTIONS:
        found += _points(analysis.figures, question)
    found += _diagnoses(analysis.figures)
    found += [_win(one) for one in find(analysis.figures, "preference", "win_share", ARMS)]
    return found + _agreement(analysis)


def _turing(figures: Sequence[Figure]) -> list[str]:
    overall = find(figures, "turing", "balanced_accuracy", OVERALL)
    if not overall or math.isnan(overall[0].found.value):
        return []
    found = overall[0].found
    text = f"balanced accuracy {share(found)}, chance is 50{_NARROW}%"
    counted = f"{_many(found.num_raters, 'rater')}, {found.num_images} images"
    if not found.p < SIGNIFICANCE:
        end = ""
        if found.high > 0.5:
            end = f" Up to {100 * found.high:.0f}{_NARROW}% are compatible with the answers."
        tested = f"{_p(found.p)}, " if not math.isnan(found.p) else ""
        for own in find(figures, "turing", "balanced_accuracy_of_these_raters", OVERALL):
            if own.found.p < SIGNIFICANCE and own.found.value > 0.5:
                themselves = f"These raters themselves can ({_p(own.found.p)})"
                end += f" {themselves}; for others they are too few."
        return [
            "It is not shown that raters can tell synthetic images from real ones: "
            f"{text}, {tested}{counted}.{end}"
        ]
    verdict = "Raters can tell synthetic images from real ones"
    if found.value < 0.5:
        verdict = "The raters took synthetic images for real more often than real ones"
    return [f"{verdict}: {text}, {_p(found.p)}, {counted}."]


def _turing_arms(figures: Sequence[Figure]) -> list[str]:
    taken = find(figures, "turing", "taken_for_real", ARM)
    if not taken:
        return []
    parts = [f"{share(one.found)} of {one.name}" for one in taken]
    sentences = [f"Taken for real: {_listed(parts)}."]
    apart = find(figures, "turing", "taken_for_real", ARMS)
    if len(apart) > 1:
        sentences.append(f"Shares taken for real, in percentage points: {_differences(apart)}.")
    return sentences


def _points(figures: Sequence[Figure], question: str) -> list[str]:
    means = find(figures, question, "mean", ARM)
    if not means:
        return []
    parts = [f"{one.name} {points(one.found)}" for one in means]
    apart = find(figures, question, "mean", ARMS)
    sentence = f"{_QUESTIONS[question]}, 1 to 5: {_listed(parts)}."
    if apart:
        sentence += f" Differences: {_differences(apart, as_points=True)}."
    return [sentence]


def _diagnoses(figures: Sequence[Figure]) -> list[str]:
    right = find(figures, "diagnosis", "right", ARM)
    if not right:
        return []
    parts = [f"{share(one.found)} of {one.name}" for one in right]
    unsure = [
        f"{share(one.found)} of {one.name}" for one in find(figures, "diagnosis", "unsure", ARM)
    ]
    sentence = f"The image's diagnosis was named for {_listed(parts)}; unsure: {_listed(unsure)}."
    apart = find(figures, "diagnosis", "right", ARMS)
    if apart:
        sentence += f" Differences in percentage points: {_differences(apart)}."
    return [sentence]


def _win(one: Figure) -> str:
    later, earlier = one.name.split(" over ")
    if one.found.value >= 0.5:
        liked, other, won = later, earlier, one.found
    else:
        liked, other, won = earlier, later, mirrored(one.found)
    verdict = f"{liked} is preferred to {other}"
    if not one.found.p_holm < SIGNIFICANCE:
        verdict = f"No preference between {liked} and {other} is shown"
    p = f", {_p(one.found.p_holm)}" if not math.isnan(one.found.p_holm) else ""
    return f"{verdict}: {liked} wins {share(won)} of the pairs, a tie being half{p}."


def mirrored(found: Contrast) -> Contrast:
    """The other side's share."""
    return replace(found, value=1 - found.value, low=1 - found.high, high=1 - found.low)


def _agreement(analysis: Analysis) -> list[str]:
    """Krippendorff's alpha of each question; those of errors are in the table."""
    parts = [
        f"{_ASKED[row['question']]} {row['value']:.2f}"
        + ("" if math.isnan(row["low"]) else f" [{row['low']:.2f},{_NARROW}{row['high']:.2f}]")
        for row in analysis.agreement
        if row["coefficient"].startswith("Krippendorff") and row["question"] in _ASKED
        if not math.isnan(row["value"])
    ]
    if not parts:
        return []
    return [
        f"Agreement between raters, Krippendorff's alpha: {minus(_listed(parts))}. 1 is perfect, 0 "
        "is chance; Krippendorff asks for 0.8, and for 0.667 where conclusions are tentative."
    ]


def _differences(apart: Sequence[Figure], *, as_points: bool = False) -> str:
    parts = []
    for one in apart:
        text = points(one.found, signed=True) if as_points else signed_share(one.found)
        p = "" if math.isnan(one.found.p_holm) else f", {_p(one.found.p_holm)}"
        parts.append(f"{one.name} {text}{p}")
    return "; ".join(parts) + (" (p after Holm's correction)" if len(apart) > 1 else "")


def cautions(analysis: Analysis) -> list[str]:
    """What makes the findings weaker than they look."""
    ratings = analysis.ratings
    found = []
    if len(ratings.raters) == 1:
        found.append("One rater: nothing here can be said of other raters.")
    elif ratings.fixed_raters:
        found.append(
            "Intervals and tests are about these raters alone, on other images: they say nothing "
            "about other raters."
        )
    elif len(ratings.raters) < ENOUGH_RATERS:
        found.append(
            "Two raters: how much raters differ is hardly known, so intervals are wide and tests "
            "seldom significant. Run with --about these_raters for what holds for these two."
        )
    images = {(one.arm, one.image) for one in ratings.answers if not one.other_image}
    counts = Counter(arm for arm, _ in images)
    few = [f"{counts[arm]} of {arm}" for arm in ratings.arms if 0 < counts[arm] < ENOUGH_IMAGES]
    if few:
        found.append(f"Few images: {_listed(few)}. Only large differences can be shown.")
    items = [row["num_items"] for row in analysis.times]
    if min(items) < max(items):
        found.append(
            f"Not all raters are through: between {min(items)} and {max(items)} items each. "
            "Figures are means over raters, whatever their number of answers."
        )
    repeats = [row["num_repeats"] for row in analysis.times]
    if min(repeats) < FEW_REPEATS:
        found.append(
            f"Few repeats ({min(repeats)} to {max(repeats)} a rater): agreement with oneself is "
            "hardly known."
        )
    if ratings.of("turing") and REAL_ARM not in ratings.arms:
        found.append("No real images: whether raters can tell them apart cannot be tested.")
    return found


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts)
