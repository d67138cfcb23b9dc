"""The quality gate of a run, from its flags: thresholds, classifier, detector of copies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from utils.classifier import Classifier
from utils.cli import UserError
from utils.copy_gate import CopyGate
from utils.dataset import load_dataset
from utils.gate_calibration import calibrate_on
from utils.gate_flags import ACCEPT_PROB
from utils.gate_thresholds import read_thresholds
from utils.image_sets import ImageSet
from utils.perceptual_hash import MAX_DISTANCE, NUM_BITS
from utils.quality_gate import BLANK_CONTRAST, QualityGate

CACHE_NAME = "feature_cache"  # beside the output, as of evaluate.py: both find the same detector
MIN_TRAIN = 2  # a copy detector learns to tell images apart


def load_gate(
    args: argparse.Namespace, *, labels: Sequence[str], resolution: int, device: str
) -> tuple[QualityGate, dict[str, object]]:
    """Put the gate together.

    Args:
        args: Flags of `utils.gate_flags`.
        labels: Of all images asked for.
        resolution: Side of the images to be drawn.
        device: Where the networks run.

    Returns:
        The gate, and the facts it hangs on, gate by gate, for gates.json.

    Raises:
        UserError: If a threshold cannot be set.
        DatasetError: If a data set is unsound.
    """
    facts: dict[str, object] = {"blank": {"min_contrast": BLANK_CONTRAST}}
    classifier = thresholds = copies = None
    if args.min_contrast:
        facts["contrast"] = {"min_contrast": args.min_contrast}
    if args.classifier:
        classifier = Classifier.load(args.classifier, device=device)
        thresholds, origin = _thresholds(args, classifier, labels)
        facts["class"] = {
            "classifier": str(args.classifier),
            "sha256": classifier.sha256,
            "thresholds": thresholds,
            **origin,
        }
    if args.train_dir:
        copies = _copy_gate(args, resolution=resolution, device=device)
        facts["copy"] = copies.facts
    if args.reject_duplicates:
        facts["duplicate"] = {"max_distance": MAX_DISTANCE, "num_bits": NUM_BITS}
    gate = QualityGate(
        classifier=classifier,
        thresholds=thresholds,
        min_contrast=args.min_contrast,
        copies=copies,
        unique=args.reject_duplicates,
    )
    return gate, facts


def _thresholds(
    args: argparse.Namespace, classifier: Classifier, labels: Sequence[str]
) -> tuple[dict[str, float], dict[str, object]]:
    """Least probability of each label, and where it is from."""
    if args.accept_precision is not None:
        real = load_dataset(
            args.real_dir, split=_real_split(args), require_label=True, offline=args.offline
        )
        found = calibrate_on(classifier, list(real), labels=labels, precision=args.accept_precision)
        origin = {
            "accept_precision": args.accept_precision,
            "real_dir": args.real_dir,
            "real_split": _real_split(args),
            "calibration": {label: asdict(result) for label, result in found.items()},
        }
        return {label: result.threshold for label, result in found.items()}, origin
    if isinstance(args.accept_prob, Path):
        known = classifier.labels
        thresholds = read_thresholds(args.accept_prob, labels=labels, known=known)
        return thresholds, {"accept_prob": str(args.accept_prob)}
    threshold = args.accept_prob or ACCEPT_PROB
    return dict.fromkeys(labels, threshold), {"accept_prob": threshold}


def _real_split(args: argparse.Namespace) -> str:
    return args.real_split or "val"


def _copy_gate(args: argparse.Namespace, *, resolution: int, device: str) -> CopyGate:
    from utils.auditor import Auditor

    view = (resolution, args.resize_mode)
    options = {"allow_duplicates": True, "offline": args.offline}
    train = load_dataset(args.train_dir, split="train", **options)
    if len(train) < MIN_TRAIN:
        raise UserError(f"--train_dir: {len(train)} image; {MIN_TRAIN} or more are needed")
    held_out = load_dataset(args.real_dir, split=_real_split(args), **options)
    folder = args.output_dir.absolute().parent / CACHE_NAME
    auditor = Auditor(
        ImageSet("train", train, *view),
        ImageSet("real", held_out, *view),
        folder=folder,
        device=device,
        seed=args.seed,
    )
    return CopyGate(auditor)
