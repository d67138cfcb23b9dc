"""What a network is pre-trained on without labels: images of no patient that will be tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utils.cli import UserError
from utils.dataset import Dataset, Record
from utils.diagnosis_data import DiagnosisData
from utils.leakage import usable_records


@dataclass(frozen=True)
class PretrainingData:
    """Images without their labels.

    Attributes:
        train: What to learn from.
        val: Images of other patients, to measure the loss on.
        counts: Source (``real``, ``unlabeled``, ``synthetic``) -> images in ``train``.
        fingerprint: Hash of the tables that were read.
        notes: What was decided or could not be checked, in sentences.
    """

    train: tuple[Record, ...]
    val: tuple[Record, ...]
    counts: dict[str, int]
    fingerprint: str
    notes: tuple[str, ...]


def gather(
    data: DiagnosisData,
    *,
    pretrain_on: str,
    unlabeled: Dataset | None,
    synthetic: Dataset | None,
) -> PretrainingData:
    """Join the sources, without test or validation patients.

    Args:
        data: Real images, divided.
        pretrain_on: ``real``, ``synthetic`` or ``real+synthetic``.
        unlabeled: Real images without labels; None: no more than ``data.train``.
        synthetic: Read where ``pretrain_on`` names it.

    Raises:
        UserError: If a patient of the test split is in ``unlabeled`` or ``synthetic``, or nobody is
            left to validate.
    """
    if not data.val:
        raise UserError("--real_dir has no row with split val to measure the loss on")
    notes = list(data.notes)
    divided = {"val": data.val, "test": data.test}
    sources: dict[str, Sequence[Record]] = {}
    if "real" in pretrain_on:
        sources["real"] = data.train
        if unlabeled is not None:
            sources["unlabeled"] = usable_records(
                unlabeled, flag="--unlabeled_dir", **divided, notes=notes
            )
    if "synthetic" in pretrain_on:
        assert synthetic is not None, "--synthetic_dir is checked with the flags"
        sources["synthetic"] = usable_records(
            synthetic, flag="--synthetic_dir", **divided, notes=notes
        )
    read = [part for part in (unlabeled, synthetic) if part is not None]
    return PretrainingData(
        train=tuple(record for records in sources.values() for record in records),
        val=data.val,
        counts={name: len(records) for name, records in sources.items()},
        fingerprint="".join([data.fingerprint, *(part.fingerprint for part in read)]),
        notes=tuple(notes),
    )
