"""A start of the training command that is watched from outside, by its folder, and killed."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from utils.run_folder import TEMPORARY_PREFIX

ROOT = Path(__file__).parents[1]
POLL_S = 0.002
START_LIMIT_S = 300  # until a run shows that it trains


class Attempt:
    """One start of the training command."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it, on CPUs."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, a pipe could fill up
        self._process = psutil.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait_until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait for a condition; False if the run ended before.

        Raises:
            RuntimeError: If it took too long.
        """
        deadline = time.monotonic() + limit_s
        while not condition():
            if not self.is_running:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"nothing to see of the run in {limit_s} s: {self._told()}")
            time.sleep(POLL_S)
        return True

    def kill(self) -> bool:
        """Kill every process of the run, the trainers first; False if it had ended before."""
        if not self.is_running:
            return False
        processes = [*reversed(self._process.children(recursive=True)), self._process]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)
        return True

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: If it failed.
        """
        if self._process.wait() != 0:
            raise RuntimeError(f"the run failed: {self._told()}")

    def _told(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-3000:]


def signs(output_dir: Path, aim: str) -> set[tuple]:
    """What shows that a run does what is aimed at; a new element is a new sign.

    For steps the length of the log and the checkpoints; else the folders being written, by name and
    number, for an earlier kill may have left one of that name.
    """
    if not output_dir.is_dir():
        return set()
    names = {path.name: path for path in output_dir.iterdir()}
    if aim == "step":
        log = names.get("train_log.csv")
        lines = log.read_bytes().count(b"\n") if log else 0
        return {("lines", lines)} | {("folder", name) for name in names if "checkpoint" in name}
    found = set()
    for name, path in names.items():
        if name.startswith(TEMPORARY_PREFIX) and aim in name:
            with contextlib.suppress(FileNotFoundError):  # it has its own name by now
                found.add((name, path.stat().st_ino))
    return found


def writing(output_dir: Path) -> set[tuple]:
    """Checkpoints and pipelines that lie there half written."""
    return signs(output_dir, "checkpoint") | signs(output_dir, "pipeline")


def kill_once(
    attempt: Attempt, output_dir: Path, aim: str, *, before: set[tuple], delay_s: float
) -> bool:
    """Kill a run some time after a new sign of what is aimed at; False if it ended before."""
    if not attempt.wait_until(lambda: bool(signs(output_dir, aim) - before), START_LIMIT_S):
        return False
    time.sleep(delay_s)
    return attempt.kill()
