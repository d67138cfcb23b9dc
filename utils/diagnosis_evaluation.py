"""The verdict of a test set on a diagnosis classifier: scores, and how they bear smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.classification_scores import MACRO, Score, metric_table, score_classification
from utils.classifier import Classifier
from utils.classifier_training import Examples

BLURS_PX = (1.0, 2.0)  # standard deviations at 128 px at which the smoothed test set is scored


@dataclass(frozen=True)
class Evaluation:
    """What came out for N test images of L labels.

    Attributes:
        probs: (N, L) float32.
        targets: (N, L) bool.
        scores: Per label and macro, with intervals.
        robustness: How the images were smoothed -> macro accuracy and AUROC.
    """

    probs: np.ndarray
    targets: np.ndarray
    scores: list[Score]
    robustness: dict[str, dict[str, float]]


def evaluate_classifier(
    classifier: Classifier,
    test: Examples,
    *,
    patients: Sequence[str],
    batch_size: int,
    num_resamples: int,
    seed: int,
) -> Evaluation:
    """Judge the test images as they are, then blurred as generators blur them.

    Args:
        classifier: Its labels are the columns of ``test.targets``.
        test: N images.
        patients: (N,) names, the units of the bootstrap.
        batch_size: Images at once.
        num_resamples: Bootstrap draws, with ``seed``.
        seed: See above.
    """
    multi_label = classifier.multi_label
    probs, _ = classifier.predict_gray(test.images, batch_size=batch_size)
    scores = score_classification(
        probs,
        test.targets,
        classifier.labels,
        multi_label=multi_label,
        patients=patients,
        num_resamples=num_resamples,
        seed=seed,
    )
    macro = {score.metric: score.value for score in scores if score.target == MACRO}
    robustness = {"as they are": {name: macro[name] for name in ("accuracy", "auroc")}}
    for sigma_px in BLURS_PX:
        blurred = test.images.blurred(sigma_px)
        smooth_probs, _ = classifier.predict_gray(blurred, batch_size=batch_size)
        once = np.ones((1, len(test)))
        _, table = metric_table(smooth_probs, test.targets, once, multi_label=multi_label)
        robustness[f"blurred, sigma {sigma_px:g} px at 128 px"] = {
            name: float(table[name][0]) for name in ("accuracy", "auroc")
        }
    return Evaluation(probs, test.targets, scores, robustness)
