"""How far a run has come, over all its processes, on the terminal and in `plan.csv`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from utils.generated_set import write_plan
from utils.manifest import ACCEPTED, FAILED, PartsTail
from utils.prompts import Prompt
from utils.work_plan import DONE, STATES, WorkPlan
from utils.work_plan import FAILED as FAILED_IMAGE

_READ_EVERY_S = 1.0
_WRITE_EVERY_S = 60.0


class Progress:
    """Counts what all processes record; only one process shows it."""

    def __init__(self, folder: Path, prompts: Sequence[Prompt], *, shown: bool) -> None:
        """Show nothing yet.

        Args:
            folder: Of the set.
            prompts: Of the images asked for.
            shown: Whether this process shows it; else all of this does nothing.
        """
        self._folder, self._prompts, self._shown = folder, prompts, shown
        self._bar: tqdm | None = None
        self._drawn = self._accepted = self._drawn_before = 0
        self._start = self._read = self._written = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin_round(self, plan: WorkPlan) -> None:
        """Start from what a round's beginning knows."""
        if not self._shown:
            return
        self._plan, self._tail = plan, PartsTail(self._folder)
        self._drawn_before = self._drawn
        settled = plan.count(DONE) + plan.count(FAILED_IMAGE)
        if self._bar is None:
            self._start = self._written = time.monotonic()
            options = {"unit": "image", "desc": "drawing", "initial": settled}
            self._bar = tqdm(total=len(self._prompts), **options)
        self._bar.update(settled - self._bar.n)

    def update(self, *, now: bool = False) -> None:
        """Look at what was recorded since the last time, at most once a second unless ``now``."""
        if not self._shown or (not now and time.monotonic() - self._read < _READ_EVERY_S):
            return
        for row in self._tail.new_rows():
            index, accepted = int(row["index"]), row["status"] == ACCEPTED
            settled = accepted or row["status"] == FAILED
            self._drawn += 1
            self._accepted += accepted
            self._plan.attempts[index] = int(row["attempt"]) + 1
            if settled:
                self._plan.states[index] = STATES.index(DONE if accepted else FAILED_IMAGE)
                self._bar.update()
        self._read = time.monotonic()
        elapsed = max(self._read - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"{self._drawn / elapsed:.2f} drawn/s, {self._accepted / elapsed:.2f} accepted/s"
        )
        if self._read - self._written > _WRITE_EVERY_S:
            write_plan(self._folder, self._prompts, self._plan)
            self._written = self._read

    def watch_others(self, num_todo: int) -> None:
        """Show how far the others are until all of a round's ``num_todo`` attempts are recorded."""
        while self._shown:
            self.update(now=True)
            if self._drawn - self._drawn_before >= num_todo:
                return
            time.sleep(_READ_EVERY_S)

    @property
    def rates(self) -> dict[str, object]:
        """Attempts and accepted images of this run, and each per second."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        return {
            "num_drawn_now": self._drawn,
            "images_per_second": round(self._drawn / elapsed, 3) if self._drawn else None,
            "accepted_per_second": round(self._accepted / elapsed, 3) if self._drawn else None,
        }
