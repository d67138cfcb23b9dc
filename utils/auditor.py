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
    """A copy detector trained on the training images, and what it says of real ones."""

    def __init__(
        self, train: ImageSet, held_out: ImageSet, *, folder: Path, device: str, seed: int
    ):
        """Train it, or load what an earlier run trained on the same images in the same way.

        Args:
            train: The images that the generator was trained on.
            held_out: Real images that it was not trained on; those that were are left out.
            folder: Of the feature cache, where the detector is kept.
            device: Where to train.
            seed: Same seed, same verdict on a CPU.
        """
        self._options = DetectorOptions(seed=seed)
        train_images, held_out_images = self._read(train), self._read(held_out)
        self.detector = _detector(train_images.gray, self._options, folder=folder, device=device)
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
        )

    def _embedded(self, images: AuditImages):
        with tqdm(total=len(images), desc="embed images", unit="image") as bar:
            return images, self.detector.embed(images.gray, progress=bar)


def _detector(
    gray: np.ndarray, options: DetectorOptions, *, folder: Path, device: str
) -> CopyDetector:
    """The detector of these images and options: from the folder, or trained and put there."""
    kind = torch.device(device).type  # another device, another last bit
    facts = json.dumps([FORMAT, kind, has_fast_bf16(kind), hash_images(gray), asdict(options)])
    kept = folder / f"copy_detector-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    if (kept / CONFIG_NAME).is_file():
        try:
            return CopyDetector.load(kept, device=device)
        except UserError as error:
            get_logger("cache").warning("%s; it is trained anew", error)
    detector = train_copy_detector(gray, options, device=device)
    detector.save(kept)
    return detector
