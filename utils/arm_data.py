"""The images that the arms of a sweep draw from, and what each run draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utils import arms as kinds
from utils.classifier_training import Examples
from utils.dataset import Record
from utils.dataset_split import assign_splits
from utils.gray_images import GrayImages
from utils.label_subsets import draw_stratified, labelled_subset
from utils.patient_division import VAL_SHARE, patients_of
from utils.sweep_plan import RunKey
from utils.synthetic_ratios import num_synthetic


@dataclass(frozen=True)
class Pools:
    """All images of a sweep but those to test on.

    Attributes:
        labels: L names, the order of the targets.
        train: Labelled real training images; likewise ``val`` of other patients.
        val: See above.
        synthetic: Synthetic images with labels, or None.
        unlabeled: Real images whose labels are unknown or hidden, or None.
    """

    labels: tuple[str, ...]
    train: Examples
    val: Examples
    synthetic: Examples | None = None
    unlabeled: GrayImages | None = None


@dataclass(frozen=True)
class Selection:
    """Places of the images that one run learns from, in the pools of the same names.

    Attributes:
        real: Labelled real training images.
        val: Labelled real validation images.
        synthetic: Synthetic training images.
        synthetic_val: Synthetic validation images, of a run without real ones.
    """

    real: list[int]
    val: list[int]
    synthetic: list[int]
    synthetic_val: list[int]


def select(key: RunKey, pools: Pools) -> Selection:
    """What a run learns from.

    The label share counts for validation patients too: who has few labels has few to validate on.
    A run that starts from pre-training on synthetic images has seen them there, and goes on with
    real ones alone.
    """
    real, val, synthetic, synthetic_val = [], [], [], []
    if kinds.uses_real(key.arm):
        share = {"share": key.label_share, "seed": key.seed}
        real = labelled_subset(pools.train.images.records, pools.labels, **share)
        val = labelled_subset(pools.val.images.records, pools.labels, **share)
    if key.synthetic_ratio and key.arm != kinds.PRETRAINED:
        records = pools.synthetic.images.records
        count = num_synthetic(key.synthetic_ratio, len(pools.train))
        synthetic = draw_stratified(records, count, seed=key.seed)
    if not kinds.uses_real(key.arm):
        synthetic, synthetic_val = _divided(synthetic, records, seed=key.seed)
    return Selection(real, val, synthetic, synthetic_val)


def num_patients(records: Sequence[Record], places: Sequence[int]) -> int:
    """Patients of the images at these places."""
    return len(set(patients_of([records[place] for place in places])))


def _divided(
    places: list[int], records: Sequence[Record], *, seed: int
) -> tuple[list[int], list[int]]:
    """Training and validation images of a synthetic set."""
    chosen = [records[place] for place in places]
    splits = assign_splits(chosen, val_share=VAL_SHARE, test_share=0.0, seed=seed, by_image=True)
    train, val = (
        [place for place, split in zip(places, splits) if split == name]
        for name in ("train", "val")
    )
    return train, val
