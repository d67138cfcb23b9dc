"""How often a classifier is right where it says it is: the rows of a reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_BINS = 10


def reliability_rows(
    probs: Sequence[np.ndarray], targets: np.ndarray, *, multi_label: bool
) -> list[dict[str, object]]:
    """Decisions by how sure they are, in ten bins of equal width, empty bins left out.

    DeGroot and Fienberg 1983; Guo et al. 2017 (https://arxiv.org/abs/1706.04599). Multi-class: the
    largest probability of an image, and whether that diagnosis is right. Multi-label: the
    probability of each label, and whether the image has it.

    Args:
        probs: Of each run, (N, L), taken together.
        targets: (N, L) bool.
        multi_label: Whether labels may occur together.

    Returns:
        Rows ``probability`` (as text), ``decisions``, ``mean_probability``, ``share_right``.
    """
    stacked = np.concatenate(probs).astype(np.float64)  # (runs * N, L)
    known = np.tile(targets, (len(probs), 1))
    if multi_label:
        sure, right = stacked.ravel(), known.ravel()
    else:
        sure = stacked.max(axis=1)
        right = known[np.arange(len(known)), stacked.argmax(axis=1)]
    bins = np.clip(np.ceil(sure * NUM_BINS).astype(int), 1, NUM_BINS)
    rows = []
    for number in np.unique(bins):
        members = bins == number
        rows.append(
            {
                "probability": f"{(number - 1) / NUM_BINS:.1f}–{number / NUM_BINS:.1f}",
                "decisions": int(members.sum()),
                "mean_probability": f"{sure[members].mean():.3f}",
                "share_right": f"{right[members].mean():.3f}",
            }
        )
    return rows
