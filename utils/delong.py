"""AUROCs of several classifiers on the same images, and their covariance (DeLong).

The area is a mean over pairs of a positive and a negative, so its error is, to first order, a sum
over images: half of it is the share of negatives that a positive beats, half the share of
positives that beat a negative. DeLong, DeLong and Clarke-Pearson 1988
(https://doi.org/10.2307/2531595) estimate the covariance from these structural components; Sun and
Xu 2014 (https://doi.org/10.1109/LSP.2014.2337313) compute them from midranks; Obuchowski 1997
(https://doi.org/10.2307/2533958) sums them per patient where a patient has several images.

Shapes: K classifiers, N images, L labels, G groups (patients).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def auroc_covariance(
    scores: np.ndarray, targets: np.ndarray, *, groups: Sequence | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC curve of K classifiers on the same images, and their covariance.

    Args:
        scores: (K, N), finite; only the order within a row counts.
        targets: (N,), truthy = positive.
        groups: (N,) names of the units that are independent, such as patients; None when every
            image is one.

    Returns:
        Areas (K,) and covariance (K, K). NaN areas where positives or negatives are missing, NaN
        covariance where they come from fewer than two groups.

    Raises:
        ValueError: If the shapes differ or a score is not finite.
    """
    areas, influences = auroc_influences(scores, targets, groups=groups)
    return areas, influences @ influences.T


def macro_auroc_covariance(
    probs: np.ndarray, targets: np.ndarray, *, groups: Sequence | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``auroc_covariance`` of the mean area over the labels, each against the rest.

    Labels without positives or without negatives are left out of the mean.

    Args:
        probs: (K, N, L), finite.
        targets: (N, L) bool.
        groups: As in ``auroc_covariance``.

    Returns:
        Mean areas (K,) and covariance (K, K); NaN as in ``auroc_covariance``, the covariance
        also where it is for one of the labels.
    """
    areas, influences = label_influences(probs, targets, groups=groups)
    mean, influence = macro_influences(areas, influences)
    return mean, influence @ influence.T


def auroc_influences(
    scores: np.ndarray, targets: np.ndarray, *, groups: Sequence | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Areas and what each group adds to their error: covariance is the product of influences.

    With ``V10`` the share of negatives below a positive, ``V01`` the share of positives above a
    negative (ties half) and m, n the numbers of positives and negatives, the influence of a group
    is ``c10 sum (V10 - area) / m + c01 sum (V01 - area) / n`` over its images, where
    ``c = sqrt(I / (I - 1))`` and I counts the groups with a positive (c10) or a negative (c01).
    Without groups this is DeLong's covariance exactly. It is Obuchowski's too, but that her
    factor of the product of both parts counts all groups: a difference of the order 1 / I.

    Arguments and errors as ``auroc_covariance``.

    Returns:
        Areas (K,) and influences (K, G), groups in the order of ``np.unique``.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(targets, bool)
    if scores.ndim != 2 or scores.shape[1:] != positive.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"scores {scores.shape} and targets {positive.shape} differ, or a score is not finite"
        )
    owner = np.arange(len(positive)) if groups is None else _numbered(groups, len(positive))
    num_groups = int(owner.max(initial=-1)) + 1
    parts = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    if not (len(parts[0]) and len(parts[1])):
        return np.full(len(scores), np.nan), np.full((len(scores), num_groups), np.nan)
    ranks = rankdata(scores, axis=1)
    beaten = [
        (ranks[:, part] - rankdata(scores[:, part], axis=1)) / len(other)
        for part, other in (parts, parts[::-1])
    ]
    components = beaten[0], 1 - beaten[1]  # V10 (K, m), V01 (K, n)
    areas = components[0].mean(axis=1)
    influences = np.zeros((len(scores), num_groups))
    for part, component in zip(parts, components):
        count = len(np.unique(owner[part]))
        factor = np.sqrt(count / (count - 1)) / len(part) if count > 1 else np.nan
        for own, values in zip(influences, component - areas[:, None]):
            own += factor * np.bincount(owner[part], weights=values, minlength=num_groups)
    return areas, influences


def label_influences(
    probs: np.ndarray, targets: np.ndarray, *, groups: Sequence | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``auroc_influences`` of every label: areas (K, L) and influences (K, L, G)."""
    found = [
        auroc_influences(probs[:, :, k], targets[:, k], groups=groups)
        for k in range(targets.shape[1])
    ]
    areas, influences = zip(*found)
    return np.stack(areas, axis=1), np.stack(influences, axis=1)


def macro_influences(areas: np.ndarray, influences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the defined labels: areas (K,) and influences (K, G), NaN where none is."""
    defined = np.isfinite(areas).all(axis=0)
    if not defined.any():
        return np.full(len(areas), np.nan), np.full(influences[:, 0].shape, np.nan)
    return areas[:, defined].mean(axis=1), influences[:, defined].mean(axis=1)


def _numbered(groups: Sequence, num_images: int) -> np.ndarray:
    """Number of the group of each image."""
    if len(groups) != num_images:
        raise ValueError(f"{len(groups)} groups for {num_images} images")
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
