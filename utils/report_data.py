"""Scans with their reports, real and synthetic: read, checked, divided by patient, decoded.

Nothing that shows a test patient gets past here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils import arms as kinds
from utils.captioned_set import TEXT_SOURCE
from utils.cli import UserError
from utils.dataset import SPLITS, Record, load_dataset
from utils.diagnosis_input import read_images
from utils.gray_images import GrayImages
from utils.label_subsets import draw_stratified, labelled_subset
from utils.leakage import refuse_leaks, refuse_shared_pixels
from utils.line_text import fold_spaces
from utils.patient_division import VAL_SHARE, divide_patients
from utils.run_folder import get_logger
from utils.sweep_plan import RunKey
from utils.synthetic_ratios import num_synthetic, usable_ratios

logger = get_logger("reports")

MIN_SYNTHETIC = 8  # pairs; fewer leave nothing to validate on
MAX_SHARED_SHARE = 0.5  # of the test reports, word for word in training: more is told


@dataclass(frozen=True)
class ReportData:
    """Records of a sweep, each an image with its report.

    Attributes:
        train: Real training pairs; likewise ``val`` and ``test``. No patient is in two of them.
        val: See above.
        test: See above.
        synthetic: Synthetic pairs.
        fingerprint: Hash of all tables.
        notes: What to know about them, in sentences.
    """

    train: tuple[Record, ...]
    val: tuple[Record, ...]
    test: tuple[Record, ...]
    synthetic: tuple[Record, ...]
    fingerprint: str
    notes: tuple[str, ...]

    def counts(self) -> dict[str, dict[str, int | None]]:
        """Pairs and patients of each split."""
        found = {}
        for name in SPLITS:
            records = getattr(self, name)
            patients = {record.patient_id for record in records} - {None}
            found[name] = {"pairs": len(records), "patients": len(patients) or None}
        return found

    def ratios(self, asked: Sequence[float] | None) -> list[float]:
        """Synthetic ratios in percent of the real training pairs; see ``usable_ratios``."""
        return usable_ratios(
            asked,
            num_real=len(self.train),
            available=len(self.synthetic),
            fewest=MIN_SYNTHETIC,
            unit="pairs",
        )


@dataclass(frozen=True)
class Pairs:
    """Images with their reports: N of both, in the same order."""

    images: GrayImages
    texts: tuple[str, ...]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.texts)

    def take(self, places: Sequence[int]) -> Pairs:
        """Those at these places."""
        return Pairs(self.images.take(places), tuple(self.texts[place] for place in places))

    def joined(self, other: Pairs) -> Pairs:
        """These and then another's."""
        return Pairs(self.images.joined(other.images), self.texts + other.texts)


@dataclass(frozen=True)
class ReportPools:
    """The decoded pairs of a sweep; see ``ReportData``."""

    train: Pairs
    val: Pairs
    test: Pairs
    synthetic: Pairs | None


@dataclass(frozen=True)
class ReportSelection:
    """What one run learns from, and is validated on."""

    train: Pairs
    val: Pairs
    num_real: int
    num_synthetic: int


def load_report_data(args: argparse.Namespace, *, check_pixels: bool) -> ReportData:
    """Read and check every table and pixel, divide the patients, refuse what shows test patients.

    Args:
        args: Flags of ``utils.report_flags``.
        check_pixels: Whether to decode every image once; of several processes one should.
    """
    common = {
        "check_pixels": check_pixels,
        "require_text": True,
        "skip_invalid": args.skip_invalid,
        "num_workers": args.num_workers,
        "offline": args.offline,
    }
    columns = {
        "image_column": args.image_column,
        "caption_column": args.caption_column,
        "patient_column": args.patient_column,
    }
    real = load_dataset(args.real_dir, **columns, **common)
    test = load_dataset(args.test_dir, **columns, **common) if args.test_dir else None
    notes: list[str] = []
    parts = divide_patients(real, test, seed=args.seed, by_image=args.by_image, notes=notes)
    _refuse_generated(parts, notes)
    fingerprint = real.fingerprint + (test.fingerprint if test is not None else "")
    synthetic = ()
    if args.synthetic_dir:
        found = load_dataset(args.synthetic_dir, allow_duplicates=True, **common)
        fingerprint += found.fingerprint
        synthetic = tuple(found)
        notes += refuse_leaks(
            found.root,
            synthetic,
            learned=(*parts["train"], *parts["val"]),
            test=parts["test"],
            tested=test or real,
            test_source=args.test_dir or args.real_dir,
        )
    notes += _shared_reports(parts["train"], parts["test"])
    for note in notes:
        logger.info(note)
    records = (tuple(parts[name]) for name in SPLITS)
    return ReportData(*records, synthetic, fingerprint, tuple(notes))


