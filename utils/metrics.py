"""Scores of a synthetic image set against a real one: features in, numbers out. Pure functions.

The front door: a page calls ``metrics.frechet_distance(...)`` and the like; the functions live in
the modules named below. Networks are in ``utils.features``, scores of a diagnosis classifier in
``utils.classification_metrics``.
"""

from utils.feature_sets import split_halves
from utils.frechet import (
    MIN_IMAGES,
    frechet_distance,
    frechet_distance_at_equal_n,
    frechet_interval,
)
from utils.inception_score import inception_score
from utils.intervals import (
    CONFIDENCE,
    MIN_GROUPS,
    bootstrap_interval,
    mean_share_interval,
    wilson_interval,
)
from utils.kernel_distances import cmmd, kernel_inception_distance
from utils.ms_ssim import choose_pairs, ms_ssim, pairwise_ms_ssim
from utils.prdc import Prdc, prdc

__all__ = [
    "CONFIDENCE",
    "MIN_GROUPS",
    "MIN_IMAGES",
    "Prdc",
    "bootstrap_interval",
    "choose_pairs",
    "cmmd",
    "frechet_distance",
    "frechet_distance_at_equal_n",
    "frechet_interval",
    "inception_score",
    "kernel_inception_distance",
    "mean_share_interval",
    "ms_ssim",
    "pairwise_ms_ssim",
    "prdc",
    "split_halves",
    "wilson_interval",
]
