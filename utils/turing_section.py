"""The section of a rating study's page about telling real from synthetic."""

from __future__ import annotations

from collections.abc import Sequence

from utils.html_report import Page
from utils.rater_inference import Contrast
from utils.rating_figures import ARM, ARMS, DIAGNOSIS, OVERALL, RATER, Figure, find
from utils.rating_sections import arm_bars
from utils.rating_sentences import minus, p_text, share, signed_share

_TURING = {
    "balanced_accuracy": "balanced accuracy",
    "balanced_accuracy_of_these_raters": "balanced accuracy, of these raters alone",
    "accuracy": "accuracy",
    "sensitivity": "synthetic images recognised (sensitivity)",
    "specificity": "real images recognised (specificity)",
}


def add_turing(page: Page, figures: Sequence[Figure]) -> None:
    """Can raters tell real from synthetic?"""
    taken = find(figures, "turing", "taken_for_real", ARM)
    if not taken:
        return
    page.heading("Real or synthetic?")
    arm_bars(
        page, {"all images": taken}, title="Taken for real", x_label="images taken for real, %"
    )
    rows = [
        {
            "figure": name,
            "value": share(one.found),
            "p": p_text(one.found.p),
        }
        for metric, name in _TURING.items()
        for one in find(figures, "turing", metric, OVERALL)
    ]
    if not rows:
        return
    page.table(
        rows,
        {"figure": "Figure", "value": "Value [95 % interval]", "p": "p"},
        caption="Over raters and images: intervals and test allow for other raters and other "
        "images. Balanced accuracy, the mean of both shares recognised, is tested against 50 %: "
        "unlike accuracy it is 50 % for whoever cannot tell, however prone to say synthetic. Of "
        "these raters alone: on other images, and nothing about other raters.",
    )
    reasons = [one.found.reason for one in find(figures, "turing", "balanced_accuracy", OVERALL)]
    page.bullets([reason.capitalize() + "." for reason in filter(None, reasons)])
    _turing_arms(page, figures)
    _turing_diagnoses(page, figures)
    _turing_raters(page, figures)


def _turing_arms(page: Page, figures: Sequence[Figure]) -> None:
    told = find(figures, "turing", "balanced_accuracy", ARM)
    if len(told) < 2:
        return
    apart = find(figures, "turing", "taken_for_real", ARMS)
    page.table(
        [
            {
                "arm": one.name,
                "told": share(one.found),
                "apart": signed_share(difference.found),
                "p": p_text(difference.found.p_holm),
            }
            for one, difference in zip(told, apart)
        ],
        {
            "arm": "Arm",
            "told": "Balanced accuracy, against real",
            "apart": "Taken for real, less real, percentage points",
            "p": "p (Holm)",
        },
        caption="Each synthetic set against the real images.",
    )


def _turing_diagnoses(page: Page, figures: Sequence[Figure]) -> None:
    found = find(figures, "turing", "balanced_accuracy", DIAGNOSIS)
    if not found:
        return
    fooled = {one.name: one for one in find(figures, "turing", "taken_for_real", DIAGNOSIS)}
    page.heading("By diagnosis", level=3)
    page.table(
        [
            {
                "label": one.name,
                "images": one.found.num_images,
                "told": share(one.found),
                "p": p_text(one.found.p_holm),
                "fooled": share(fooled[one.name].found),
            }
            for one in found
        ],
        {
            "label": "Diagnosis",
            "images": "Images",
            "told": "Balanced accuracy",
            "p": "p (Holm)",
            "fooled": "Synthetic taken for real",
        },
        caption="p of balanced accuracy being 50 %, corrected over the diagnoses.",
    )


def _turing_raters(page: Page, figures: Sequence[Figure]) -> None:
    by_metric = {
        metric: {one.name: one.found for one in find(figures, "turing", metric, RATER)}
        for metric in ("balanced_accuracy", "sensitivity", "specificity", "d_prime", "bias_c")
    }
    page.heading("By rater", level=3)
    page.table(
        [
            {
                "rater": rater,
                "told": share(found),
                "p": p_text(found.p),
                "sensitivity": share(by_metric["sensitivity"][rater]),
                "specificity": share(by_metric["specificity"][rater]),
                **{key: _two_digits(by_metric[key].get(rater)) for key in ("d_prime", "bias_c")},
            }
            for rater, found in by_metric["balanced_accuracy"].items()
        ],
        {
            "rater": "Rater",
            "told": "Balanced accuracy",
            "p": "p",
            "sensitivity": "Synthetic recognised",
            "specificity": "Real recognised",
            "d_prime": "d′",
            "bias_c": "c",
        },
        caption="Of this rater on other images; not corrected, as each is a question of its own. "
        "d′: 0 cannot tell, 1 tells moderately, 3 hardly errs. c: below 0 prone to say synthetic, "
        "above 0 prone to say real.",
    )


def _two_digits(found: Contrast | None) -> str:
    return "–" if found is None else minus(f"{found.value:.2f}")
