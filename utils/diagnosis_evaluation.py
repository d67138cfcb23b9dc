"""How a diagnosis classifier bears the smoothing that generators do to a scan."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from utils.classification_scores import metric_table
from utils.classifier import Classifier
from utils.classifier_training import Examples

BLURS_PX = (1.0, 2.0)  # standard deviations at 128 px at which the smoothed test set is scored


def robustness_to_blur(classifier: Classifier, test: Examples) -> dict[str, dict[str, float]]:
    """How the test images were smoothed -> macro accuracy and AUROC, as they are first."""

    def scores(images: Iterable[np.ndarray]) -> dict[str, float]:
        probs, _ = classifier.predict_gray(images)
        once = np.ones((1, len(test)))
        _, table = metric_table(probs, test.targets, once, multi_label=classifier.multi_label)
        return {name: float(table[name][0]) for name in ("accuracy", "auroc")}

    blurred = {
        f"blurred, sigma {sigma_px:g} px at 128 px": scores(test.images.blurred(sigma_px))
        for sigma_px in BLURS_PX
    }
    return {"as they are": scores(test.images)} | blurred
