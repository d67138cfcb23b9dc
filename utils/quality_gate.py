"""Which drawn images are kept: each is judged as it would be written, by itself.

Whether an image repeats another one of the set is settled later, in the order of the images
(`utils.work_plan`); here only its perceptual hash is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from PIL import Image, ImageOps

from utils.classifier import Classifier
from utils.copy_gate import CopyGate
from utils.perceptual_hash import hashes_to_hex, perceptual_hash, thumbnail

# Standard deviation in grey levels of what shows nothing: a flat picture but for its last bit.
BLANK_CONTRAST = 1.0
OWN_REASONS = (
    "blank",
    "contrast",
    "class",
    "copy",
)  # with `utils.manifest.DUPLICATE` all there are


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one image.

    Attributes:
        reasons: Of `OWN_REASONS`, those for which it is rejected; none: it passed.
        contrast: Standard deviation of its grey levels.
        score: Probability of its own label in [0, 1], the least of several; None without
            classifier.
        train_similarity: Cosine similarity to the nearest training image; None if not asked.
        phash: Perceptual hash in hex, empty if not asked; likewise ``phash_mirrored``.
        phash_mirrored: See above.
    """

    reasons: tuple[str, ...]
    contrast: float
    score: float | None
    train_similarity: float | None
    phash: str
    phash_mirrored: str


class QualityGate:
    """Judges images; on a CPU the verdict on one does not depend on those beside it."""

    def __init__(
        self,
        *,
        classifier: Classifier | None = None,
        thresholds: Mapping[str, float] | None = None,
        min_contrast: float | None = None,
        copies: CopyGate | None = None,
        unique: bool = False,
    ) -> None:
        """Put the gate together.

        Args:
            classifier: Recognises labels.
            thresholds: Least probability for each label, with a classifier.
            min_contrast: Least standard deviation of the grey levels.
            copies: Recognises copies of training images.
            unique: Whether to take perceptual hashes.
        """
        self._classifier = classifier
        self._thresholds = thresholds or {}
        self._min_contrast = min_contrast or 0.0
        self._copies = copies
        self._unique = unique

    def examine(
        self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]
    ) -> list[Verdict]:
        """Judge N images.

        Args:
            pictures: Mode ``L`` or ``RGB``.
            labels: What each is meant to show.
        """
        contrasts = np.array([np.asarray(picture.convert("L")).std() for picture in pictures])
        scores, wrong = self._recognise(pictures, labels)
        similarities, copied = [None] * len(pictures), np.zeros(len(pictures), bool)
        if self._copies:
            similarities, copied = self._copies.examine(pictures)
        faults = np.stack(
            [contrasts < BLANK_CONTRAST, contrasts < self._min_contrast, wrong, copied], axis=1
        )  # (N, reasons)
        found = zip(contrasts, scores, similarities, *self._hashes(pictures))
        return [
            Verdict(tuple(compress(OWN_REASONS, own)), *facts) for own, facts in zip(faults, found)
        ]

    def _recognise(
        self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]
    ) -> tuple[list[float | None], list[bool]]:
        """Probability of each image's own label, and whether that is too low."""
        if self._classifier is None:
            return [None] * len(pictures), [False] * len(pictures)
        places = {label: place for place, label in enumerate(self._classifier.labels)}
        scores, wrong = [], []
        for probabilities, own in zip(self._classifier.predict(pictures), labels):
            found = {label: float(probabilities[places[label]]) for label in own}
            scores.append(min(found.values()))
            wrong.append(any(found[label] < self._thresholds[label] for label in own))
        return scores, wrong

    def _hashes(self, pictures: Sequence[Image.Image]) -> tuple[list[str], list[str]]:
        if not self._unique:
            return [""] * len(pictures), [""] * len(pictures)
        views = (pictures, [ImageOps.mirror(picture) for picture in pictures])
        found = [
            hashes_to_hex(perceptual_hash(np.stack([thumbnail(picture) for picture in view])))
            for view in views
        ]
        return found[0], found[1]
