"""Sections of the page of a rating study: points, diagnoses, errors, preferences, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from utils.html_report import Page
from utils.rating_analysis import Analysis
from utils.rating_figures import ARM, ARMS, DIAGNOSIS, Figure, find
from utils.rating_sentences import asked_name, minus, p_text, points, share, signed_share

_SHORT = {  # coefficient -> column, where points and choices share one
    "share of equal answers": "Equal",
    "mean of Cohen's kappas": "Cohen's κ, mean",
    "mean of Cohen's kappas, quadratic weights": "Cohen's κ, mean",
    "Fleiss' kappa": "Fleiss' κ",
    "Krippendorff's alpha, nominal": "α",
    "Krippendorff's alpha, ordinal": "α",
}
_ERRORS = ("any", "omission", "commission", "context", "artifact")


def add_points(page: Page, figures: Sequence[Figure]) -> None:
    """Quality and agreement with the text."""
    names = {question: asked_name(question) for question in ("quality", "agreement")}
    means = {
        name: find(figures, question, "mean", ARM)
        for question, name in names.items()
        if find(figures, question, "mean", ARM)
    }
    if not means:
        return
    page.heading("Ratings")
    arm_bars(page, means, title="Mean points", x_label="points, 1 (worst) to 5 (best)", scale=1)
    rows = []
    for question, name in names.items():
        good = {one.name: one.found for one in find(figures, question, "share_4_5", ARM)}
        rows += [
            {
                "question": name,
                "arm": one.name,
                "mean": points(one.found),
                "good": share(good[one.name]),
                "images": one.found.num_images,
            }
            for one in find(figures, question, "mean", ARM)
        ]
    heads = {"question": "Question", "arm": "Arm", "mean": "Mean", "good": "4 or 5"}
    page.table(rows, heads | {"images": "Images"}, caption="In brackets the 95 % interval.")
    _add_point_differences(page, figures, names)
    _by_diagnosis(page, figures, tuple(names), "mean")


def _add_point_differences(page: Page, figures: Sequence[Figure], names: Mapping[str, str]) -> None:
    rows = []
    for question, name in names.items():
        good = {one.name: one.found for one in find(figures, question, "share_4_5", ARMS)}
        rows += [
            _difference_row(one, points(one.found, signed=True), question=name)
            | {"good": signed_share(good[one.name]), "good_p": p_text(good[one.name].p_holm)}
            for one in find(figures, question, "mean", ARMS)
        ]
    if rows:
        heads = {"question": "Question", "arms": "Arms", "apart": "Difference", "p": "p (Holm)"}
        page.table(
            rows,
            heads | {"good": "4 or 5, percentage points", "good_p": "p (Holm)"},
            caption="Corrected over the differences of a column and question.",
        )


def _by_diagnosis(
    page: Page, figures: Sequence[Figure], questions: Sequence[str], metric: str
) -> None:
    heads = {"quality": "Quality", "agreement": "Agreement", "diagnosis": "Right"}
    for question in questions:
        found = find(figures, question, metric, DIAGNOSIS)
        labels = list(dict.fromkeys(one.name for one in found))
        if len(labels) < 2:
            continue
        arms = list(dict.fromkeys(one.arm for one in found))
        text = points if metric == "mean" else share
        cells = {(one.name, one.arm): text(one.found) for one in found}
        page.table(
            [{"label": k, **{arm: cells.get((k, arm), "–") for arm in arms}} for k in labels],
            {"label": f"{heads[question]}, by diagnosis", **{arm: arm for arm in arms}},
        )


def _difference_row(one: Figure, text: str, **more: object) -> dict[str, object]:
    return {"arms": one.name, "apart": text, "p": p_text(one.found.p_holm), **more}


def add_diagnoses(page: Page, figures: Sequence[Figure]) -> None:
    """Was the diagnosis recognised?"""
    right = find(figures, "diagnosis", "right", ARM)
    if not right:
        return
    page.heading("Which diagnosis?")
    others = {
        metric: {one.name: one.found for one in find(figures, "diagnosis", metric, ARM)}
        for metric in ("unsure", "right_of_decided")
    }
    page.table(
        [
            {
                "arm": one.name,
                "right": share(one.found),
                "unsure": share(others["unsure"][one.name]),
                "decided": share(others["right_of_decided"][one.name]),
            }
            for one in right
        ],
        {"arm": "Arm", "right": "Right", "unsure": "Unsure", "decided": "Right, of decided"},
        caption="Right: the diagnosis that the image was drawn for, or that a real one has. Unsure "
        "is not right; the last column leaves it out.",
    )
    apart = find(figures, "diagnosis", "right", ARMS)
    if apart:
        page.table(
            [_difference_row(one, signed_share(one.found)) for one in apart],
            {"arms": "Arms", "apart": "Right, percentage points", "p": "p (Holm)"},
        )
    _by_diagnosis(page, figures, ("diagnosis",), "right")


def add_errors(page: Page, figures: Sequence[Figure]) -> None:
    """Which kinds of errors do the images have?"""
    arms = [one.name for one in find(figures, "errors", "any", ARM)]
    if not arms:
        return
    page.heading("Errors")
    cells = {
        (kind, one.name): share(one.found)
        for kind in _ERRORS
        for one in find(figures, "errors", kind, ARM)
    }
    page.table(
        [{"kind": kind, **{arm: cells[kind, arm] for arm in arms}} for kind in _ERRORS],
        {"kind": "Error", **{arm: arm for arm in arms}},
        caption="Images that have it in a rater's eyes. Omission: a part of the text is missing; "
        "commission: something is drawn that the text does not say; context: right thing, wrong "
        "place or look; artifact: no scan looks so. Differences are in figures.csv.",
    )


def add_preferences(page: Page, figures: Sequence[Figure]) -> None:
    """Which of two is better?"""
    wins = find(figures, "preference", "win_share", ARMS)
    if not wins:
        return
    page.heading("Which is better?")
    ties = {one.name: one.found for one in find(figures, "preference", "tie_share", ARMS)}
    page.table(
        [
            {
                "arms": one.name,
                "pairs": one.found.num_images,
                "wins": share(one.found),
                "p": p_text(one.found.p_holm),
                "ties": share(ties[one.name]),
            }
            for one in wins
        ],
        {"arms": "Arms", "pairs": "Pairs", "wins": "Wins", "p": "p (Holm)", "ties": "Ties"},
        caption="Share of pairs that the first named wins, a tie being half; p of its being 50 %.",
    )


def add_agreement(page: Page, analysis: Analysis) -> None:
    """How far do raters agree, with each other and with themselves?"""
    page.heading("Agreement between raters")
    found = [row for row in analysis.agreement if row["raters"] == "all"]
    if found:
        page.table(
            [
                {"question": asked_name(question)}
                | {
                    _SHORT.get(row["coefficient"], row["coefficient"]): _with_ends(row)
                    for row in found
                    if row["question"] == question
                }
                | {"items": max(row["num_items"] for row in found if row["question"] == question)}
                for question in dict.fromkeys(row["question"] for row in found)
            ],
            {"question": "Question", **_agreement_heads(found), "items": "Items"},
            dense=True,
            caption="In brackets the 95 % interval over images. Kappa (of points with quadratic "
            "weights) and alpha (nominal, of points ordinal) count what is more than chance, and "
            "are low where nearly all images get one answer. ICC(2,1): how well a rater's points "
            "stand for another's; ICC(2,k): the mean of k raters; ICC(3,1) leaves a rater's "
            "constant bias out. Cohen's kappa of each two raters is in agreement.csv.",
        )
    page.bullets(_notes(found, "coefficient"))
    _add_self_agreement(page, analysis.self_agreement)


def _agreement_heads(found: Sequence[Mapping[str, object]]) -> dict[str, str]:
    names = dict.fromkeys(_SHORT.get(row["coefficient"], row["coefficient"]) for row in found)
    return {name: name for name in names}


def _add_self_agreement(page: Page, rows: Sequence[Mapping[str, object]]) -> None:
    page.heading("Agreement with oneself", level=3)
    repeated = [row for row in rows if row["num_repeats"]]
    if not repeated:
        page.paragraph("No repeat was answered.")
        return
    cells = {(row["question"], row["rater"]): _self_cell(row) for row in repeated}
    raters = list(dict.fromkeys(row["rater"] for row in repeated))
    page.table(
        [
            {
                "question": asked_name(question),
                **{rater: cells.get((question, rater)) for rater in raters},
            }
            for question in dict.fromkeys(row["question"] for row in repeated)
        ],
        {"question": "Question", **{rater: rater for rater in raters}},
        dense=True,
        caption="Equal answers when an image came again, with 95 % interval, and kappa κ (of "
        "points with quadratic weights): the ceiling of agreement with others.",
    )
    page.bullets(_notes(repeated, "rater"))


def _self_cell(row: Mapping[str, object]) -> str:
    ends = f"[{100 * row['equal_low']:.0f}, {100 * row['equal_high']:.0f}]"
    kappa = "–" if math.isnan(row["kappa"]) else minus(f"{row['kappa']:.2f}")
    return f"{round(row['equal'] * row['num_repeats'])} of {row['num_repeats']} {ends}, κ {kappa}"


def _notes(rows: Sequence[Mapping[str, object]], key: str) -> list[str]:
    """Reasons, each once, with what they are about."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for reason in filter(None, row["reason"].split("; ")):
            about = f"{asked_name(row['question'])}, {_SHORT.get(row[key], row[key])}"
            reasons.setdefault(reason, []).append(about)
    return [
        f"{reason[0].upper()}{reason[1:]} ({'; '.join(dict.fromkeys(about))})."
        for reason, about in reasons.items()
    ]


def _with_ends(row: Mapping[str, object]) -> str:
    if math.isnan(row["value"]):
        return "–"
    text = f"{row['value']:.2f}"
    if not math.isnan(row["low"]):
        text += f" [{row['low']:.2f},\N{NO-BREAK SPACE}{row['high']:.2f}]"
    return minus(text)


def arm_bars(
    page: Page,
    groups: dict[str, Sequence[Figure]],
    *,
    title: str,
    x_label: str,
    scale: float = 100,
) -> None:
    """Bars of arms, with whiskers."""
    values = {
        group: {one.name: _rounded(scale * one.found.value, scale) for one in found}
        for group, found in groups.items()
    }
    ends = {
        group: {one.name: (scale * one.found.low, scale * one.found.high) for one in found}
        for group, found in groups.items()
    }
    page.bars(
        values, title=title, intervals=ends, x_label=x_label, caption="Whiskers: 95 % intervals."
    )


def _rounded(value: float, scale: float) -> float | None:
    """Percents whole, points with two digits; None where undefined."""
    if math.isnan(value):
        return None
    return round(value) if scale > 1 else round(value, 2)
