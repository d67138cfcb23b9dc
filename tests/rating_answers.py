"""Invented answers of raters with a known truth, for tests of what is made of ratings."""

from itertools import pairwise

import numpy as np

from utils.rating_table import ERROR_KINDS, Answer

LABELS = ("drusen", "macular edema", "normal")


def answer(rater, item, question, value, **others):
    """One answer; what is not said is that of a real image of drusen."""
    usual = {
        "is_repeat": False,
        "position": item,
        "image": f"images/{item:06d}.png",
        "arm": "real",
        "label": "drusen",
        "text": "drusen",
        "other_image": "",
        "other_arm": "",
        "seconds": 5.0,
        "answered_at": "2026-01-01T00:00:00+00:00",
    }
    return Answer(rater=rater, item=item, question=question, value=value, **usual | others)


def says(rater, arm, values, *, question="turing", start=0, **others):
    """Answers of one rater to consecutive items of an arm."""
    return [
        answer(rater, start + n, question, str(value), arm=arm, **others)
        for n, value in enumerate(values)
    ]


def study(
    *, seed=0, raters=("Dr Alba", "Dr Bock", "Dr Cruz"), per_arm=24, arms=None, repeat_every=6
):
    """A whole study: arm -> how good its images are (real: 1), all questions, repeats and pairs.

    Quality and being taken for real rise with the image's quality; raters have a bias each.
    """
    arms = arms or {"real": 1.0, "new": 0.3, "old": -0.8}
    rng = np.random.default_rng(seed)
    items = [(arm, n) for arm in arms for n in range(per_arm)]
    level = {pair: arms[pair[0]] + 0.6 * rng.normal() for pair in items}
    number = {pair: k for k, pair in enumerate(items)}
    found = []
    for r, rater in enumerate(raters):
        bias = 0.4 * (r - 1)
        for pair in items:
            for is_repeat in (False, True):
                if is_repeat and number[pair] % repeat_every:
                    continue
                seen = level[pair] + bias + 0.5 * rng.normal()
                found += _image_answers(rng, rater, pair, number[pair], seen, is_repeat)
        found += _pair_answers(rng, rater, level, number, per_arm, list(arms))
    return found


def _image_answers(rng, rater, pair, item, seen, is_repeat):
    arm, n = pair
    label = LABELS[n % len(LABELS)]
    points = int(np.clip(round(3.2 + 1.2 * seen), 1, 5))
    wrong = seen < -0.6
    diagnosis = label if not wrong else ("unsure" if n % 2 else LABELS[(n + 1) % len(LABELS)])
    kinds = [kind for kind in ERROR_KINDS if rng.random() < 0.25 and seen < 0.4]
    values = {
        "turing": "real" if seen > 0.3 else "synthetic",
        "quality": points,
        "agreement": int(np.clip(points + rng.integers(-1, 2), 1, 5)),
        "diagnosis": diagnosis,
        "errors": ";".join(kinds) or "none",
    }
    if wrong and not is_repeat and n % 4 == 0:
        values["comment"] = f"layers cross <here>, {rater} & others"
    common = {
        "arm": arm,
        "label": label,
        "text": f"{label}, number {n}",
        "is_repeat": is_repeat,
        "seconds": float(np.round(rng.gamma(4, 2), 1)),
    }
    return [answer(rater, item, question, str(v), **common) for question, v in values.items()]


def _pair_answers(rng, rater, level, number, per_arm, arms):
    found = []
    first_item = len(number)
    for k, (one, other) in enumerate(pairwise(arms[1:])):
        for n in range(per_arm // 2):
            gap = level[one, n] - level[other, n] + 0.5 * rng.normal()
            value = "tie" if abs(gap) < 0.2 else ("image" if gap > 0 else "other")
            found.append(
                answer(
                    rater,
                    first_item + k * per_arm + n,
                    "preference",
                    value,
                    image=f"images/{number[one, n]:06d}.png",
                    other_image=f"images/{number[other, n]:06d}.png",
                    arm=one,
                    other_arm=other,
                    label=LABELS[n % len(LABELS)],
                    text=f"{LABELS[n % len(LABELS)]}, number {n}",
                )
            )
    return found
