"""What the runs of a sweep found out, in memory and as folders on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from utils.dataset import Record
from utils.run_folder import write_bytes, write_json
from utils.sweep_plan import RunKey

RUN_NAME, PROBS_NAME = "run.json", "probs.npy"


class Result(Protocol):
    """What a run leaves: its key, what it predicts, ``facts`` and ``history``, in this order."""

    key: RunKey
    facts: dict[str, object]
    history: list[dict[str, float]]

    def __init__(self, key: RunKey, predicted: Any, facts: dict, history: list) -> None:
        """Take over what ``utils.sweep_trainer.Trainer`` made."""

    def write(self, folder: Path) -> None:
        """Write the run's folder, the file that tells it is complete last."""
        ...

    @classmethod
    def read(cls, folder: Path, key: RunKey) -> Result:
        """Read a folder that ``write`` has written."""
        ...


@dataclass(frozen=True)
class RunResult:
    """One training, tested.

    Attributes:
        key: Which run.
        probs: Of the test images, (N, L) float32.
        facts: num_real, num_synthetic, num_unlabeled, num_patients, steps, best_epoch,
            temperature, val_loss, val_auroc and more.
        history: One row an epoch.
    """

    key: RunKey
    probs: np.ndarray
    facts: dict[str, object]
    history: list[dict[str, float]]

    def write(self, folder: Path) -> None:
        """Write the run's folder, the file that tells it is complete last."""
        buffer = io.BytesIO()
        np.save(buffer, self.probs, allow_pickle=False)
        write_bytes(folder / PROBS_NAME, buffer.getvalue())
        write_json(folder / RUN_NAME, {"facts": self.facts, "history": self.history})

    @classmethod
    def read(cls, folder: Path, key: RunKey) -> RunResult:
        """Read a folder that ``write`` has written."""
        found = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
        probs = np.load(folder / PROBS_NAME, allow_pickle=False)
        return cls(key, probs, found["facts"], found["history"])


@dataclass(frozen=True)
class SweepResults:
    """All runs on N test images of L labels.

    Attributes:
        runs: In the order of the plan.
        targets: (N, L) bool.
        labels: L names.
        multi_label: Whether labels may occur together.
        patients: (N,) names, the units of resampling.
        records: The N test images.
    """

    runs: Sequence[RunResult]
    targets: np.ndarray
    labels: tuple[str, ...]
    multi_label: bool
    patients: Sequence[str]
    records: Sequence[Record]
