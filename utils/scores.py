"""Scores as metrics.json holds them: value, interval, floor, counts, and what to know about them.

An entry has ``value`` (None if it cannot be computed; ``notes`` say why) and, where they apply,
``ci95``, ``std``, ``floor``, ``real`` (the real set's own value), ``direction`` (``lower``,
``higher``, or ``real``: best near the real set's own value), ``n_real``, ``n_synthetic``,
``notes``. Each function gives one entry over all images and one per label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils import metrics
from utils.classification_metrics import predicted_labels
from utils.classifier import Classifier
from utils.features import Features
from utils.image_sets import ImageSet

_TINY = np.finfo(np.float32).tiny
MIN_IMAGES_PER_SPLIT = 10  # an inception score over fewer images says little but their number

Entry = dict[str, object]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: N images and what the networks say of them.

    Attributes:
        images: The images.
        digests: (N, 16) uint8, hash of each image's pixels as its file holds them.
        features: Of the feature network; None without one.
        probabilities: (N, L) of the diagnosis classifier; None without one.
        embeddings: (N, D) of the image-text model; None without a ready one.
        reconstructed: Features of the images passed through the VAE; of the real side only.
    """

    images: ImageSet
    digests: np.ndarray
    features: Features | None = None
    probabilities: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    reconstructed: Features | None = None

    def count_equal_pixels(self, other: Side) -> int:
        """How many images of the other side have the pixels of one of this side."""
        known = set(map(bytes, self.digests))
        return sum(bytes(digest) in known for digest in other.digests)


def entry(
    value: float | None, *, direction: str, n_real: int, n_synthetic: int, **more: object
) -> Entry:
    """One score; whatever is None or an empty list is left out."""
    found = {key: item for key, item in more.items() if item is not None and item != []}
    counts = {"direction": direction, "n_real": n_real, "n_synthetic": n_synthetic}
    return {"value": value, **found, **counts}


def absent(direction: str, n_real: int, n_synthetic: int, why: str) -> Entry:
    """A score that cannot be computed, with the reason."""
    return entry(None, direction=direction, n_real=n_real, n_synthetic=n_synthetic, notes=[why])


def score_inception(
    real: Side,
    synthetic: Side,
    classifier: Classifier | None,
    *,
    labels: Sequence[str],
    splits: int,
    seed: int,
) -> dict[str, tuple[Entry, dict[str, Entry]]]:
    """Inception score over the feature network's classes and, with a classifier, over diagnoses.

    Args:
        real: The real images with what the networks say of them.
        synthetic: The synthetic ones.
        classifier: The diagnosis classifier, or None; without exclusive classes it has no score.
        labels: Labels to give an entry each.
        splits: Parts to average over; fewer where they would have under 10 images.
        seed: Of the shuffle before the split.

    Returns:
        Name -> entry over all images, and label -> entry.
    """
    found = {}
    on_classifier = classifier is not None and not classifier.multi_label
    if real.features is not None and (real.features.logits is not None or not on_classifier):
        logits = (real.features.logits, synthetic.features.logits)
        found["inception_score"] = logits, ""
    if on_classifier:
        logits = tuple(np.log(np.maximum(side.probabilities, _TINY)) for side in (real, synthetic))
        note = "over the diagnosis classifier's classes: no published figure compares"
        found["inception_score_on_classifier"] = logits, note

    def members(label: str) -> tuple[np.ndarray, np.ndarray]:
        return real.images.having(label), synthetic.images.having(label)

    entries = {}
    for name, ((own, drawn), note) in found.items():
        if drawn is None:
            why = "the network has no classes, or its labels may occur together"
            counts = (len(real.images), len(synthetic.images))
            entries[name] = absent("higher", *counts, why), {}
            continue
        overall = inception_entry(own, drawn, splits=splits, seed=seed)
        if note:
            overall["notes"] = [note, *overall.get("notes", [])]
        per_label = {
            label: inception_entry(own[i], drawn[j], splits=splits, seed=seed)
            for label in labels
            for i, j in [members(label)]
        }
        entries[name] = overall, per_label
    return entries


