"""Thresholds of the gate, calibrated on real validation images for a chosen precision.

Shapes: N images, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import (
    binary_precision_recall_curve,
    binary_recall_at_fixed_precision,
)
from tqdm import tqdm

from utils.classifier import Classifier, batched
from utils.cli import UserError
from utils.dataset import Record
from utils.diagnosis_data import targets_of
from utils.gray_images import GrayImages
from utils.metrics import wilson_interval
from utils.run_folder import get_logger

READ_AT_ONCE = 1024  # images held decoded: 50 MB at 224 px

_logger = get_logger("gate")


@dataclass(frozen=True)
class Calibrated:
    """A label's threshold and what it does to the real images it was found on.

    Attributes:
        threshold: Images with at least this probability of the label pass; in [0, 1].
        precision: Share of the images that pass which have the label.
        precision_ci95: Its 95 % interval (Wilson).
        recall: Share of the images with the label that pass.
        num_positive: Images with the label.
        num_accepted: Images that pass.
    """

    threshold: float
    precision: float
    precision_ci95: tuple[float, float]
    recall: float
    num_positive: int
    num_accepted: int


def calibrate(
    probabilities: np.ndarray, targets: np.ndarray, *, labels: Sequence[str], precision: float
) -> dict[str, Calibrated]:
    """Per label the threshold of largest recall among those of at least a given precision.

    Recall at fixed precision, as `torchmetrics` computes it; the threshold is the probability of
    one of the images. The precision holds where the label is as frequent as in these images, and
    is a little flattered by having been chosen on them.

    Args:
        probabilities: (N, L) float32 in [0, 1].
        targets: (N, L) bool.
        labels: Names of the L columns.
        precision: In (0, 1].

    Raises:
        UserError: If a label has no image, or no threshold reaches the precision.
    """
    require_labels(labels, [name for name, column in zip(labels, targets.T) if column.any()])
    found, best = {}, {}
    for label, scores, truth in zip(labels, probabilities.T, targets.T):
        pair = torch.from_numpy(scores.copy()), torch.from_numpy(truth.astype(np.int64))
        _, threshold = binary_recall_at_fixed_precision(*pair, min_precision=precision)
        if threshold.isnan():
            best[label] = float(binary_precision_recall_curve(*pair)[0][:-1].max())
        else:
            found[label] = _at(float(threshold), scores, truth)
    if best:
        reached = ", ".join(f"{label} {value:.3f}" for label, value in best.items())
        raise UserError(
            f"--accept_precision {precision:g} is beyond the classifier on these images; the best "
            f"it reaches: {reached}. Ask for less, or train a better classifier"
        )
    _tell_too_few(found, precision)
    return found


def require_labels(labels: Sequence[str], present: Sequence[str]) -> None:
    """Refuse to calibrate labels without an image.

    Raises:
        UserError: With all of them.
    """
    absent = [label for label in labels if label not in present]
    if absent:
        raise UserError(
            f"no image of {', '.join(absent)} to calibrate --accept_precision on: give real "
            "images of every label that is asked for, or thresholds with --accept_prob"
        )


def _at(threshold: float, scores: np.ndarray, truth: np.ndarray) -> Calibrated:
    accepted = scores >= threshold
    num_right, num_accepted = int((accepted & truth).sum()), int(accepted.sum())
    return Calibrated(
        threshold=threshold,
        precision=num_right / num_accepted,
        precision_ci95=wilson_interval(num_right, num_accepted),
        recall=num_right / int(truth.sum()),
        num_positive=int(truth.sum()),
        num_accepted=num_accepted,
    )


def _tell_too_few(found: Mapping[str, Calibrated], precision: float) -> None:
    """Warn of labels with so few images that even a flawless gate could not show the precision."""
    few = {
        label: result.num_positive
        for label, result in found.items()
        if wilson_interval(result.num_positive, result.num_positive)[0] < precision
    }
    if few:
        _logger.warning(
            "too few real images to be sure of precision %g (were all recognised and nothing else, "
            "its 95 %% interval would still begin below): %s",
            precision,
            ", ".join(f"{label} {count}" for label, count in few.items()),
        )


def calibrate_on(
    classifier: Classifier,
    records: Sequence[Record],
    *,
    labels: Sequence[str],
    precision: float,
    num_workers: int = 0,
) -> dict[str, Calibrated]:
    """As `calibrate`, reading and judging real images the classifier was not trained on.

    Args:
        classifier: Gives the probabilities.
        records: N real images with labels (``load_dataset(..., require_label=True)``).
        labels: Labels to calibrate, all of them the classifier's.
        precision: In (0, 1].
        num_workers: Threads that read.
    """
    assert all(record.labels for record in records), "an unlabelled image is no negative"
    view = {"resolution": classifier.resolution, "resize_mode": classifier.config.resize_mode}
    parts = []
    with tqdm(total=len(records), unit="image", desc="calibrating") as bar:
        for part in batched(records, READ_AT_ONCE):
            images = GrayImages(part, **view, num_workers=num_workers)
            parts.append(classifier.predict_gray(images, progress=bar.update)[0])
    columns = [classifier.labels.index(label) for label in labels]
    return calibrate(
        np.concatenate(parts)[:, columns],
        targets_of(records, labels),
        labels=labels,
        precision=precision,
    )
