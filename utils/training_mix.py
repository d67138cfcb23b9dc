"""The data set of one round of self-improvement: real pairs and what is added to them, weighed.

Each row has a ``weight``: how often it is shown beside the others. What is added never weighs more
than a given share of all: a generator that learns mostly from its own pictures collapses
(Alemohammad et al. 2023, https://arxiv.org/abs/2307.01850), one that always sees real ones with
them does not (Gerstgrasser et al. 2024, https://arxiv.org/abs/2404.01413).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.cli import UserError
from utils.dataset import Record, write_dataset
from utils.dataset_import import target_names, transfer_images
from utils.run_folder import atomic_folder, get_logger

WEIGHT = "weight"
_KEPT_COLUMNS = ("label", "patient_id", "source", "modality")

_logger = get_logger("mix")


@dataclass(frozen=True)
class Part:
    """Images of one origin.

    Attributes:
        origin: ``real``, ``pseudo_report``, ``no_report`` or ``synthetic``; a column of the mix.
        records: N images.
        texts: What each is trained with; empty for the unconditional branch.
        weights: (N,) float64 >= 0.
    """

    origin: str
    records: Sequence[Record]
    texts: Sequence[str]
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum())


def real_part(records: Sequence[Record]) -> Part:
    """Real pairs, of weight 1 each."""
    return Part("real", records, [record.text for record in records], np.ones(len(records)))


def share_factor(total: float, others: float, *, max_share: float) -> float:
    """By what a weight has to be multiplied to be no more than a share of all, at most 1.

    Args:
        total: The weight.
        others: All other weight.
        max_share: In [0, 1]; 1 leaves it as it is.
    """
    if max_share >= 1 or not total:
        return 1.0
    return min(1.0, others * max_share / (1 - max_share) / total)


def limit_share(part: Part, others: float, *, max_share: float) -> Part:
    """A part, weighed down where it would have more than a share of all; see `share_factor`."""
    factor = share_factor(part.total, others, max_share=max_share)
    return replace(part, weights=part.weights * factor)


def cap_share(real: Part, added: Sequence[Part], *, max_share: float) -> list[Part]:
    """The added parts, weighed down where together they would have more than a share of all.

    Args:
        real: What they are added to.
        added: The others.
        max_share: In [0, 1]; 1 leaves all as they are.

    Returns:
        The parts, all multiplied by the same factor <= 1.
    """
    total = sum(part.total for part in added)
    factor = share_factor(total, real.total, max_share=max_share)
    return [replace(part, weights=part.weights * factor) for part in added]


def shares(parts: Sequence[Part]) -> dict[str, dict[str, float]]:
    """Of each origin the number of images, and its share of the weight."""
    total = sum(part.total for part in parts)
    return {
        part.origin: {"images": len(part), "share": part.total / total}
        for part in parts
        if len(part)
    }


def write_mix(folder: Path, parts: Sequence[Part], *, num_workers: int | None) -> None:
    """Write the dataset folder, whole or not at all; one that is there stays as it is.

    Images are hard links where the disk allows it, else copies.

    Args:
        folder: Of the mix.
        parts: Real first; rows of weight 0 are left out.
        num_workers: Processes that copy.

    Raises:
        UserError: If no row has a weight.
    """
    if folder.exists():
        return
    rows = [
        (record, _row(part.origin, record, text, weight))
        for part in parts
        for record, text, weight in zip(part.records, part.texts, part.weights, strict=True)
        if weight > 0
    ]
    if not rows:
        raise UserError(f"{folder}: nothing to train on")
    records = [record for record, _ in rows]
    suffixes = [Path(name).suffix for name in target_names(records, as_png=False)]
    names = [f"images/{index:06d}{suffix}" for index, suffix in enumerate(suffixes)]
    with atomic_folder(folder) as temporary:
        bring_images(records, names, temporary, num_workers=num_workers)
        write_dataset(temporary, [{"file_name": n, **row} for n, (_, row) in zip(names, rows)])


def bring_images(
    records: Sequence[Record], names: Sequence[str], folder: Path, *, num_workers: int | None = 0
) -> None:
    """Put images into a folder under new names: hard links where the disk allows it, else copies.

    Args:
        records: The images.
        names: Of each, relative to ``folder``.
        folder: Where they go.
        num_workers: Processes that copy.
    """
    options = {"num_workers": num_workers}
    try:
        transfer_images(records, names, folder, mode="link", **options)
    except UserError:
        _logger.info("the disk takes no hard links from there: %d images are copied", len(names))
        transfer_images(records, names, folder, mode="copy", **options)


def _row(origin: str, record: Record, text: str, weight: float) -> dict[str, str]:
    kept = {name: record.row[name] for name in _KEPT_COLUMNS if record.row.get(name)}
    return {"text": text, **kept, "split": "train", "origin": origin, WEIGHT: f"{weight:.6g}"}
