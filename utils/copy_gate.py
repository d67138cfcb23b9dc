"""Whether a drawn image is a copy of a training image, asked while a set is being drawn.

Shapes: N training images, D values of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from utils.audit_images import nearest
from utils.auditor import Auditor
from utils.cli import UserError
from utils.copy_audit import copy_threshold, usable_held_out
from utils.copy_detector import CopyDetector
from utils.images import pixel_hash
from utils.run_folder import write_bytes

_ABOUT = (
    "embeddings of training images and hashes of their pixels; images cannot be decoded from them, "
    "but they tell whether an image is among them: as confidential as the images. May be deleted."
)


class CopyGate:
    """The audit's verdict (`utils.copy_audit`), image by image.

    Attributes:
        facts: What the verdict hangs on, for options and cards; ``threshold`` is the cosine
            similarity above which an image is a copy.
    """

    def __init__(
        self,
        detector: CopyDetector,
        train: np.ndarray,
        hashes: np.ndarray,
        facts: Mapping[str, object],
    ) -> None:
        """Take over what `measure` or `load` found.

        Args:
            detector: Gives the embeddings.
            train: Embeddings of the training images (N, D) float32.
            hashes: Their `pixel_hash`, the lower of image and mirror image, (N, 16) uint8.
            facts: See above.
        """
        self.facts = dict(facts)
        self._detector, self._train, self._hashes = detector, train, hashes
        self._known = {row.tobytes().hex() for row in hashes}

    @classmethod
    def measure(cls, auditor: Auditor) -> CopyGate:
        """Set the threshold by real images that the model was not trained on.

        Raises:
            UserError: If none of them can set it.
        """
        train_images, train = auditor.train
        held_out_images, vectors = auditor.held_out
        usable, left_out = usable_held_out(train_images, held_out_images)
        _, similarities = nearest(vectors[usable], train)
        threshold = copy_threshold(similarities)
        known = train_images.mirror_free_hashes()
        if threshold is None:
            if set(held_out_images.mirror_free_hashes()) <= set(known):
                raise UserError(same_images())
            reasons = (f"{len(which)} {why}" for why, which in left_out.items() if len(which))
            raise UserError(
                f"--real_dir: none of its {len(vectors)} images can tell how near an unseen image "
                f"is: {'; '.join(reasons)}"
            )
        facts = {
            "detector_sha256": auditor.detector.sha256,
            "threshold": threshold,
            "num_train": len(train),
            "num_held_out": len(usable),
            "held_out_share": float((similarities > threshold).mean()),
        }
        hashes = np.frombuffer(bytes.fromhex("".join(known)), np.uint8).reshape(len(known), -1)
        return cls(auditor.detector, train, hashes, facts)

    def save(self, path: Path, detector_dir: Path) -> None:
        """Write a safetensors file beside the folder in which the detector is kept."""
        assert path.parent == detector_dir.parent, "a copied cache folder would lose the detector"
        about = {
            "about": _ABOUT,
            "detector": detector_dir.name,
            "facts": json.dumps(self.facts),
        }
        write_bytes(path, save({"train": self._train, "hashes": self._hashes}, about))

    @classmethod
    def load(cls, path: Path, *, device: str) -> CopyGate:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If it is not there, or its detector is not.
            UserError: If it is damaged, or its detector is or was trained anew.
        """
        if not path.is_file():
            raise FileNotFoundError(path)
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                train, hashes = file.get_tensor("train"), file.get_tensor("hashes")
            name, facts = about["detector"], json.loads(about["facts"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path}: damaged: {error}") from error
        detector = CopyDetector.load(path.parent / name, device=device)
        if detector.sha256 != facts["detector_sha256"]:
            raise UserError(f"{path}: made with another detector than {name} holds now")
        return cls(detector, train, hashes, facts)

    def examine(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Compare images with all training images.

        On a CPU the answer to an image does not depend on those beside it; the last bits of its
        embedding do on the number of torch's threads.

        Args:
            pictures: M images, mode ``L`` or ``RGB``.

        Returns:
            Similarity to the nearest training image (M,) float32 in [-1, 1]; whether it is a
            copy (M,) bool: above the threshold, or equal pixel for pixel, mirrored or not.
        """
        _, similarities = nearest(self._detector.embed(pictures), self._train)
        equal = [
            min(pixel_hash(picture), pixel_hash(ImageOps.mirror(picture))) in self._known
            for picture in pictures
        ]
        above = similarities > self.facts["threshold"]
        return np.clip(similarities, -1, 1), above | np.array(equal, bool)


def same_images() -> str:
    """What to say of held-out images that are the training images."""
    return (
        "--real_dir: the same images as --train_dir, which cannot tell how near an image is that "
        "the model has not seen: give others, or a data set with a column split"
    )
