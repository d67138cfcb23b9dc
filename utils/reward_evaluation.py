"""What a reward is worth on ratings that it never saw: correlation, ranking, calibration.

Intervals are over images, drawn in the groups that are held out together, the raters as they are:
with few raters others may agree less. Shapes: N images, M ratings, P comparisons, R raters,
B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from utils.classification_metrics import nan_mean
from utils.classification_scores import bootstrap_weights
from utils.intervals import CONFIDENCE, bootstrap_interval
from utils.rating_table import SCALE
from utils.reward_ceiling import Grades, ceiling_correlations, grades_of, group_correlations
from utils.reward_holdout import HeldOut
from utils.weighted_statistics import weighted_line, weighted_pearson, weighted_spearman

NUM_RESAMPLES = 1000
NUM_BINS = 8
FEW_IMAGES = 100
ONE_RATER = "there is one rater only: raters could not be held out, images alone were"
NOT_SHOWN = (
    "it is not shown that the reward predicts anything: the interval of its rank correlation with "
    "held-out ratings includes 0; do not train on it"
)
RATERS_FIXED = "interval over images; the raters are taken as they are"
LEVELS = np.array(SCALE, np.float64)

Entry = dict[str, object]


@dataclass(frozen=True)
class RewardReport:
    """Held-out figures of a reward.

    Attributes:
        entries: Name to ``value``, ``ci95`` (None where there is none), ``direction``, ``n`` and
            ``notes``.
        bins: Of the reliability diagram: ``predicted, observed, low, high, ratings``.
        raters: For each group of held-out raters ``raters, images, spearman, ceiling``.
        score: (N,) held-out score of each image, its mean over the groups of raters; NaN unrated.
        observed: (N,) mean rating of each image; NaN if none.
        by_text: Whether images of one text were held out together.
        warnings: What must be known before the reward is used.
    """

    entries: dict[str, Entry]
    bins: list[dict[str, object]]
    raters: list[dict[str, object]]
    score: np.ndarray
    observed: np.ndarray
    by_text: bool
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """For results.json."""
        names = ("entries", "bins", "raters", "by_text", "warnings")
        return {name: getattr(self, name) for name in names}


def report_held_out(
    held_out: HeldOut, groups: np.ndarray, *, by_text: bool, seed: int
) -> RewardReport:
    """All figures of held-out predictions.

    Args:
        held_out: Of `predict_held_out`.
        groups: (N,), images that are drawn together.
        by_text: Whether those of one text are.
        seed: Of the resampling.
    """
    grades = grades_of(held_out)
    draw = _Resampling(groups, seed)
    entries, bins = {}, []
    if len(held_out.ratings.level):
        entries |= _correlations(grades, draw)
        entries |= _log_losses(held_out, groups, seed)
        entries |= _calibration(held_out, draw)
        bins = _bins(held_out, groups, seed)
    if len(held_out.ratings.win):
        entries |= _comparisons(held_out, groups, seed)
    warnings = _warnings(held_out, entries)
    ones = np.ones((1, len(groups)))
    rows = [
        {
            # By their place among the names: a page of these figures is handed around.
            "raters": ", ".join(
                f"rater {place + 1}" for place in np.flatnonzero(held_out.rater_group == number)
            ),
            "images": int((~np.isnan(grades.by_group[number])).sum()),
            "spearman": float(group_correlations(grades, ones, weighted_spearman)[0, number]),
            "ceiling": float(ceiling_correlations(grades, ones, weighted_spearman)[0, number]),
        }
        for number in range(len(grades.by_group))
    ]
    score, observed = (nan_mean(table.T) for table in (grades.score, grades.by_rater))
    return RewardReport(entries, bins, rows, score, observed, by_text, tuple(warnings))


class _Resampling:
    """Weights of the images: as they are, and drawn in groups with replacement."""

    def __init__(self, groups: np.ndarray, seed: int) -> None:
        self.groups, self.seed = groups, seed

    def __call__(self, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, list | None]:
        """Value and 95 % interval of a function of weights (B, N) to (B,)."""
        value = float(statistic(np.ones((1, len(self.groups))))[0])
        drawn = np.concatenate([statistic(weights) for weights in self._weights()])
        finite = drawn[np.isfinite(drawn)]
        if math.isnan(value) or len(finite) < len(drawn) / 2:
            return value, None
        tail = 50 * (1 - CONFIDENCE)
        return value, [float(q) for q in np.percentile(finite, (tail, 100 - tail))]

    def _weights(self) -> Iterator[np.ndarray]:
        size = len(self.groups)
        options = {"num_resamples": NUM_RESAMPLES, "seed": self.seed}
        return bootstrap_weights(self.groups.tolist(), size, **options)


def _entry(found: tuple[float, object], direction: str, count: int, note: str = "") -> Entry:
    value, bounds = found
    notes = {"notes": [note]} if note else {}
    bounds = None if bounds is None else list(bounds)
    return {"value": value, "ci95": bounds, "direction": direction, "n": count} | notes


def _correlations(grades: Grades, draw: _Resampling) -> dict[str, Entry]:
    """With held-out raters, beside how well one rater predicts others."""
    count = int((~np.isnan(grades.by_group)).any(axis=0).sum())
    found = {}
    for name, correlation in (("spearman", weighted_spearman), ("pearson", weighted_pearson)):
        parts = {name: group_correlations, f"{name}_ceiling": ceiling_correlations}
        for key, function in parts.items():
            value = draw(lambda weights, f=function, c=correlation: nan_mean(f(grades, weights, c)))
            note = RATERS_FIXED if key == name else "a rater's own ratings in the reward's place"
            found[key] = _entry(value, "higher", count, note)
    return found


def _log_losses(held_out: HeldOut, groups: np.ndarray, seed: int) -> dict[str, Entry]:
    """Of the ratings, beside what the frequencies of the levels alone give."""
    told = held_out.ratings
    rows = np.arange(len(told.level))
    model, constant = (
        -np.log(probs[rows, told.level]) for probs in (held_out.probs, held_out.constant_probs)
    )
    parts = {
        "log_loss": (model, "lower", "nats a rating"),
        "log_loss_constant": (constant, "lower", "frequencies of the levels alone"),
        "log_loss_gain": (constant - model, "higher", "less than the constant model's"),
    }
    owners = groups[told.image]
    return {
        name: _entry(
            (float(values.mean()), bootstrap_interval(values, groups=owners, seed=seed)),
            direction,
            len(values),
            note,
        )
        for name, (values, direction, note) in parts.items()
    }


def _calibration(held_out: HeldOut, draw: _Resampling) -> dict[str, Entry]:
    """The line of observed on expected ratings, and the mean distance in bins."""
    told, expected = held_out.ratings, held_out.probs @ LEVELS
    observed = told.level + LEVELS[0]
    count = len(observed)
    found = {}
    for place, name in enumerate(("calibration_slope", "calibration_intercept")):
        value = draw(
            lambda weights, k=place: weighted_line(expected, observed, weights[:, told.image])[k]
        )
        best = "best at 1" if place == 0 else "best at 0, with slope 1"
        found[name] = _entry(value, "real", count, best)
    numbers = _bin_numbers(expected)
    gaps = np.bincount(numbers, observed - expected)
    ece = float(np.abs(gaps).sum() / count)
    note = f"points of the scale, {len(np.unique(numbers))} bins; no interval, chance adds to it"
    return found | {"calibration_error": _entry((ece, None), "lower", count, note)}


def _bin_numbers(expected: np.ndarray) -> np.ndarray:
    """Bin of each expected rating (M,), bins of about as many ratings."""
    edges = np.quantile(expected, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
    return np.unique(np.searchsorted(edges, expected, side="right"), return_inverse=True)[1]


def _bins(held_out: HeldOut, groups: np.ndarray, seed: int) -> list[dict[str, object]]:
    """Rows of the reliability diagram."""
    told, expected = held_out.ratings, held_out.probs @ LEVELS
    observed = told.level + LEVELS[0]
    numbers, rows = _bin_numbers(expected), []
    for number in np.unique(numbers):
        members = numbers == number
        values, owners = observed[members], groups[told.image[members]]
        low, high = bootstrap_interval(values, groups=owners, seed=seed) or (None, None)
        means = {"predicted": float(expected[members].mean()), "observed": float(values.mean())}
        rows.append(means | {"low": low, "high": high, "ratings": int(members.sum())})
    return rows


def _comparisons(held_out: HeldOut, groups: np.ndarray, seed: int) -> dict[str, Entry]:
    """How many preferences the reward foresaw, ties left out, and the loss."""
    told = held_out.ratings
    decided = told.win != 0.5
    right = ((held_out.margin > 0) == (told.win == 1))[decided].astype(np.float64)
    owners = groups[told.pair[:, 0]]
    interval = bootstrap_interval(right, groups=owners[decided], seed=seed)
    share = float(right.mean()) if len(right) else math.nan
    loss = held_out.comparison_loss
    bounds = bootstrap_interval(loss, groups=owners, seed=seed)
    note = f"{int((~decided).sum())} ties left out; 0.5 is chance"
    return {
        "comparison_accuracy": _entry((share, interval), "higher", len(right), note),
        "comparison_log_loss": _entry(
            (float(loss.mean()), bounds), "lower", len(loss), "nats; chance gives 0.693"
        ),
    }


def _warnings(held_out: HeldOut, entries: dict[str, Entry]) -> list[str]:
    found = [] if held_out.raters_held_out else [ONE_RATER]
    judged = int(held_out.ratings.judged().sum())
    if judged < FEW_IMAGES:
        found.append(f"only {judged} images were judged: better {FEW_IMAGES} or more")
    shown = entries.get("spearman", entries.get("comparison_accuracy"))
    chance = 0.0 if "spearman" in entries else 0.5
    if shown["ci95"] is None or shown["ci95"][0] <= chance:
        found.append(NOT_SHOWN)
    return found
