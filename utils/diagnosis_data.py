"""Images with diagnoses, divided into train, val and test so that no patient is on two sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.cli import UserError
from utils.dataset import SPLITS, Dataset, Record
from utils.patient_division import divide_patients

TASKS = ("auto", "multiclass", "multilabel")


@dataclass(frozen=True)
class DiagnosisData:
    """What a diagnosis classifier is trained, tuned and tested on.

    Attributes:
        train: Training records; likewise ``val`` and ``test``. No patient is in two of them.
        val: See above.
        test: See above.
        labels: Diagnoses of the training records, sorted; the order of the network's outputs.
        multi_label: Whether an image may have several.
        fingerprint: Hash of the tables that were read.
        notes: What was decided or could not be checked, in sentences.
    """

    train: tuple[Record, ...]
    val: tuple[Record, ...]
    test: tuple[Record, ...]
    labels: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    notes: tuple[str, ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Images and patients per split, and images per label in each."""
        found = {}
        for name in SPLITS:
            records = getattr(self, name)
            labels = Counter(label for record in records for label in record.labels)
            patients = {record.patient_id for record in records} - {None}
            found[name] = {"images": len(records), "patients": len(patients) or None}
            found[name]["labels"] = {label: labels[label] for label in self.labels}
        return found


def divide(
    real: Dataset, test: Dataset | None, *, task: str, seed: int, by_image: bool
) -> DiagnosisData:
    """Divide data into train, val and test, and refuse what would make a score meaningless.

    Args:
        real: Where train and val come from, and test unless ``test`` is given.
        test: A test set of its own.
        task: One of ``TASKS``; ``auto`` is multi-label if an image has two labels.
        seed: Of the division, where one has to be made.
        by_image: Whether an image without patient is a patient of its own.

    Raises:
        UserError: As ``divide_patients`` does, or if a label occurs only outside train, train has
            fewer than two labels, or the task does not fit the labels.
    """
    notes: list[str] = []
    parts = divide_patients(real, test, seed=seed, by_image=by_image, notes=notes)
    labels = tuple(sorted({label for record in parts["train"] for label in record.labels}))
    multi_label = _is_multi_label(parts, task)
    _refuse_unlearnable(parts, labels)
    fingerprint = real.fingerprint + (test.fingerprint if test is not None else "")
    return DiagnosisData(
        *(tuple(parts[name]) for name in SPLITS), labels, multi_label, fingerprint, tuple(notes)
    )


def targets_of(records: Sequence[Record], labels: Sequence[str]) -> np.ndarray:
    """Which labels each record has, (N, L) bool."""
    return np.array([[label in record.labels for label in labels] for record in records], bool)


def _is_multi_label(parts: dict[str, list[Record]], task: str) -> bool:
    several = [r for records in parts.values() for r in records if len(r.labels) > 1]
    if several and task == "multiclass":
        raise UserError(
            f"--task multiclass, but {len(several)} images have several labels, first: "
            f"{several[0].where} ({';'.join(several[0].labels)})"
        )
    return bool(several) if task == "auto" else task == "multilabel"


def _refuse_unlearnable(parts: dict[str, list[Record]], labels: Sequence[str]) -> None:
    if len(labels) < 2:
        raise UserError(f"train has only one diagnosis ({labels[0]}): nothing to tell apart")
    for name in ("val", "test"):
        counts = Counter(label for record in parts[name] for label in record.labels)
        unknown = [f"{label} ({counts[label]})" for label in sorted(set(counts) - set(labels))]
        if unknown:
            raise UserError(
                f"{name} has diagnoses that train has not, so they cannot be learned: "
                f"{', '.join(unknown)}"
            )
