"""Which images of a generated set its page shows: drawn by chance, the same in every run.

Each attempt has a random number that depends on (index, attempt) alone; of each label, and of each
reason for refusal, those with the smallest numbers are shown. So one pass over the manifest
suffices, few rows are kept, and sets drawn with the same seeds show the same images.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from utils.acceptance import NO_LABEL, reasons_of
from utils.manifest import ACCEPTED

PER_LABEL = 4
PER_REASON = 4
_POOL = 64  # images per label and set, among which those that all sets accepted are looked for


@dataclass(frozen=True)
class Sample:
    """One image to show.

    Attributes:
        path: Of the picture.
        index: Which image of the plan.
        attempt: Which attempt at it; index and attempt together decide over the seed.
        label: As the manifest has it.
        reasons: Why it was refused; empty if it was accepted.
        score: As the manifest has it; empty if no classifier judged.
    """

    path: Path
    index: int
    attempt: int
    label: str
    reasons: tuple[str, ...]
    score: str


def choose_samples(
    rows: Iterable[Mapping[str, str]],
    folder: Path,
    *,
    per_label: int = PER_LABEL,
    per_reason: int = PER_REASON,
) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Accepted images by label and refused ones by their first reason.

    Args:
        rows: The manifest; read once.
        folder: What its ``file_name`` is relative to. Refused attempts are shown if they have one.
        per_label: Accepted images of each label, at most.
        per_reason: Refused images of each reason, at most.
    """
    accepted: dict[str, list] = {}
    refused: dict[str, list] = {}
    for row in rows:
        if not row["file_name"]:
            continue
        if row["status"] == ACCEPTED:
            heap, size = accepted.setdefault(row["label"] or NO_LABEL, []), per_label
        else:
            heap, size = refused.setdefault(reasons_of(row)[0], []), per_reason
        item = (-_chance(row), int(row["index"]), int(row["attempt"]), dict(row))
        (heapq.heappush if len(heap) < size else heapq.heappushpop)(heap, item)
    return _in_order(accepted, folder), _in_order(refused, folder)


def same_seed_samples(
    sets: Mapping[str, tuple[Iterable[Mapping[str, str]], Path]], *, per_label: int
) -> list[dict[str, Sample]]:
    """Images that several sets accepted at the same attempt, so that only a setting differs.

    Args:
        sets: Name -> rows of its manifest and its folder, all of one plan and seed.
        per_label: Images of each label, at most.

    Returns:
        One mapping per image, name of the set -> picture, label by label.
    """
    pools = {}
    for name, (rows, folder) in sets.items():
        by_label, _ = choose_samples(rows, folder, per_label=_POOL, per_reason=0)
        pools[name] = {
            (sample.index, sample.attempt): sample for pool in by_label.values() for sample in pool
        }
    common = set.intersection(*map(set, pools.values()))
    chosen: dict[str, list[dict[str, Sample]]] = {}
    for key, sample in next(iter(pools.values())).items():
        members = chosen.setdefault(sample.label, [])
        if key in common and len(members) < per_label:
            members.append({name: pool[key] for name, pool in pools.items()})
    return [pictures for members in chosen.values() for pictures in members]


def _chance(row: Mapping[str, str]) -> float:
    """A number in [0, 1) that looks random and depends on index and attempt alone."""
    digest = sha256(f"{row['index']}/{row['attempt']}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _in_order(heaps: Mapping[str, list], folder: Path) -> dict[str, list[Sample]]:
    """Name -> its samples, the smallest number first."""
    return {
        name: [_sample(row, folder) for *_, row in sorted(heaps[name], reverse=True)]
        for name in sorted(heaps)
        if heaps[name]
    }


def _sample(row: Mapping[str, str], folder: Path) -> Sample:
    return Sample(
        path=folder / row["file_name"],
        index=int(row["index"]),
        attempt=int(row["attempt"]),
        label=row["label"] or NO_LABEL,
        reasons=tuple(reasons_of(row)),
        score=row["score"],
    )
