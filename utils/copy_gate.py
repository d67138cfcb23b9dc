"""Whether a drawn image is a copy of a training image, asked while a set is being drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from utils.audit_images import nearest
from utils.auditor import Auditor
from utils.cli import UserError
from utils.copy_audit import copy_threshold, usable_held_out
from utils.images import pixel_hash


class CopyGate:
    """The audit's verdict (`utils.copy_audit`), image by image.

    Attributes:
        threshold: Cosine similarity above which an image is a copy.
        facts: What the verdict hangs on, for options and cards.
    """

    def __init__(self, auditor: Auditor) -> None:
        """Set the threshold by real images that the model was not trained on.

        Raises:
            UserError: If none of them can set it.
        """
        train_images, self._train = auditor.train
        held_out_images, vectors = auditor.held_out
        usable, left_out = usable_held_out(train_images, held_out_images)
        _, similarities = nearest(vectors[usable], self._train)
        threshold = copy_threshold(similarities)
        if threshold is None:
            reasons = "; ".join(f"{len(which)} {why}" for why, which in left_out.items())
            raise UserError(
                f"--real_dir: none of its {len(vectors)} images can tell how near an unseen image "
                f"is: {reasons}"
            )
        self.threshold = threshold
        self._detector = auditor.detector
        self._known = set(train_images.mirror_free_hashes())
        self.facts = {
            "detector_sha256": self._detector.sha256,
            "threshold": threshold,
            "num_train": len(self._train),
            "num_held_out": len(usable),
            "held_out_share": float((similarities > threshold).mean()),
        }

    def examine(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Compare images with all training images.

        Args:
            pictures: N images, mode ``L`` or ``RGB``.

        Returns:
            Similarity to the nearest training image (N,) float32 in [-1, 1]; whether it is a
            copy (N,) bool: above the threshold, or equal pixel for pixel, mirrored or not.
        """
        _, similarities = nearest(self._detector.embed(pictures), self._train)
        equal = [
            min(pixel_hash(picture), pixel_hash(ImageOps.mirror(picture))) in self._known
            for picture in pictures
        ]
        return np.clip(similarities, -1, 1), (similarities > self.threshold) | np.array(equal, bool)
