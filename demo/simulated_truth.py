"""What simulated doctors see: an oracle's opinion of the images of a study, before any error.

A synthetic image has no drawn ground truth. The simulator's truth reaches it through a classifier
that was trained on many simulated scans with their truth (the oracle): it is a network, not a
doctor and not the truth, and what it overlooks the simulated doctors overlook together.

Agreement with a text is the oracle's certainty that the image shows what the text asks for; how
real an image looks, and its quality, is how near it lies to the study's real images in the oracle's
features. Shapes: N images, L diagnoses, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.cli import UserError
from utils.finding_labeler import FindingLabeler
from utils.rating_table import SCALE
from utils.reward_features import MAX_LOGIT, named

NUM_NEIGHBOURS = 3
MIN_REAL = 10  # fewer real images do not tell what is typical
MIDDLE, HALF = 3.0, 2.0  # of the scale, and how far its ends are
TYPICAL = 4.0  # points of an image as far from the real ones as they are from each other


@dataclass(frozen=True)
class Opinion:
    """Of one image beside a text.

    Attributes:
        agreement: 1 to 5: 3 where the oracle is of two minds about what is asked.
        quality: 1 to 5: a typical real image 4.
        realness: The same, not cut off at the ends.
        diagnoses: L names.
        odds: (L,) log-odds of each.
        asked: Those that the text asks for.
    """

    agreement: float
    quality: float
    realness: float
    diagnoses: tuple[str, ...]
    odds: np.ndarray
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Truth:
    """What the oracle makes of N images, whatever their texts.

    Attributes:
        diagnoses: L names.
        odds: (N, L) log-odds of each, within 6.
        strangeness: (N,), see `strangeness`.
        labeler: Reads what a text asks for.
    """

    diagnoses: tuple[str, ...]
    odds: np.ndarray
    strangeness: np.ndarray
    labeler: FindingLabeler

    def opinion(self, image: int, text: str, label: str) -> Opinion:
        """Of the image in this row beside a text.

        Agreement is linear in the log-odds of the asked diagnosis, of several the least certain;
        quality loses a point for every interquartile range of strangeness.

        Raises:
            UserError: If neither the text nor the label names a diagnosis that the oracle knows.
        """
        asked = named(self.labeler, text, label.split(";"), self.diagnoses)
        if not asked:
            raise UserError(
                f"the oracle knows {', '.join(self.diagnoses)}; neither the text {text!r} nor the "
                f"label {label!r} names one of them"
            )
        odds = self.odds[image]
        least = min(odds[self.diagnoses.index(name)] for name in asked)
        realness = float(TYPICAL - self.strangeness[image])
        return Opinion(
            agreement=float(MIDDLE + HALF * least / MAX_LOGIT),
            quality=float(np.clip(realness, SCALE[0], SCALE[-1])),
            realness=realness,
            diagnoses=self.diagnoses,
            odds=odds,
            asked=tuple(asked),
        )


def strangeness(features: np.ndarray, is_real: Sequence[bool]) -> np.ndarray:
    """How far images lie from the real ones, (N,), by the mean distance of the nearest three.

    Features are divided by their deviation among the real images. A real image is not its own
    neighbour. In interquartile ranges above the median of the real images' own distances.

    Args:
        features: (N, D).
        is_real: (N,).

    Raises:
        UserError: If under ``MIN_REAL`` images are real.
    """
    real = np.flatnonzero(is_real)
    if len(real) < MIN_REAL:
        raise UserError(
            f"the study shows {len(real)} real images; what is typical of them takes {MIN_REAL}"
        )
    features = np.asarray(features, np.float64)
    deviation = features[real].std(axis=0)
    scaled = features / np.where(deviation > 0, deviation, 1)
    distances = np.sqrt(((scaled[:, None] - scaled[real]) ** 2).sum(axis=2))
    distances[real, np.arange(len(real))] = np.inf
    nearest = np.sort(distances, axis=1)[:, :NUM_NEIGHBOURS].mean(axis=1)
    low, middle, high = np.percentile(nearest[real], (25, 50, 75))
    return (nearest - middle) / max(high - low, np.finfo(np.float64).tiny)
