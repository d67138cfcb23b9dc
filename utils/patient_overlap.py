"""Training records of which no patient is in the set that will be judged with them."""

from __future__ import annotations

from collections.abc import Sequence

from utils.dataset import Record


def without_patients_of(
    judged: Sequence[Record], train: Sequence[Record]
) -> tuple[list[Record], list[str]]:
    """Drop the training records that are in the judged set too, by patient or file.

    Args:
        judged: What will be judged.
        train: What a network will be trained on.

    Returns:
        The records that may be used, and what to know about it, in sentences.
    """
    seen = {record.patient_id for record in judged} - {None}
    files = {record.source for record in judged}
    kept = [r for r in train if r.patient_id not in seen and r.source not in files]
    notes = []
    if len(kept) < len(train):
        notes.append(
            f"{len(train) - len(kept)} training images left out: they or their patients are in the "
            "real set that is judged"
        )
    if any(record.patient_id is None for record in (*judged, *kept)):
        notes.append(
            "images without patient_id: a patient on both sides of training and real set cannot "
            "be found out"
        )
    return kept, notes
