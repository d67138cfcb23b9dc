"""Whole patients in train, val and test: the data set's own splits, or drawn where it has none."""

from __future__ import annotations

from collections.abc import Sequence

from utils.cli import UserError
from utils.dataset import SPLITS, Dataset, Record
from utils.dataset_split import assign_splits

VAL_SHARE = 0.15
TEST_SHARE = 0.20
_MAX_LISTED = 10


def divide_patients(
    real: Dataset, test: Dataset | None, *, seed: int, by_image: bool, notes: list[str]
) -> dict[str, list[Record]]:
    """The records of train, val and test, no patient in two of them.

    The data set's own column ``split`` is used; where it has none (or no val), whole patients are
    drawn, stratified by label.

    Args:
        real: Where train and val come from, and test unless ``test`` is given.
        test: A test set of its own.
        seed: Of the division, where one has to be made.
        by_image: Whether an image without patient is a patient of its own.
        notes: Gets what was decided or could not be checked, in sentences.

    Raises:
        UserError: If a split is missing or empty, or a patient is on two sides.
    """
    parts = _own_splits(real, with_test=test is None, seed=seed, by_image=by_image, notes=notes)
    if test is not None:
        parts["test"] = _test_records(test, notes)
    _refuse_shared_patients(parts, notes)
    return parts


def patients_of(records: Sequence[Record]) -> list[str]:
    """Name of each record's patient; an image without one is a patient of its own."""
    return [
        f"image {record.file_name}" if record.patient_id is None else f"patient {record.patient_id}"
        for record in records
    ]


def _own_splits(
    real: Dataset, *, with_test: bool, seed: int, by_image: bool, notes: list[str]
) -> dict[str, list[Record]]:
    """The records of each split, the missing splits made by patient."""
    given = [record.split for record in real]
    if not any(given):
        splits = assign_splits(
            real.records,
            val_share=VAL_SHARE,
            test_share=TEST_SHARE if with_test else 0.0,
            seed=seed,
            by_image=by_image,
        )
        notes.append(f"No column split: patients were divided at random with seed {seed}.")
        return _by_split(real.records, splits)
    if not all(given):
        first = next(record for record in real if not record.split)
        raise UserError(f"{first.where}: no split here, but other rows have one")
    parts = _by_split(real.records, given)
    if not parts["train"]:
        raise UserError("--real_dir has no row with split train")
    if with_test and not parts["test"]:
        raise UserError("--real_dir has no row with split test: give --test_dir")
    if not with_test and parts["test"]:
        notes.append(f"{len(parts['test'])} rows of --real_dir with split test were not used.")
        parts["test"] = []
    if not parts["val"]:
        train = parts["train"]
        splits = assign_splits(
            train, val_share=VAL_SHARE, test_share=0.0, seed=seed, by_image=by_image
        )
        parts |= {name: _by_split(train, splits)[name] for name in ("train", "val")}
        notes.append(f"No split val: drawn from the patients of train with seed {seed}.")
    return parts


def _by_split(records: Sequence[Record], splits: Sequence[str]) -> dict[str, list[Record]]:
    return {
        name: [record for record, split in zip(records, splits) if split == name] for name in SPLITS
    }


def _test_records(test: Dataset, notes: list[str]) -> list[Record]:
    """Rows of --test_dir to test on: those of split test, or all where there are no splits."""
    if not any(record.split for record in test):
        return list(test.records)
    records = [record for record in test if record.split == "test"]
    if not records:
        raise UserError("--test_dir has splits, but no row with split test")
    if len(records) < len(test):
        notes.append(f"Of --test_dir, the {len(records)} of {len(test)} rows with split test.")
    return records


def _refuse_shared_patients(parts: dict[str, list[Record]], notes: list[str]) -> None:
    patients = {
        name: {record.patient_id: record.where for record in reversed(records)}
        for name, records in parts.items()
    }
    if any(None in found for found in patients.values()):
        notes.append("Images without patient_id: a patient in two splits cannot be found out.")
    for one, other in (("train", "test"), ("val", "test"), ("train", "val")):
        shared = sorted((patients[one].keys() & patients[other].keys()) - {None})
        if shared:
            listed = "; ".join(
                f"{name} ({patients[one][name]}, {patients[other][name]})"
                for name in shared[:_MAX_LISTED]
            )
            more = f" and {len(shared) - _MAX_LISTED} more" if len(shared) > _MAX_LISTED else ""
            raise UserError(
                f"{len(shared)} patients are in {one} and in {other}, so the score would be "
                f"worthless: {listed}{more}. Other people of the same name need another name"
            )
