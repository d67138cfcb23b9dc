"""What the gate is given, checked and hashed before any image is decoded or network loaded."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from utils.classifier import read_config
from utils.cli import UserError
from utils.copy_gate import same_images
from utils.dataset import Dataset, accept, examine_dataset
from utils.gate_calibration import require_labels
from utils.gate_thresholds import read_thresholds
from utils.lazy_records import cells
from utils.network_folder import CONFIG_NAME, WEIGHTS_NAME
from utils.run_folder import sha256_file

MIN_TRAIN = 2  # a copy detector learns to tell images apart
TRAIN_SPLIT = "train"


def check_inputs(args: argparse.Namespace, labels: Sequence[str]) -> dict[str, object]:
    """Check the files and tables behind the gate.

    Args:
        args: Flags of `utils.gate_flags`.
        labels: Of all images asked for.

    Returns:
        What tells these inputs from others, of those that are given: ``classifier_sha256`` of its
        two files, ``thresholds`` of the labels, ``train_fingerprint`` and ``real_fingerprint`` of
        the tables. Pixels are not in them.

    Raises:
        FileNotFoundError: If the classifier's folder is none.
        UserError: If a file is wrong, or the images are too few or the same.
        DatasetError: If a table is unsound.
    """
    found: dict[str, object] = {}
    if args.classifier:
        known = read_config(args.classifier).labels
        files = (sha256_file(args.classifier / name) for name in (CONFIG_NAME, WEIGHTS_NAME))
        found["classifier_sha256"] = sha256("".join(files).encode()).hexdigest()
    if isinstance(args.accept_prob, Path):
        found["thresholds"] = read_thresholds(args.accept_prob, labels=labels, known=known)
    if args.real_dir:
        real = _real_table(args, labels)
        found["real_fingerprint"] = real.fingerprint
    if args.train_dir:
        train = _table(args, "train_dir", TRAIN_SPLIT)
        found["train_fingerprint"] = train.fingerprint
        if len(train) < MIN_TRAIN:
            raise UserError(
                f"--train_dir {args.train_dir}: {len(train)} image; {MIN_TRAIN} or more are needed"
            )
        if _identity(train, args.train_dir) == _identity(real, args.real_dir):
            raise UserError(same_images())
    return found


def real_split(args: argparse.Namespace) -> str:
    """The split of --real_dir to take, if it has splits."""
    return args.real_split or "val"


def _real_table(args: argparse.Namespace, labels: Sequence[str]) -> Dataset:
    calibrated = args.accept_precision is not None
    table = _table(args, "real_dir", real_split(args), required=["label"] * calibrated)
    if calibrated:
        require_labels(labels, table.labels)
    return table


def _table(
    args: argparse.Namespace, flag: str, split: str, *, required: Sequence[str] = ()
) -> Dataset:
    source = getattr(args, flag)
    options = {"required": required, "with_pixels": False, "offline": args.offline}
    found = examine_dataset(source, split=split, **options)
    if not found.kept and len(found.table.records):
        counts = Counter(cell.strip() or "none" for cell in cells(found.table.records, "split"))
        there = ", ".join(f"{name} ({count} images)" for name, count in sorted(counts.items()))
        way_out = "; choose one with --real_split" if flag == "real_dir" else ""
        raise UserError(f"--{flag} {source}: no image in split {split}; it has: {there}{way_out}")
    return accept(found, source, skip_invalid=False)


def _identity(table: Dataset, source: Path | str) -> tuple[str, str]:
    where = table.root.resolve() if table.root else source
    return str(where), table.fingerprint
