"""What is left to draw: pure functions from the attempts recorded to the next round.

A run goes in rounds: round *a* draws attempt *a* of every image that no earlier attempt settled.
Whether an attempt repeats another image of the set is decided when its round is complete, in the
order of the images; so no decision depends on who drew what when. Shapes: N images asked for, R
attempts recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.perceptual_hash import first_of_alike, hashes_from_hex

OPEN, DONE, FAILED = "open", "done", "failed"
STATES = (OPEN, DONE, FAILED)


@dataclass(frozen=True)
class WorkPlan:
    """Where a run stands.

    Attributes:
        states: (N,) uint8, places in `STATES`.
        attempts: (N,) int64, attempts recorded that count.
        duplicates: (index, attempt) of attempts recorded as accepted that repeat another image;
            such an attempt is to be recorded as rejected.
        attempt: Number of the round to draw.
        todo: Indices to draw in it, ascending; empty when all is done.
    """

    states: np.ndarray
    attempts: np.ndarray
    duplicates: frozenset[tuple[int, int]]
    attempt: int
    todo: np.ndarray

    def count(self, state: str) -> int:
        """Images in a state."""
        return int((self.states == STATES.index(state)).sum())


def settle(
    rows: np.ndarray, *, num_images: int, max_attempts: int, unique: bool = False
) -> WorkPlan:
    """Where the recorded attempts leave a run.

    Args:
        rows: (R,) of ``utils.manifest.ROW``, sorted by index and attempt.
        num_images: N.
        max_attempts: An image whose attempts were all rejected has failed.
        unique: Whether an image that resembles an earlier one of the set is rejected.
    """
    states = np.full(num_images, STATES.index(OPEN), np.uint8)
    attempts = np.zeros(num_images, np.int64)
    duplicates: set[tuple[int, int]] = set()
    kept: list[np.ndarray] = []  # hashes of accepted images
    for attempt in range(max_attempts):
        is_open = states == STATES.index(OPEN)
        found = rows[(rows["attempt"] == attempt) & is_open[rows["index"]]]
        attempts[found["index"]] = attempt + 1
        accepted = found["accepted"].copy()
        missing = np.setdiff1d(np.flatnonzero(is_open), found["index"], assume_unique=True)
        if unique and not len(missing):
            repeated = _repeated(found[accepted], kept)
            duplicates |= {(int(index), attempt) for index in found["index"][accepted][repeated]}
            accepted[accepted] = ~repeated
        states[found["index"][accepted]] = STATES.index(DONE)
        if len(missing):
            return WorkPlan(states, attempts, frozenset(duplicates), attempt, missing)
    states[states == STATES.index(OPEN)] = STATES.index(FAILED)
    return WorkPlan(states, attempts, frozenset(duplicates), max_attempts, missing[:0])


def _repeated(rows: np.ndarray, kept: list[np.ndarray]) -> np.ndarray:
    """Which of a round's candidates (C,) resemble one kept before; the others join ``kept``."""
    hashes, mirrored = (hashes_from_hex(rows[name]) for name in ("phash", "phash_mirrored"))
    first = first_of_alike(hashes, mirrored, kept)
    kept.append(hashes[first])
    return ~first


def share(todo: np.ndarray, *, process: int, num_processes: int) -> list[int]:
    """A process's part of a round, neighbours together: they often have one prompt."""
    return np.array_split(todo, num_processes)[process].tolist()


def in_groups(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Runs of ``size`` indices, the last one shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