def inception_entry(real: np.ndarray, synthetic: np.ndarray, *, splits: int, seed: int) -> Entry:
    """Inception score of the synthetic logits (N_s, K), and the real set's own (N_r, K)."""
    counts = {"n_real": len(real), "n_synthetic": len(synthetic)}
    if not len(synthetic):
        return absent("higher", *counts.values(), "no synthetic image")
    used = {key: max(1, min(splits, n // MIN_IMAGES_PER_SPLIT)) for key, n in counts.items()}
    notes = [
        f"{key.removeprefix('n_')} images: {used[key]} split(s) instead of {splits}, as they are "
        f"only {n}; scores of other N or splits do not compare"
        for key, n in counts.items()
        if used[key] < splits
    ]
    value, std = metrics.inception_score(synthetic, splits=used["n_synthetic"], seed=seed)
    own = None
    if len(real):
        own, _ = metrics.inception_score(real, splits=used["n_real"], seed=seed)
    more = {"std": std, "real": own, "splits": used["n_synthetic"], "notes": notes}
    return entry(value, direction="higher", **counts, **more)


def score_agreement(
    real: Side, synthetic: Side, classifier: Classifier, *, labels: Sequence[str]
) -> tuple[Entry, dict[str, Entry]]:
    """Share of images in which the classifier recognises the asked label.

    Overall it is the mean over the labels, so that a frequent label does not rule it. Of a
    multi-class classifier the recognised label is the likeliest; of a multi-label one every label
    of probability 0.5 or more.

    Args:
        real: The real images with the classifier's probabilities.
        synthetic: The synthetic ones.
        classifier: The one that gave them.
        labels: Labels to give an entry each.
    """
    hits = {
        side.images.name: recognised(side.images, side.probabilities, classifier)
        for side in (real, synthetic)
    }
    per_label = {name: _agreement_entry(name, hits, real, synthetic) for name in labels}
    rows = np.array(list(hits["synthetic"].values()), np.int64).reshape(-1, 2)
    unknown = [name for name in labels if name not in classifier.labels]
    if not len(rows):
        counts = (len(real.images), len(synthetic.images))
        why = "no synthetic image has a label that the classifier knows"
        return absent("higher", *counts, why), per_label
    overall = entry(
        _mean_share(hits["synthetic"]),
        direction="higher",
        n_real=sum(total for _, total in hits["real"].values()),
        n_synthetic=int(rows[:, 1].sum()),
        ci95=metrics.mean_share_interval(rows[:, 0], rows[:, 1]),
        real=_mean_share(hits["real"]),
        average="macro over labels",
        notes=[f"left out, unknown to the classifier: {', '.join(unknown)}"] if unknown else [],
    )
    return overall, per_label


def recognised(
    images: ImageSet, probabilities: np.ndarray, classifier: Classifier
) -> dict[str, tuple[int, int]]:
    """Label -> (images in which it is recognised, images that have it), of labels that occur.

    Args:
        images: N images with labels.
        probabilities: (N, L).
        classifier: The one that gave them.
    """
    said = predicted_labels(probabilities, multi_label=classifier.multi_label)
    found = {}
    for column, label in enumerate(classifier.labels):
        members = images.having(label)
        if len(members):
            found[label] = (int(said[members, column].sum()), len(members))
    return found


def _agreement_entry(
    label: str, hits: dict[str, dict[str, tuple[int, int]]], real: Side, synthetic: Side
) -> Entry:
    """Agreement on one label."""
    (right, total), (right_real, total_real) = (
        hits[side].get(label, (0, 0)) for side in ("synthetic", "real")
    )
    counts = (len(real.images.having(label)), len(synthetic.images.having(label)))
    if not total:
        why = "the classifier does not know this label" if counts[1] else "no synthetic image"
        return absent("higher", *counts, why)
    return entry(
        right / total,
        direction="higher",
        n_real=counts[0],
        n_synthetic=counts[1],
        ci95=metrics.wilson_interval(right, total),
        real=right_real / total_real if total_real else None,
        real_ci95=metrics.wilson_interval(right_real, total_real),
    )


def _mean_share(hits: dict[str, tuple[int, int]]) -> float | None:
    return float(np.mean([right / total for right, total in hits.values()])) if hits else None
