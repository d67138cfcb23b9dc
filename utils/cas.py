"""Classification accuracy score (CAS): a classifier trained on synthetic images, tested on real.

Ravuri and Vinyals 2019 (https://arxiv.org/abs/1905.10887). What a diagnosis classifier can learn
from the synthetic set, beside what the same recipe learns from as many real images. Entries as in
``utils.scores``. Shapes: N images, L labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from utils.classification_scores import MACRO
from utils.cli import UserError
from utils.dataset import Record
from utils.diagnosis_recipe import Recipe, Scores
from utils.label_subsets import draw_stratified
from utils.patient_overlap import without_patients_of
from utils.scores import Entry, absent, entry

MAX_INPUT_PX = 128  # more changes little and costs its square
MIN_IMAGES_PER_LABEL = 4
MIN_LABELS = 2


def score_cas(
    real: Sequence[Record],
    synthetic: Sequence[Record],
    labels: Sequence[str],
    *,
    resolution: int,
    resize_mode: str,
    train: Sequence[Record] | None = None,
    num_workers: int = 0,
    device: str = "cpu",
    seed: int = 0,
    num_steps: int | None = None,
    references: dict | None = None,
) -> tuple[Entry, dict[str, Entry]]:
    """CAS of the synthetic set, of all labels and per label.

    The value is the share of real images named right; where labels may occur together the macro
    AUROC, as an image with one of two labels right is neither right nor wrong. Per label it is
    the sensitivity. ``real`` is the same recipe on as many real training images.

    Args:
        real: Images to test on.
        synthetic: Images to train on.
        labels: Labels to give an entry each.
        resolution: Of the evaluation in pixels; the classifier takes at most 128.
        resize_mode: See ``utils.images.resize``; one that draws nothing.
        train: Real training images for ``real``; those whose patients are in the real set are
            left out.
        num_workers: Threads that read.
        device: Where to train.
        seed: Same seed, same value on the CPU.
        num_steps: Training steps, at most; None takes what the number of images asks for.
    """
    counts = {"n_real": len(real), "n_synthetic": len(synthetic)}
    common, notes = common_labels(real, synthetic)
    parts = [_with_labels(side, common) for side in (real, synthetic)]
    why = _why_not(common, parts[1])
    if why:
        return absent("higher", *counts.values(), "; ".join([why, *notes])), {}
    recipe = Recipe(
        test=parts[0],
        labels=common,
        multi_label=any(len(set(r.labels) & set(common)) > 1 for part in parts for r in part),
        resolution=min(resolution, MAX_INPUT_PX),
        resize_mode=resize_mode,
        num_workers=num_workers,
        device=device,
        seed=seed,
        num_steps=num_steps,
    )
    try:
        drawn = recipe.score(parts[1], name="synthetic")
    except UserError as error:
        return absent("higher", *counts.values(), f"the synthetic set: {error}"), {}
    references = {} if references is None else references
    key = (common, recipe.multi_label, len(parts[1]))
    if key not in references:
        references[key] = _real_scores(recipe, real, train, count=len(parts[1]))
    own, own_n, why_not = references[key]
    counts = {"n_real": len(parts[0]), "n_synthetic": len(parts[1])}
    overall = _overall(recipe, drawn, own, real_n=own_n, notes=notes + why_not, **counts)
    per_label = {label: _of_label(label, parts, drawn, own) for label in labels if label in common}
    return overall, per_label


def common_labels(
    real: Sequence[Record], synthetic: Sequence[Record]
) -> tuple[tuple[str, ...], list[str]]:
    """Labels to learn and test, sorted, and which ones are left out and why, in sentences."""
    sides = {
        name: {label for record in records for label in record.labels}
        for name, records in (("real", real), ("synthetic", synthetic))
    }
    common = sides["real"] & sides["synthetic"]
    notes = [
        f"left out, only the {name} set has them: {', '.join(sorted(found - common))}"
        for name, found in sides.items()
        if found - common
    ]
    counts = Counter(label for record in synthetic for label in record.labels)
    rare = {label for label in common if counts[label] < MIN_IMAGES_PER_LABEL}
    if rare:
        named = ", ".join(f"{label} ({counts[label]})" for label in sorted(rare))
        notes.append(
            f"left out, fewer than {MIN_IMAGES_PER_LABEL} synthetic images to train on: {named}"
        )
    return tuple(sorted(common - rare)), notes


def _with_labels(records: Sequence[Record], labels: Sequence[str]) -> list[Record]:
    return [record for record in records if not set(labels).isdisjoint(record.labels)]


def _why_not(labels: Sequence[str], synthetic: Sequence[Record]) -> str:
    """Why no classifier can be trained on these images; empty if one can."""
    if len(labels) < MIN_LABELS:
        return f"the sets have {len(labels)} label(s) in common: {MIN_LABELS} are needed"
    counts = Counter(label for record in synthetic for label in record.labels)
    few = [f"{name} ({counts[name]})" for name in labels if counts[name] < MIN_IMAGES_PER_LABEL]
    if few:
        return f"fewer than {MIN_IMAGES_PER_LABEL} images to train on for {', '.join(few)}"
    return ""


def _real_scores(
    recipe: Recipe, real: Sequence[Record], train: Sequence[Record] | None, *, count: int
) -> tuple[Scores, int | None, list[str]]:
    """The recipe on real training images; their number, and what to know about it."""
    if train is None:
        return {}, None, ["no real training images were given, so there is no real value"]
    unseen, notes = without_patients_of(real, train)
    usable = _with_labels(unseen, recipe.labels)
    chosen = [usable[i] for i in draw_stratified(usable, count, seed=recipe.seed)]
    why = _why_not(recipe.labels, chosen)
    if why:
        return {}, None, [*notes, f"no real value: in the real training images, {why}"]
    try:
        scores = recipe.score(chosen, name="real")
    except UserError as error:
        return {}, None, [*notes, f"no real value: in the real training images, {error}"]
    if len(chosen) < count:
        notes.append(
            f"the real value is of {len(chosen)} training images, the synthetic of {count}: more "
            "images alone make a better classifier"
        )
    return scores, len(chosen), notes


def _overall(
    recipe: Recipe,
    drawn: Scores,
    own: Scores,
    *,
    real_n: int | None,
    notes: list[str],
    n_real: int,
    n_synthetic: int,
) -> Entry:
    """The entry over all labels."""
    measure = "auroc" if recipe.multi_label else "accuracy"
    more = {
        name: _value(drawn, MACRO, name)
        for name in ("balanced_accuracy", "auroc")
        if name != measure
    }
    return entry(
        _value(drawn, MACRO, measure),
        direction="higher",
        n_real=n_real,
        n_synthetic=n_synthetic,
        ci95=_interval(drawn, MACRO, measure),
        real=_value(own, MACRO, measure),
        real_ci95=_interval(own, MACRO, measure),
        real_n=real_n,
        measure=measure,
        **more,
        **{f"real_{name}": _value(own, MACRO, name) for name in more},
        notes=notes,
    )


def _of_label(label: str, parts: Sequence[Sequence[Record]], drawn: Scores, own: Scores) -> Entry:
    """The entry of one label: the share of its real images that are recognised."""
    counts = [sum(label in record.labels for record in part) for part in parts]
    return entry(
        _value(drawn, label, "sensitivity"),
        direction="higher",
        n_real=counts[0],
        n_synthetic=counts[1],
        ci95=_interval(drawn, label, "sensitivity"),
        real=_value(own, label, "sensitivity"),
        real_ci95=_interval(own, label, "sensitivity"),
        measure="sensitivity",
    )


def _value(scores: Scores, target: str, metric: str) -> float | None:
    score = scores.get((target, metric))
    return None if score is None or np.isnan(score.value) else score.value


def _interval(scores: Scores, target: str, metric: str) -> tuple[float, float] | None:
    score = scores.get((target, metric))
    return None if score is None or np.isnan(score.low) else (score.low, score.high)
