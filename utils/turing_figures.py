"""Can doctors tell real from synthetic? Figures of the Turing test, with interval and test.

Positive is synthetic: sensitivity is the share of synthetic images that are recognised,
specificity the share of real ones. A rater who calls most images synthetic is right often where
most are; what such a rater sees is told by balanced accuracy, the mean of the two, which is 1/2 for
everyone who cannot tell, whatever the bias and the numbers of images. So it is what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.stats import norm

from utils.rater_inference import Contrast, contrast
from utils.rating_figures import ARM, ARMS, ARROW, DIAGNOSIS, OVERALL, RATER, Figure
from utils.rating_matrix import Ratings, arm_tables, only_rater
from utils.rating_table import REAL_ARM, Answer

QUESTION = "turing"
SYNTHETIC = "synthetic"  # all synthetic arms together
NO_INTERVAL = "of one rater's two shares, no interval"
CHANCE = 0.5

Mean = Callable[..., Contrast]  # `contrast`, about any raters or these alone


def says_synthetic(answer: Answer) -> float:
    """1 if the rater took the image for synthetic, 0 if for real."""
    return float(answer.value == SYNTHETIC)


def turing_figures(ratings: Ratings) -> list[Figure]:
    """All figures of the Turing test; families are not corrected yet."""
    tables = arm_tables(ratings, QUESTION, says_synthetic)
    mean = partial(contrast, fixed_raters=ratings.fixed_raters)
    found = [
        Figure(QUESTION, "taken_for_real", ARM, arm, mean(tables, {arm: -1.0}, offset=1.0))
        for arm in tables
    ]
    if REAL_ARM not in tables or len(tables) < 2:
        return found
    both = pooled(tables)
    whole = _whole(both, mean)
    if not ratings.fixed_raters:
        whole["balanced_accuracy_of_these_raters"] = balanced_accuracy(
            both, partial(contrast, fixed_raters=True)
        )
    found += [Figure(QUESTION, metric, OVERALL, "", one) for metric, one in whole.items()]
    for arm in ratings.synthetic:
        if arm in tables:
            found += _of_arm(tables, arm, mean)
    found += _of_labels(ratings, mean)
    for row, rater in enumerate(ratings.raters):
        own = only_rater(both, row)
        figures = {**_whole(own, contrast), **_detection(own)}
        found += [Figure(QUESTION, metric, RATER, rater, one) for metric, one in figures.items()]
    return found


def pooled(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The real images, and all synthetic ones as one arm."""
    others = [table for arm, table in tables.items() if arm != REAL_ARM]
    return {REAL_ARM: tables[REAL_ARM], SYNTHETIC: np.concatenate(others, axis=1)}


def balanced_accuracy(
    tables: Mapping[str, np.ndarray], mean: Mean, arm: str = SYNTHETIC
) -> Contrast:
    """``1/2 + (says synthetic of synthetic - says synthetic of real) / 2``, tested against 1/2."""
    return mean(tables, {arm: 0.5, REAL_ARM: -0.5}, null=CHANCE, offset=0.5)


def _whole(both: Mapping[str, np.ndarray], mean: Mean) -> dict[str, Contrast]:
    num_real, num_synthetic = (
        int(np.isfinite(both[arm]).any(axis=0).sum()) for arm in (REAL_ARM, SYNTHETIC)
    )
    share = num_real / max(num_real + num_synthetic, 1)
    return {
        "balanced_accuracy": balanced_accuracy(both, mean),
        "accuracy": mean(both, {REAL_ARM: -share, SYNTHETIC: 1 - share}, offset=share),
        "sensitivity": mean(both, {SYNTHETIC: 1.0}),
        "specificity": mean(both, {REAL_ARM: -1.0}, offset=1.0),
    }


def _of_arm(tables: Mapping[str, np.ndarray], arm: str, mean: Mean) -> list[Figure]:
    """How well an arm is told from real, and how much rarer than real it is taken for real."""
    apart = mean(tables, {arm: -1.0, REAL_ARM: 1.0}, null=0.0, limits=(-1.0, 1.0))
    name = f"{arm}{ARROW}{REAL_ARM}"
    return [
        Figure(QUESTION, "balanced_accuracy", ARM, arm, balanced_accuracy(tables, mean, arm)),
        Figure(QUESTION, "taken_for_real", ARMS, name, apart, family="turing arms"),
    ]


def _of_labels(ratings: Ratings, mean: Mean) -> list[Figure]:
    found = []
    for label in ratings.labels(QUESTION):
        tables = arm_tables(ratings, QUESTION, says_synthetic, label=label)
        if REAL_ARM not in tables or len(tables) < 2:
            continue
        both, key = pooled(tables), (QUESTION, "balanced_accuracy", DIAGNOSIS, label)
        found.append(Figure(*key, balanced_accuracy(both, mean), family="turing diagnoses"))
        fooled = mean(both, {SYNTHETIC: -1.0}, offset=1.0)
        found.append(Figure(QUESTION, "taken_for_real", DIAGNOSIS, label, fooled))
    return found


def _detection(own: Mapping[str, np.ndarray]) -> dict[str, Contrast]:
    """A rater's sensitivity index d' and bias c, signal detection theory.

    ``d' = z(H) - z(F)``, ``c = -(z(H) + z(F)) / 2`` with hits H and false alarms F as
    ``(count + 1/2) / (n + 1)``, finite for all counts (Hautus 1995,
    https://doi.org/10.3758/BF03203619). c below 0: prone to say synthetic.
    """
    counts = {arm: table[np.isfinite(table)] for arm, table in own.items()}
    if min(map(len, counts.values())) == 0:
        return {}
    quantiles = {
        arm: float(norm.ppf((said.sum() + 0.5) / (len(said) + 1))) for arm, said in counts.items()
    }
    hits, alarms = quantiles[SYNTHETIC], quantiles[REAL_ARM]
    bare = Contrast(*(math.nan,) * 5, 1, sum(map(len, counts.values())), {}, NO_INTERVAL)
    return {
        "d_prime": replace(bare, value=hits - alarms),
        "bias_c": replace(bare, value=-(hits + alarms) / 2),
    }
