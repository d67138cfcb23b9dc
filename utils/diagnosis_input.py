"""Everything that diagnosis classifiers learn from and are tested on: read, checked, decoded.

Nothing that shows a test patient gets past here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from utils import arms as kinds
from utils.arm_data import Pools
from utils.classifier_training import Examples
from utils.cli import UserError
from utils.dataset import Dataset, Record, load_dataset
from utils.diagnosis_data import DiagnosisData, divide, targets_of
from utils.gray_images import GrayImages
from utils.leakage import (
    refuse_leaks,
    refuse_shared_pixels,
    usable_records,
)
from utils.run_folder import get_logger
from utils.synthetic_ratios import usable_ratios

logger = get_logger("diagnosis")

MIN_PER_LABEL = 8  # synthetic images, in the mean; fewer leave labels out of a split


@dataclass(frozen=True)
class DiagnosisInput:
    """Records of a sweep.

    Attributes:
        real: Labelled real images, divided.
        synthetic: Synthetic images of the same labels.
        unlabeled: Real images beside ``real.train`` whose labels are unknown.
        fingerprint: Hash of all tables.
        notes: What to know about them, in sentences.
    """

    real: DiagnosisData
    synthetic: tuple[Record, ...]
    unlabeled: tuple[Record, ...]
    fingerprint: str
    notes: tuple[str, ...]

    def ratios(self, asked: Sequence[float] | None) -> list[float]:
        """Synthetic ratios in percent of the real training images; see ``usable_ratios``."""
        return usable_ratios(
            asked,
            num_real=len(self.real.train),
            available=len(self.synthetic),
            fewest=MIN_PER_LABEL * len(self.real.labels),
            unit="images",
        )


def load_input(args: argparse.Namespace, *, check_pixels: bool) -> DiagnosisInput:
    """Read and check every table and pixel, divide the patients, refuse what shows test patients.

    Args:
        args: Flags of ``utils.diagnosis_flags`` and ``utils.arm_flags``.
        check_pixels: Whether to decode every image once; of several processes one should.
    """
    common = {
        "check_pixels": check_pixels,
        "skip_invalid": args.skip_invalid,
        "num_workers": args.num_workers,
        "offline": args.offline,
    }
    # Columns that the user names are those of the clinic's tables; a drawn set has the usual ones.
    columns = {"image_column": args.image_column, "patient_column": args.patient_column}
    labelled = common | columns | {"label_column": args.label_column, "require_label": True}
    real = load_dataset(args.real_dir, **labelled)
    test = load_dataset(args.test_dir, **labelled) if args.test_dir else None
    data = divide(real, test, task=args.task, seed=args.seed, by_image=args.by_image)
    notes = list(data.notes)
    sets: list[Dataset] = []
    synthetic, unlabeled = (), ()
    if args.synthetic_dir:
        found = load_dataset(
            args.synthetic_dir, require_label=True, allow_duplicates=True, **common
        )
        sets.append(found)
        synthetic = _synthetic_records(found, data, notes)
        notes += refuse_leaks(
            found.root,
            synthetic,
            learned=(*data.train, *data.val),
            test=data.test,
            tested=test or real,
            test_source=args.test_dir or args.real_dir,
        )
    if args.unlabeled_dir:
        found = load_dataset(args.unlabeled_dir, allow_duplicates=True, **columns, **common)
        sets.append(found)
        unlabeled = usable_records(
            found, flag="--unlabeled_dir", val=data.val, test=data.test, notes=notes
        )
    for note in notes:
        logger.info(note)
    fingerprint = data.fingerprint + "".join(found.fingerprint for found in sets)
    return DiagnosisInput(data, synthetic, tuple(unlabeled), fingerprint, tuple(notes))


def load_pools(args: argparse.Namespace, data: DiagnosisInput) -> tuple[Pools, Examples]:
    """Decode the images at the network's size: those to learn from, and those to test on.

    Raises:
        UserError: If a test image looks the same as one to learn from.
    """
    real = data.real
    examples = {
        name: _examples(args, getattr(real, name), real.labels, name)
        for name in ("train", "val", "test")
    }
    lost = examples["train"].images.shares_lost
    if lost and max(lost) > 0:
        share = sum(lost) / len(lost)
        logger.info("--resize_mode %s drops %.0f %% of an image", args.resize_mode, 100 * share)
    others = {}
    if args.test_dir:
        others["--real_dir"] = examples["train"].images.joined(examples["val"].images)
    synthetic = unlabeled = None
    if data.synthetic:
        synthetic = _examples(args, data.synthetic, real.labels, "synthetic")
        others["--synthetic_dir"] = synthetic.images
    if any(map(kinds.uses_unlabeled, args.arms)):
        unlabeled = examples["train"].images
        if data.unlabeled:
            more = read_images(args, data.unlabeled, "unlabeled")
            others["--unlabeled_dir"] = more
            unlabeled = unlabeled.joined(more)
    refuse_shared_pixels(examples["test"].images, others)
    pools = Pools(real.labels, examples["train"], examples["val"], synthetic, unlabeled)
    return pools, examples["test"]


def read_images(
    args: argparse.Namespace, records: Sequence[Record], name: str, *, shown: bool = True
) -> GrayImages:
    """The pixels of records at the network's size, with a progress bar if it is to be shown."""
    bar_of = {"desc": f"read {name}", "unit": "image", "leave": False, "disable": not shown}
    with tqdm(total=len(records), **bar_of) as bar:
        return GrayImages(
            records,
            resolution=args.resolution,
            resize_mode=args.resize_mode,
            num_workers=args.num_workers,
            progress=bar.update,
        )


def _examples(
    args: argparse.Namespace, records: Sequence[Record], labels: Sequence[str], name: str
) -> Examples:
    return Examples(read_images(args, records, name), targets_of(records, labels))


def _synthetic_records(found: Dataset, data: DiagnosisData, notes: list[str]) -> tuple[Record, ...]:
    """The synthetic images whose labels the real training images have.

    Raises:
        UserError: If a label has no synthetic image, or an image several where that cannot be.
    """
    known = set(data.labels)
    kept = tuple(record for record in found if known.issuperset(record.labels))
    if len(kept) < len(found):
        others = sorted({label for record in found for label in record.labels} - known)
        notes.append(
            f"{len(found) - len(kept)} synthetic images left out: no real training image has "
            f"their label ({', '.join(others)})."
        )
    missing = known - {label for record in kept for label in record.labels}
    if missing:
        raise UserError(
            f"--synthetic_dir has no image of {', '.join(sorted(missing))}: draw the set with "
            "these labels, or leave them out of --real_dir"
        )
    several = [record for record in kept if len(record.labels) > 1]
    if several and not data.multi_label:
        raise UserError(
            f"{several[0].where}: a synthetic image with several labels, but the real images have "
            "one each; --task multilabel trains on both"
        )
    return kept
