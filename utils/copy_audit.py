"""How many synthetic images are copies of training images: pure functions over embeddings.

After Dar et al. 2024 (https://arxiv.org/abs/2402.01054): an image is a copy if it is more similar
to some training image than 95 % of the held-out real images are. Networks are in
``utils.copy_detector``. Shapes: N_t training, N_h held-out, N_s synthetic images, D values of an
embedding of unit length; similarity is the cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from utils.audit_images import AuditImages, nearest, perceptual_duplicates, perceptual_repeats
from utils.metrics import wilson_interval
from utils.perceptual_hash import MAX_DISTANCE, NUM_BITS, is_mirrored

QUANTILE = 0.95  # of the held-out similarities
MIN_HELD_OUT = 19  # with fewer the quantile with its correction is beyond the largest
_MAX_LISTED = 5


COLUMNS = (
    *("synthetic", "train", "similarity", "threshold"),
    *("copy", "certain", "mirrored", "exact", "perceptual"),
)

Embedded = tuple[AuditImages, np.ndarray]  # images and their embeddings (N, D)


@dataclass(frozen=True)
class Audit:
    """What was found; arrays are over the N_s synthetic images unless said otherwise.

    Attributes:
        names: Of the synthetic images.
        train_names: (N_t,) of the training images.
        neighbours: Index of the nearest training image; of an exact duplicate its original.
        similarities: To that image, in [-1, 1].
        held_out: (n,) similarity of each held-out image to its nearest training image.
        threshold: Above it an image is a copy; None without held-out images.
        mirrored: Whether it resembles its neighbour more when mirrored.
        exact: Whether it equals a training image pixel for pixel, mirrored or not.
        perceptual: Whether its hash is that of a training image but for ``MAX_DISTANCE`` bits.
        repeated: Whether it equals an earlier synthetic image pixel for pixel, mirrored or not.
        repeated_perceptually: The same by its perceptual hash.
        notes: What limits the audit.
    """

    names: tuple[str, ...]
    train_names: tuple[str, ...]
    neighbours: np.ndarray
    similarities: np.ndarray
    held_out: np.ndarray
    threshold: float | None
    mirrored: np.ndarray
    exact: np.ndarray
    perceptual: np.ndarray
    repeated: np.ndarray
    repeated_perceptually: np.ndarray
    notes: tuple[str, ...]

    @cached_property
    def copies(self) -> np.ndarray:
        """(N_s,) bool: above the threshold, or equal to a training image."""
        above = self.similarities > (math.inf if self.threshold is None else self.threshold)
        return above | self.exact

    @cached_property
    def certain(self) -> np.ndarray:
        """(N_s,) bool: more similar than every held-out image, or equal to a training image."""
        return (self.similarities > self.held_out.max(initial=-1)) & self.copies | self.exact

    @property
    def share(self) -> float | None:
        """Share of copies in [0, 1]; None if it cannot be told."""
        if self.threshold is None or not self.names:
            return None
        return float(self.copies.mean())

    def entry(self) -> dict[str, object]:
        """The score as metrics.json holds it; ``floor`` is the held-out images' own share."""
        known = self.share is not None
        copies = self.copies
        found = {
            "value": self.share,
            "ci95": wilson_interval(int(copies.sum()), len(copies)) if known else None,
            "floor": float((self.held_out > self.threshold).mean()) if known else None,
            "direction": "lower",
            "n_real": len(self.train_names),
            "n_synthetic": len(self.names),
            "n_held_out": len(self.held_out),
            "threshold": self.threshold,
            "num_copies": int(copies.sum()) if known else None,
            "num_certain": int(self.certain.sum()) if known else None,
            "num_mirrored": int((copies & self.mirrored).sum()) if known else None,
            "num_sources": len(set(self.neighbours[copies].tolist())) if known else None,
            "exact_duplicates": int(self.exact.sum()),
            "perceptual_duplicates": int(self.perceptual.sum()),
            "exact_repeats": int(self.repeated.sum()),
            "perceptual_repeats": int(self.repeated_perceptually.sum()),
            "notes": list(self.notes) or None,
        }
        return {key: item for key, item in found.items() if item is not None or key == "value"}

    def rows(self) -> list[dict[str, object]]:
        """One row for each copy or duplicate, the most similar first."""
        listed = self.copies | self.perceptual
        return [self.row(index) for index in self.by_similarity() if listed[index]]

    def row(self, index: int) -> dict[str, object]:
        """A synthetic image with its nearest training image."""
        return {
            "synthetic": self.names[index],
            "train": self.train_names[self.neighbours[index]],
            "similarity": float(self.similarities[index]),
            "threshold": self.threshold,
            "copy": bool(self.copies[index]),
            "certain": bool(self.certain[index]),
            "mirrored": bool(self.mirrored[index]),
            "exact": bool(self.exact[index]),
            "perceptual": bool(self.perceptual[index]),
        }

    def by_similarity(self) -> list[int]:
        """Indices of the synthetic images, the most similar first, ties in their order."""
        return np.argsort(-self.similarities, kind="stable").tolist()


