"""Copies of training images among synthetic ones, from image sets to the verdict."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.audit_images import AuditImages, read_images
from utils.cli import UserError
from utils.copy_audit import Audit, audit
from utils.copy_detector import FORMAT, CopyDetector
from utils.copy_training import DetectorOptions, hash_images, train_copy_detector
from utils.image_sets import ImageSet
from utils.network_folder import CONFIG_NAME
from utils.precision import has_fast_bf16
from utils.run_folder import get_logger


class Auditor:
    """A copy detector trained on the training images, and what it says of real ones.

    Attributes:
        detector: The network.
        detector_dir: Where it is kept.
        train: The training images and their embeddings (N, D).
        held_out: The same of real images.
    """

    def __init__(
        self,
        train: ImageSet,
        held_out: ImageSet,
        *,
        folder: Path,
        device: str,
        seed: int,
        quiet: bool = False,
    ):
        """Train it, or load what an earlier run trained on the same images in the same way.

        Args:
            train: The images that the generator was trained on.
            held_out: Real images that it was not trained on; those that were are left out.
            folder: Of the feature cache, where the detector is kept.
            device: Where to train.
            seed: Same seed, same verdict on a CPU.
            quiet: Whether to draw no progress bars but that of a training.
        """
        self._options, self._quiet = DetectorOptions(seed=seed), quiet
        train_images, held_out_images = self._read(train), self._read(held_out)
        self.detector_dir = folder / _detector_name(train_images.gray, device, seed=seed)
        self.detector = self._trained(train_images.gray, device)
        self.train = self._embedded(train_images)
        self.held_out = self._embedded(held_out_images)

    def audit(self, synthetic: ImageSet) -> Audit:
        """Compare every synthetic image with all training images."""
        images = self._embedded(self._read(synthetic))
        return audit(train=self.train, held_out=self.held_out, synthetic=images)

    def _read(self, images: ImageSet) -> AuditImages:
        records = images.dataset
        return read_images(
            images.read(lambda image: image, range(len(images)), largest_px=images.resolution),
            [record.file_name for record in records],
            resolution=self._options.resolution,
            patients=[record.patient_id for record in records],
            description=f"read {images.name} images",
            quiet=self._quiet,
        )

    def _embedded(self, images: AuditImages):
        options = {"desc": "embed images", "unit": "image", "disable": self._quiet}
        with tqdm(total=len(images), **options) as bar:
            return images, self.detector.embed(images.gray, progress=bar)

    def _trained(self, gray: np.ndarray, device: str) -> CopyDetector:
        """The detector: from its folder, or trained and put there."""
        if (self.detector_dir / CONFIG_NAME).is_file():
            try:
                return CopyDetector.load(self.detector_dir, device=device)
            except UserError as error:
                get_logger("cache").warning("%s; it is trained anew", error)
        detector = train_copy_detector(gray, self._options, device=device)
        detector.save(self.detector_dir)
        return detector


def training_facts(device: str, *, seed: int) -> list[object]:
    """What a detector hangs on beside the images."""
    kind = torch.device(device).type  # another device, another last bit
    return [FORMAT, kind, has_fast_bf16(kind), asdict(DetectorOptions(seed=seed))]


def _detector_name(gray: np.ndarray, device: str, *, seed: int) -> str:
    *facts, options = training_facts(device, seed=seed)
    facts = json.dumps([*facts, hash_images(gray), options])
    return f"copy_detector-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
