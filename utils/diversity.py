"""How alike the images of one prompt are, beside how alike real images of one label are.

Shapes: N images, P pairs. Entries as in ``utils.scores``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from utils import metrics
from utils.image_sets import ImageSet
from utils.image_text import text_of
from utils.ms_ssim import SCALE_WEIGHTS, WINDOW_PX, num_scales
from utils.scores import Entry, absent, entry


@dataclass(frozen=True)
class Similarities:
    """MS-SSIM of pairs: ``values`` (P,), ``pairs`` (P, 2) indices, ``owners`` (P,) groups."""

    values: np.ndarray
    pairs: np.ndarray
    owners: np.ndarray

    def within(self, members: np.ndarray) -> Similarities:
        """The pairs of which both images are among ``members``."""
        kept = np.isin(self.pairs, members).all(axis=1)
        return Similarities(self.values[kept], self.pairs[kept], self.owners[kept])


def score_ms_ssim(
    real: ImageSet, synthetic: ImageSet, *, labels: Sequence[str], max_pairs: int, seed: int
) -> tuple[Entry, dict[str, Entry]]:
    """MS-SSIM within prompts (synthetic) and within labels (real), of all images and per label.

    Args:
        real: The real images.
        synthetic: The synthetic images.
        labels: Labels to give an entry each.
        max_pairs: Of each set, at most.
        seed: Of the choice of pairs and of the intervals.
    """
    side = real.resolution
    if side < WINDOW_PX:
        why = f"images of {side} pixels are smaller than the window of {WINDOW_PX}"
        return absent("real", len(real), len(synthetic), why), {}
    groups, grouped_by = _synthetic_groups(synthetic)
    notes = []
    if grouped_by != "prompt":
        notes.append("no prompt has two images: synthetic pairs share a label instead")
    scales = num_scales(side, side)
    if scales < len(SCALE_WEIGHTS):
        notes.append(
            f"{scales} of {len(SCALE_WEIGHTS)} scales, their weights scaled to sum to 1: five "
            f"need 176 pixels and the images have {side}; compare only at this size"
        )
    options = {"max_pairs": max_pairs, "seed": seed}
    drawn = compare_pairs(synthetic, groups, **options)
    own = compare_pairs(real, _label_groups(real), **options)

    def of(real_index: np.ndarray, synthetic_index: np.ndarray, notes: list[str]) -> Entry:
        found = _summary(drawn.within(synthetic_index), own.within(real_index), notes, seed)
        counts = {"n_real": len(real_index), "n_synthetic": len(synthetic_index)}
        return entry(direction="real", **counts, **found, grouped_by=grouped_by, scales=scales)

    overall = of(np.arange(len(real)), np.arange(len(synthetic)), notes)
    return overall, {name: of(real.having(name), synthetic.having(name), []) for name in labels}


def _synthetic_groups(synthetic: ImageSet) -> tuple[list[Hashable], str]:
    """The prompt of each image, or its labels if no prompt has two images."""
    prompts = [
        text_of(record) or f"\0image {index}" for index, record in enumerate(synthetic.dataset)
    ]
    if max(Counter(prompts).values()) > 1:
        return prompts, "prompt"
    return _label_groups(synthetic), "label"


def _label_groups(images: ImageSet) -> list[Hashable]:
    """The labels of each image; those without labels are one group."""
    return [tuple(sorted(record.labels)) for record in images.dataset]


def compare_pairs(
    images: ImageSet, groups: Sequence[Hashable], *, max_pairs: int, seed: int
) -> Similarities:
    """MS-SSIM of pairs of images of the same group.

    Args:
        images: N images; colour is dropped.
        groups: (N,) group of each image.
        max_pairs: Pairs at most.
        seed: Of the choice of pairs.
    """
    pairs, owners = metrics.choose_pairs(groups, max_pairs=max_pairs, seed=seed)

    def load(index: int) -> np.ndarray:
        return np.asarray(images.image(index).convert("L"))

    with tqdm(total=len(pairs), desc=f"{images.name} pairs", unit="pair") as bar:
        values = metrics.pairwise_ms_ssim(load, pairs, progress=bar.update)
    return Similarities(values, pairs, owners)


def _summary(drawn: Similarities, own: Similarities, notes: list[str], seed: int) -> Entry:
    """Value, interval and the real set's own value."""
    notes, interval = list(notes), None
    if len(drawn.values):
        interval = metrics.bootstrap_interval(drawn.values, groups=drawn.owners, seed=seed)
        if interval is None:
            notes.append(f"no interval: pairs of fewer than {metrics.MIN_GROUPS} prompts or labels")
    else:
        notes.append("no two synthetic images to compare")
    if not len(own.values):
        notes.append("no two real images of one label to compare with")
    return {
        "value": float(drawn.values.mean()) if len(drawn.values) else None,
        "ci95": interval,
        "real": float(own.values.mean()) if len(own.values) else None,
        "num_pairs": len(drawn.values),
        "num_pairs_real": len(own.values),
        "notes": notes,
    }