def copy_threshold(similarities: np.ndarray) -> float | None:
    """The 95th percentile of the held-out similarities, corrected for their number.

    The ``ceil(0.95 (n + 1))``-th smallest: at most 5 % of these lie strictly above it, and a new
    image from where they came from does so with a probability of at most 5 % (split conformal
    prediction, Vovk et al. 2005; Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511).
    With fewer than ``MIN_HELD_OUT`` values it is the largest, and the 5 % do not hold.

    Args:
        similarities: (n,) of held-out images to their nearest training image.

    Returns:
        The threshold; None for n = 0.
    """
    count = len(similarities)
    if not count:
        return None
    rank = min(count, math.ceil(round(QUANTILE * (count + 1), 6)))
    return float(np.sort(similarities)[rank - 1])


def usable_held_out(
    train: AuditImages, held_out: AuditImages
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Held-out images that can set a threshold: of other patients, and no training image again.

    Returns:
        Their indices, and the indices left out by reason.
    """
    patients = set(train.patients) - {None, ""}
    known = set(train.mirror_free_hashes())
    same_patient = np.array([patient in patients for patient in held_out.patients], bool)
    same_pixels = np.array([key in known for key in held_out.mirror_free_hashes()], bool)
    alike = perceptual_duplicates(held_out.thumbnails, train.thumbnails)
    left_out = {
        "are of a patient of the training images": same_patient,
        "equal a training image pixel for pixel": same_pixels & ~same_patient,
        f"look like a training image ({MAX_DISTANCE} of {NUM_BITS} hash bits differ at most)": alike
        & ~same_patient
        & ~same_pixels,
    }
    usable = np.flatnonzero(~(same_patient | same_pixels | alike))
    return usable, {reason: np.flatnonzero(which) for reason, which in left_out.items()}


def audit(*, train: Embedded, held_out: Embedded, synthetic: Embedded) -> Audit:
    """Compare every synthetic image with all training images.

    Args:
        train: The training images and their embeddings (N_t, D), N_t >= 1.
        held_out: Real images that were not trained on; those that were after all are left out.
        synthetic: The images to judge.
    """
    (train_images, train_vectors), (images, vectors) = train, synthetic
    usable, left_out = usable_held_out(train_images, held_out[0])
    _, own = nearest(held_out[1][usable], train_vectors)
    neighbours, similarities = nearest(vectors, train_vectors)

    originals, keys = train_images.first_of_each(), images.mirror_free_hashes()
    found = np.array([originals.get(key, -1) for key in keys], np.int64)
    exact = found >= 0
    neighbours = np.where(exact, found, neighbours)
    mirrored = is_mirrored(images.thumbnails, train_images.thumbnails[neighbours])
    for index in np.flatnonzero(exact):
        mirrored[index] = images.hashes[index] != train_images.hashes[found[index]]
    first = images.first_of_each()
    return Audit(
        names=images.names,
        train_names=train_images.names,
        neighbours=neighbours,
        similarities=np.clip(similarities, -1, 1),
        held_out=np.clip(own, -1, 1),
        threshold=copy_threshold(np.clip(own, -1, 1)),
        mirrored=mirrored,
        exact=exact,
        perceptual=perceptual_duplicates(images.thumbnails, train_images.thumbnails),
        repeated=np.array([first[key] < index for index, key in enumerate(keys)], bool),
        repeated_perceptually=perceptual_repeats(images.thumbnails),
        notes=tuple(_notes(held_out[0], len(usable), left_out)),
    )


def _notes(held_out: AuditImages, num_used: int, left_out: dict[str, np.ndarray]) -> list[str]:
    """What limits the threshold."""
    notes = []
    for reason, indices in left_out.items():
        if len(indices):
            names = ", ".join(held_out.names[i] for i in indices[:_MAX_LISTED])
            more = f" and {len(indices) - _MAX_LISTED} more" if len(indices) > _MAX_LISTED else ""
            notes.append(
                f"{len(indices)} held-out image(s) {reason} and do not count for the threshold: "
                f"{names}{more}"
            )
    if not num_used:
        notes.append(
            "no held-out image is left, so there is no threshold and no share of copies; exact and "
            "perceptual duplicates are counted all the same"
        )
    elif num_used < MIN_HELD_OUT:
        notes.append(
            f"{num_used} held-out images: the threshold is the highest of their similarities, and "
            f"about 1 in {num_used + 1} new images would lie above it; "
            f"{MIN_HELD_OUT} or more are needed for 5 %"
        )
    return notes
