"""Images that would let a classifier see the patients it is tested on: refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.cli import UserError
from utils.dataset import Dataset, Record
from utils.json_file import read_json
from utils.line_text import fold_spaces
from utils.patient_overlap import without_patients_of

_MAX_LISTED = 10


class PixelSource(Protocol):
    """Records with their decoded pixels, such as ``utils.gray_images.GrayImages``."""

    records: Sequence[Record]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The images in the order of ``records``."""


def refuse_shared_pixels(test: PixelSource, others: Mapping[str, PixelSource]) -> None:
    """Refuse a test image whose pixels, at the network's size, are those of an image to learn from.

    Args:
        test: Images to test on.
        others: Flag -> images to learn from.

    Raises:
        UserError: Naming up to ten pairs.
    """
    tested = {_digest(pixels): record for record, pixels in zip(test.records, test)}
    for flag, images in others.items():
        shared = [
            f"{record.where} = {tested[digest].where}"
            for record, digest in zip(images.records, map(_digest, images))
            if digest in tested
        ]
        if shared:
            raise UserError(f"{len(shared)} images of {flag} are test images: {_listed(shared)}")


def refuse_test_patients(flag: str, records: Sequence[Record], test: Sequence[Record]) -> None:
    """Refuse images of test patients, as far as patients are known.

    Raises:
        UserError: Naming up to ten.
    """
    tested = {record.patient_id for record in test} - {None}
    shared = [f"{r.patient_id} ({r.where})" for r in records if r.patient_id in tested]
    if shared:
        raise UserError(
            f"{len(shared)} images of {flag} are of test patients, so the score would be "
            f"worthless: {_listed(shared)}"
        )


def usable_records(
    dataset: Dataset,
    *,
    flag: str,
    val: Sequence[Record],
    test: Sequence[Record],
    notes: list[str],
) -> list[Record]:
    """The images of a source that may be learned from without labels.

    Split train where it has splits, and no patient that validates.

    Args:
        dataset: The source.
        flag: That names it.
        val: Images to validate on.
        test: Images to test on.
        notes: Gets what was left out and what cannot be found out, in sentences.

    Raises:
        UserError: If a test patient is among them, or nothing is left.
    """
    records = list(dataset)
    if any(record.split for record in records):
        records = [record for record in records if record.split == "train"]
        notes.append(f"Of {flag}, the {len(records)} of {len(dataset)} rows with split train.")
    refuse_test_patients(flag, records, test)
    kept, found = without_patients_of(val, records)
    if len(kept) < len(records):
        notes.append(f"{len(records) - len(kept)} images of {flag} are of validation patients.")
    notes += [f"{flag}: {note}" for note in found if "without patient_id" in note]
    if not kept:
        raise UserError(f"{flag} has no image to learn from")
    return kept


def refuse_leaks(
    root: Path | None,
    synthetic: Sequence[Record],
    *,
    learned: Sequence[Record],
    test: Sequence[Record],
    tested: Dataset,
    test_source: str,
) -> list[str]:
    """Refuse a synthetic set that test patients had a part in, as far as it tells.

    Args:
        root: Folder of the set.
        synthetic: Its images.
        learned: Real training and validation images.
        test: Real images to test on.
        tested: The data set that they are from.
        test_source: Where that lies, as the flag has it.

    Returns:
        What could not be found out, in sentences.

    Raises:
        UserError: If it tells so.
    """
    refuse_test_patients("--synthetic_dir", synthetic, test)
    refuse_test_captions(synthetic, learned=learned, test=test)
    has_splits = any(record.split for record in tested)
    return refuse_test_provenance(root, test_source=test_source, has_splits=has_splits)


def refuse_test_captions(
    synthetic: Sequence[Record], *, learned: Sequence[Record], test: Sequence[Record]
) -> None:
    """Refuse synthetic images drawn from captions that only test patients have.

    Args:
        synthetic: With a column ``prompt``, the prompt as ``text``, or both.
        learned: Real training and validation images.
        test: Real images to test on.

    Raises:
        UserError: Naming up to ten.
    """
    tested = {fold_spaces(record.text) for record in test} - {""}
    tested -= {fold_spaces(record.text) for record in learned}
    drawn = [record for record in synthetic if _texts(record) & tested]
    if drawn:
        raise UserError(
            f"{len(drawn)} images of --synthetic_dir were drawn from captions that only test "
            f"patients have: {_listed([record.where for record in drawn])}. Draw the set from "
            "the captions of the training patients"
        )


def refuse_test_provenance(root: Path | None, *, test_source: str, has_splits: bool) -> list[str]:
    """Refuse a synthetic set whose files tell that test patients were used to make it.

    Args:
        root: Folder of the set; None where it has none.
        test_source: Where the test patients come from.
        has_splits: Whether its table has the column ``split``.

    Returns:
        What could not be checked, in sentences.

    Raises:
        UserError: If the set was drawn from the captions of the split test, or by a pipeline
            trained on all of ``test_source``.
    """
    flags = _flags(root)
    if flags is None:
        return ["--synthetic_dir has no options.json: what it was made from cannot be found out."]
    if flags.get("prompts_split") == "test" and _same(flags.get("prompts_from"), test_source):
        raise UserError(
            f"--synthetic_dir {root}: drawn from the captions of the split test (--prompts_split)"
        )
    trained = _flags(flags.get("model") and Path(flags["model"]))
    if trained is None:
        return [
            "The generator of --synthetic_dir has no options.json here: whether it has seen test "
            "patients cannot be found out."
        ]
    if not has_splits and _same(trained.get("train_data_dir"), test_source):
        raise UserError(
            f"--synthetic_dir {root}: its generator {flags['model']} was trained on all of "
            f"{test_source}, test patients too: divide it first (prepare_dataset.py split), train "
            "and draw again"
        )
    return []


def _flags(folder: Path | None) -> dict | None:
    """The flags of the run that made a folder, if they are there."""
    path = folder and folder / "options.json"
    if not path or not path.is_file():
        return None
    options = read_json(path)
    return options.get("flags") if isinstance(options, dict) else None


def _same(one: str | None, other: str) -> bool:
    return bool(one) and Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _texts(record: Record) -> set[str]:
    return {fold_spaces(record.row.get("prompt") or ""), fold_spaces(record.text)}


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(pixels.tobytes()).digest()


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return "; ".join(items[:_MAX_LISTED]) + more
