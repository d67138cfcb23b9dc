"""The quality gate of a run: what it hangs on, found once, and the gate built from that."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL
import torch

from utils.auditor import Auditor, training_facts
from utils.classifier import Classifier
from utils.cli import UserError, available_cores
from utils.copy_gate import CopyGate
from utils.dataset import Dataset, load_dataset
from utils.gate_calibration import calibrate_on
from utils.gate_flags import ACCEPT_PROB
from utils.gate_inputs import TRAIN_SPLIT, check_inputs, real_split
from utils.gate_thresholds import read_thresholds
from utils.image_sets import ImageSet
from utils.images import pixel_hash
from utils.perceptual_hash import MAX_DISTANCE, NUM_BITS
from utils.pixel_digests import DigestMemory
from utils.quality_gate import BLANK_CONTRAST, QualityGate
from utils.run_folder import FEATURE_CACHE, get_logger, to_plain

MAX_READERS = 8  # threads; beyond them a disk is no faster

_logger = get_logger("gate")


def gate_facts(
    args: argparse.Namespace, *, labels: Sequence[str], resolution: int, device: str
) -> dict[str, object]:
    """Find what the gate hangs on: thresholds are calibrated, the detector of copies is trained.

    For the first process alone; the others, and a run that goes on, are given the result.

    Args:
        args: Flags of `utils.gate_flags`.
        labels: Of all images asked for.
        resolution: Side of the images to be drawn.
        device: Where the networks run.

    Returns:
        Reason to facts, in JSON's types and the same after it, for gates.json and `load_gate`.

    Raises:
        UserError: If a threshold cannot be set.
        DatasetError: If a data set is unsound.
    """
    inputs = check_inputs(args, labels)
    facts: dict[str, object] = {"blank": {"min_contrast": BLANK_CONTRAST}}
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
        gate, key = _make_copy_gate(args, resolution=resolution, device=device)
        hashes = {name: inputs[name] for name in ("train_fingerprint", "real_fingerprint")}
        facts["copy"] = {**gate.facts, **hashes, "cache_key": key}
    if args.reject_duplicates:
        facts["duplicate"] = {"max_distance": MAX_DISTANCE, "num_bits": NUM_BITS}
    return to_plain(facts)


def load_gate(
    args: argparse.Namespace,
    facts: Mapping[str, Mapping[str, object]],
    *,
    resolution: int,
    device: str,
    quiet: bool = False,
) -> QualityGate:
    """Build the gate from what `gate_facts` found, now or in an earlier run.

    Only where the cache no longer holds what finds copies is that made again from the images.

    Args:
        args: Flags of `utils.gate_flags`.
        facts: The facts.
        resolution: Side of the images to be drawn.
        device: Where the networks run.
        quiet: Whether to draw no progress bars, as in all processes but the first.

    Raises:
        UserError: If the classifier is not that of the facts, or its weights do not fit it.
    """
    classifier = copies = None
    if args.classifier:
        classifier = Classifier.load(args.classifier, device=device)
        if classifier.sha256 != facts["class"]["sha256"]:
            raise UserError(f"--classifier {args.classifier}: not the one this set was begun with")
    if args.train_dir:
        copies = _restore_copy_gate(
            args, facts["copy"], resolution=resolution, device=device, quiet=quiet
        )
    return QualityGate(
        classifier=classifier,
        thresholds=facts["class"]["thresholds"] if classifier else None,
        min_contrast=args.min_contrast,
        copies=copies,
        unique=args.reject_duplicates,
    )


def _thresholds(
    args: argparse.Namespace, classifier: Classifier, labels: Sequence[str]
) -> tuple[dict[str, float], dict[str, object]]:
    """Least probability of each label, and where it is from."""
    if args.accept_precision is not None:
        real = load_dataset(
            args.real_dir,
            split=real_split(args),
            require_label=True,
            digest_dir=_cache(args),
            offline=args.offline,
        )
        options = {"precision": args.accept_precision, "num_workers": _readers()}
        found = calibrate_on(classifier, list(real), labels=labels, **options)
        origin = {
            "accept_precision": args.accept_precision,
            "real_dir": args.real_dir,
            "real_split": real_split(args),
            "calibration": {label: asdict(result) for label, result in found.items()},
        }
        return {label: result.threshold for label, result in found.items()}, origin
    if isinstance(args.accept_prob, Path):
        known = classifier.labels
        thresholds = read_thresholds(args.accept_prob, labels=labels, known=known)
        return thresholds, {"accept_prob": str(args.accept_prob)}
    threshold = args.accept_prob or ACCEPT_PROB
    return dict.fromkeys(labels, threshold), {"accept_prob": threshold}


def _restore_copy_gate(
    args: argparse.Namespace,
    facts: Mapping[str, object],
    *,
    resolution: int,
    device: str,
    quiet: bool,
) -> CopyGate:
    gate = _kept(_cache(args) / _name(facts["cache_key"]), device)
    if gate is None:
        gate, _ = _make_copy_gate(args, resolution=resolution, device=device, quiet=quiet)
        if gate.facts["detector_sha256"] != facts["detector_sha256"] and not quiet:
            _logger.warning(
                "the detector of copies this set was begun with is lost and cannot be trained "
                "again bit for bit; from here on another one judges, by its own threshold: %.4f "
                "in place of %.4f",
                *(gate.facts["threshold"], facts["threshold"]),
            )
    return gate


def _make_copy_gate(
    args: argparse.Namespace, *, resolution: int, device: str, quiet: bool = False
) -> tuple[CopyGate, str]:
    """The gate against copies, and its key: from the cache, or made from the images and kept."""
    options = {"allow_duplicates": True, "digest_dir": _cache(args), "offline": args.offline}
    train = load_dataset(args.train_dir, split=TRAIN_SPLIT, **options)
    held_out = load_dataset(args.real_dir, split=real_split(args), **options)
    view = (resolution, args.resize_mode)
    made_by = [*training_facts(device, seed=args.seed), *view, PIL.__version__, torch.__version__]
    key = _key(made_by, train, held_out, folder=_cache(args))
    path = _cache(args) / _name(key)
    gate = _kept(path, device)
    if gate is None:
        auditor = Auditor(
            ImageSet("train", train, *view, num_workers=_readers()),
            ImageSet("real", held_out, *view, num_workers=_readers()),
            folder=_cache(args),
            device=device,
            seed=args.seed,
            quiet=quiet,
        )
        gate = CopyGate.measure(auditor)
        gate.save(path, auditor.detector_dir)
    return gate, key


def _kept(path: Path, device: str) -> CopyGate | None:
    """What the cache holds, if it is there and whole."""
    try:
        return CopyGate.load(path, device=device)
    except FileNotFoundError:
        return None
    except UserError as error:
        get_logger("cache").warning("%s; it is made anew", error)
        return None


def _key(made_by: Sequence[object], train: Dataset, held_out: Dataset, *, folder: Path) -> str:
    """Hash of all that the gate against copies is made of; names of files are not in it."""
    patients = {record.patient_id for record in train} - {None, ""}
    parts = [
        made_by,
        *(hashlib.sha256(_digests(side, folder)).hexdigest() for side in (train, held_out)),
        [record.patient_id in patients for record in held_out],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _digests(images: Dataset, folder: Path) -> np.ndarray:
    """`pixel_hash` of every image, (N, 16) uint8; decoded are only those not remembered."""
    memory = DigestMemory(folder, images.records)
    for place in np.flatnonzero(~memory.known):  # of the hub, or written this very moment
        digest = bytes.fromhex(pixel_hash(images[int(place)].image()))
        memory.digests[place] = np.frombuffer(digest, np.uint8)
    return memory.digests


def _name(key: str) -> str:
    return f"copy_gate-{key[:16]}.safetensors"


def _cache(args: argparse.Namespace) -> Path:
    """As of evaluate.py: both find the same detector."""
    return args.output_dir.absolute().parent / FEATURE_CACHE


def _readers() -> int:
    return min(MAX_READERS, available_cores())
