"""Scores as metrics.json holds them: value, interval, floor, counts, and what to know about them.

An entry has ``value`` (None if it cannot be computed; ``notes`` say why) and, where they apply,
``ci95``, ``std``, ``floor``, ``real`` (the real set's own value), ``direction`` (``lower``,
``higher``, or ``real``: best near the real set's own value), ``n_real``, ``n_synthetic``,
``notes``. Each function gives one entry over all images and one per label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from utils import metrics
from utils.classification_metrics import predicted_labels
from utils.classifier import Classifier
from utils.features import Features
from utils.image_sets import ImageSet, Measured

MIN_IMAGES_PER_SPLIT = 10  # an inception score over fewer images says little but their number

Entry = dict[str, object]
Side = tuple[ImageSet, Measured]


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


def score_frechet(
    real: Side, synthetic: Side, labels: Sequence[str], *, num_resamples: int, seed: int
) -> tuple[Entry, dict[str, Entry]]:
    """Fréchet distance of the features, of all images and per label.

    Args:
        real: The real images with their features.
        synthetic: The synthetic ones.
        labels: Labels to give an entry each.
        num_resamples: Of the bootstrap; under 2 there is no interval.
        seed: Of the bootstrap and of the halves of the floor.
    """
    (real_set, real_seen), (synthetic_set, synthetic_seen) = real, synthetic
    patients = real_set.patients()

    def of(real_index: np.ndarray, synthetic_index: np.ndarray) -> Entry:
        return frechet_entry(
            real_seen.features.pool[real_index],
            synthetic_seen.features.pool[synthetic_index],
            patients[real_index],
            num_resamples=num_resamples,
            seed=seed,
        )

    overall = of(np.arange(len(real_set)), np.arange(len(synthetic_set)))
    known = set(real_seen.hashes)
    copies = sum(name in known for name in synthetic_seen.hashes)
    if copies:
        overall.setdefault("notes", []).append(
            f"{copies} synthetic image(s) equal a real image of this comparison pixel for pixel: "
            "they lower the distance and are no new data"
        )
    return overall, {name: of(real_set.having(name), synthetic_set.having(name)) for name in labels}


def frechet_entry(
    real: np.ndarray, synthetic: np.ndarray, patients: np.ndarray, *, num_resamples: int, seed: int
) -> Entry:
    """Fréchet distance with its interval, its floor and what to know about it.

    Args:
        real: (N_r, D).
        synthetic: (N_s, D).
        patients: (N_r,) the patient of each real image.
        num_resamples: Of the bootstrap; under 2 there is no interval.
        seed: Of the bootstrap and of the halves of the floor.
    """
    counts = {"n_real": len(real), "n_synthetic": len(synthetic)}
    if min(counts.values()) < metrics.MIN_IMAGES:
        why = f"{len(real)} real and {len(synthetic)} synthetic image(s): two of each are needed"
        return absent("lower", *counts.values(), why)
    sets = {"real": real, "synthetic": synthetic}
    interval = floor = floor_n = None
    notes = []
    if num_resamples >= 2:
        options = {"real_groups": patients, "num_resamples": num_resamples, "seed": seed}
        with tqdm(total=num_resamples, desc="fid resamples", leave=False) as bar:
            interval = metrics.frechet_interval(**sets, **options, progress=bar.update)
    halves = metrics.split_halves(patients, seed=seed)
    if min(map(len, halves)) >= metrics.MIN_IMAGES:
        floor = metrics.frechet_distance(real=real[halves[0]], synthetic=real[halves[1]])
        floor_n = [len(half) for half in halves]
    else:
        notes.append("no floor: halved by patient, the real set does not give twice two images")
    if min(counts.values()) < real.shape[1]:
        notes.append(
            f"{min(counts.values())} images in {real.shape[1]} dimensions: with so few the "
            "distance is too large by an unknown amount; compare at equal N, and with the floor"
        )
    value = metrics.frechet_distance(**sets)
    more = {"ci95": interval, "floor": floor, "floor_n": floor_n, "notes": notes}
    return entry(value, direction="lower", **counts, **more)


def score_inception(
    real: Features, synthetic: Features, *, splits: int, seed: int, on_classifier: bool
) -> Entry:
    """Inception score of the synthetic set, and the real set's own.

    Args:
        real: Of the real images.
        synthetic: Of the synthetic images.
        splits: Parts to average over; fewer where they would have under 10 images.
        seed: Of the shuffle before the split.
        on_classifier: Whether the classes are diagnoses.
    """
    counts = {"n_real": len(real.pool), "n_synthetic": len(synthetic.pool)}
    if synthetic.logits is None:
        why = "this classifier's labels may occur together, so they are no classes to choose from"
        return absent("higher", *counts.values(), why)
    used = {key: max(1, min(splits, n // MIN_IMAGES_PER_SPLIT)) for key, n in counts.items()}
    notes = [
        f"{key.removeprefix('n_')} images: {used[key]} split(s) instead of {splits}, as they are "
        f"only {n}; scores of other N or splits do not compare"
        for key, n in counts.items()
        if used[key] < splits
    ]
    if on_classifier:
        notes.append("over the diagnosis classifier's classes: no published figure compares")
    value, std = metrics.inception_score(synthetic.logits, splits=used["n_synthetic"], seed=seed)
    own, _ = metrics.inception_score(real.logits, splits=used["n_real"], seed=seed)
    more = {"std": std, "real": own, "splits": used["n_synthetic"], "notes": notes}
    return entry(value, direction="higher", **counts, **more)


def score_agreement(
    real: Side, synthetic: Side, classifier: Classifier, labels: Sequence[str], *, seed: int
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
        seed: Of the overall interval.
    """
    hits = {
        images.name: recognised(images, seen.probabilities, classifier)
        for images, seen in (real, synthetic)
    }
    per_label = {name: _agreement_entry(name, hits, real, synthetic) for name in labels}
    rows = np.array(list(hits["synthetic"].values()), np.int64).reshape(-1, 2)
    unknown = [name for name in labels if name not in classifier.labels]
    overall = entry(
        _mean_share(hits["synthetic"]),
        direction="higher",
        n_real=sum(total for _, total in hits["real"].values()),
        n_synthetic=int(rows[:, 1].sum()),
        ci95=metrics.mean_share_interval(rows[:, 0], rows[:, 1], seed=seed),
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
    counts = (len(real[0].having(label)), len(synthetic[0].having(label)))
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
