"""Real pairs of image and text to train an encoder on, apart from those it is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils import metrics
from utils.dataset import Record
from utils.image_text import text_of
from utils.patient_division import patients_of
from utils.patient_overlap import without_patients_of


def pairs_to_train_on(
    real: Sequence[Record], train: Sequence[Record] | None, *, seed: int
) -> tuple[list[Record], np.ndarray, list[str]]:
    """Real pairs for the encoder, and the real images of other patients to evaluate on.

    Args:
        real: The real set.
        train: A training set of its own, or None.
        seed: Of the halves.

    Returns:
        Pairs to train on, indices of the real images to evaluate on, and what to know about it, in
        sentences.
    """
    if train is not None:
        kept, notes = without_patients_of(real, train)
        judged = np.arange(len(real))
    else:
        first, judged = metrics.split_halves(patients_of(real), seed=seed)
        kept = [real[i] for i in first]
        notes = [
            f"no training set was given: the encoder is trained on {len(first)} of the real images "
            f"and retrieval is measured on the other {len(judged)}"
        ]
    pairs = [record for record in kept if text_of(record)]
    notes.append(f"encoder trained on {len(pairs)} real images with a text")
    return pairs, judged, notes