def load_pools(args: argparse.Namespace, data: ReportData) -> ReportPools:
    """Decode the images at the network's size.

    Raises:
        UserError: If a test image looks the same as one to learn from.
    """
    pools = {
        name: Pairs(
            read_images(args, getattr(data, name), name),
            tuple(report_of(record) for record in getattr(data, name)),
        )
        for name in (*SPLITS, "synthetic")
        if getattr(data, name)
    }
    others = {"--synthetic_dir": pools["synthetic"].images} if data.synthetic else {}
    if args.test_dir:
        others["--real_dir"] = pools["train"].images.joined(pools["val"].images)
    refuse_shared_pixels(pools["test"].images, others)
    return ReportPools(*(pools.get(name) for name in (*SPLITS, "synthetic")))


def report_of(record: Record) -> str:
    """A record's report as it is learned and scored: without spaces around it."""
    return record.text.strip()


def select(key: RunKey, pools: ReportPools) -> ReportSelection:
    """What a run learns from.

    The share counts for validation patients too: who has few pairs has few to validate on. A run
    that starts from pre-training on synthetic pairs has seen them there, and goes on with real
    ones alone.
    """
    synthetic = []
    if key.synthetic_ratio and key.arm != kinds.PRETRAINED:
        count = num_synthetic(key.synthetic_ratio, len(pools.train))
        records = pools.synthetic.images.records
        synthetic = draw_stratified(records, count, seed=key.seed)
    if not kinds.uses_real(key.arm):
        num_val = max(1, round(VAL_SHARE * len(synthetic)))
        val = set(draw_stratified([records[place] for place in synthetic], num_val, seed=key.seed))
        parts = [[p for i, p in enumerate(synthetic) if (i in val) == held] for held in (0, 1)]
        train, held_out = (pools.synthetic.take(part) for part in parts)
        return ReportSelection(train, held_out, 0, len(train))
    train, val = (_share_of(part, key) for part in (pools.train, pools.val))
    num_real = len(train)
    if synthetic:
        train = train.joined(pools.synthetic.take(synthetic))
    return ReportSelection(train, val, num_real, len(synthetic))


def _share_of(pairs: Pairs, key: RunKey) -> Pairs:
    """The pairs of a share of the patients."""
    records = pairs.images.records
    labels = sorted({label for record in records for label in record.labels})
    return pairs.take(labelled_subset(records, labels, share=key.label_share, seed=key.seed))


def _refuse_generated(parts: Mapping[str, Sequence[Record]], notes: list[str]) -> None:
    """Refuse test reports that a model has written (``--caption_dir``); elsewhere, note them.

    Raises:
        UserError: Naming the first.
    """
    written = {
        name: [record for record in records if record.row.get("text_source") == TEXT_SOURCE]
        for name, records in parts.items()
    }
    if written["test"]:
        raise UserError(
            f"{len(written['test'])} test reports were written by a model (text_source "
            f"{TEXT_SOURCE}), first: {written['test'][0].where}; what agrees with them may "
            "be wrong in the same way. Test on reports of doctors"
        )
    if count := len(written["train"]) + len(written["val"]):
        notes.append(f"{count} real training and validation reports were written by a model.")


def _shared_reports(train: Sequence[Record], test: Sequence[Record]) -> list[str]:
    """A sentence where many test reports stand in training word for word."""
    known = {fold_spaces(record.text) for record in train}
    shared = sum(fold_spaces(record.text) in known for record in test)
    if shared <= MAX_SHARED_SHARE * len(test):
        return []
    return [
        f"{shared} of {len(test)} test reports stand in the training reports word for word: text "
        "scores reward the template; look at the findings."
    ]
