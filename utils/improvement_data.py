"""The scans that a loop of self-improvement learns from and is measured on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.cli import UserError
from utils.dataset import Dataset, Record, load_dataset
from utils.leakage import usable_records
from utils.patient_division import divide_patients
from utils.prompt_template import template_of, with_prompts
from utils.run_folder import FEATURE_CACHE, write_csv


@dataclass(frozen=True)
class ImprovementData:
    """No patient is in two of them.

    Attributes:
        train: Real pairs to learn from.
        val: Real pairs that choose the best round.
        test: Real pairs that measure it once.
        unlabeled: Real scans without texts to learn from; empty without ``--unlabeled_dir``.
        notes: What was decided or could not be checked, in sentences.
        fingerprint: Of all tables.
    """

    train: Dataset
    val: Dataset
    test: Dataset
    unlabeled: Sequence[Record]
    notes: Sequence[str]
    fingerprint: str

    @property
    def modality(self) -> str:
        """The one modality of the real pairs; empty where they have several or none."""
        parts = (self.train, self.val, self.test)
        return only_modality(record for part in parts for record in part)

    @property
    def has_labels(self) -> bool:
        """Whether every real pair has a label."""
        return all(record.labels for part in (self.train, self.val, self.test) for record in part)


def load_improvement_data(args: argparse.Namespace) -> ImprovementData:
    """Read and check everything, divide the patients, refuse what shows held-out ones.

    Args:
        args: ``real_dir, unlabeled_dir, by_image, skip_invalid, seed, num_workers, offline,
            output_dir``.

    Raises:
        DatasetError: With all problems of a data set.
        UserError: If a test patient is among the unlabeled, or a split is missing.
    """
    options = {
        "skip_invalid": args.skip_invalid,
        "num_workers": args.num_workers,
        "digest_dir": args.output_dir.parent / FEATURE_CACHE,
        "offline": args.offline,
    }
    real = load_dataset(args.real_dir, require_text=True, **options)
    notes: list[str] = []
    parts = divide_patients(real, None, seed=args.seed, by_image=args.by_image, notes=notes)
    fingerprint, unlabeled = real.fingerprint, []
    if args.unlabeled_dir:
        found = load_dataset(args.unlabeled_dir, **options)
        refuse_texts(found, args.unlabeled_dir)
        fingerprint += found.fingerprint
        held_out = {"val": parts["val"], "test": parts["test"]}
        unlabeled = usable_records(found, flag="--unlabeled_dir", **held_out, notes=notes)
        unlabeled = _with_modality(unlabeled, only_modality(real))
    with_prompts(real.records, template_of(args.model), args.real_dir)  # refuses what it lacks
    sets = {name: Dataset(records, real.root) for name, records in parts.items()}
    return ImprovementData(**sets, unlabeled=unlabeled, notes=notes, fingerprint=fingerprint)


def refuse_texts(dataset: Dataset, source: str) -> None:
    """Refuse scans that have a text: a model's report never takes its place.

    Raises:
        UserError: With the first row.
    """
    written = [record for record in dataset if record.text]
    if written:
        raise UserError(
            f"--unlabeled_dir {source}: {len(written)} rows have a text, first {written[0].where}; "
            "scans with texts belong to --real_dir"
        )


def write_prompts(path: Path, records: Sequence[Record]) -> None:
    """The distinct texts of real scans with their labels, as generate_synthetic_dataset.py reads.

    In the order in which they first occur, so that the same data give the same plan.
    """
    distinct = dict.fromkeys(
        (record.text, ";".join(record.labels), modality_of(record)) for record in records
    )
    columns = ("text", "label", "modality")
    write_csv(path, [dict(zip(columns, prompt)) for prompt in distinct], columns)


def modality_of(record: Record) -> str:
    """The modality of a scan; empty if it is not told."""
    return record.row.get("modality", "").strip()


def only_modality(records: Iterable[Record]) -> str:
    """The modality that all scans have; empty where there are several or none."""
    found = {modality_of(record) for record in records}
    return found.pop() if len(found) == 1 else ""


def _with_modality(records: Sequence[Record], modality: str) -> list[Record]:
    """The same scans, those that do not tell their modality with that of the real pairs."""
    return [
        record if modality_of(record) else replace(record, row={**record.row, "modality": modality})
        for record in records
    ]
