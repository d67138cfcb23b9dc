"""Runs the project's scripts one after the other, each once, and continues after a stop.

A stage is a script with flags. What it printed is kept in ``logs/<name>.json`` with its command, so
that a stage that has ended is not run again, and one that was stopped is started again with the
same command, which its script continues.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli import UserError
from utils.json_file import read_json
from utils.run_folder import get_logger, write_json

_logger = get_logger("stage")
LOGS_DIR = "logs"
LONGEST_END_S = 600  # of what a launcher has started, to save a checkpoint

Flags = Mapping[str, object]


def to_argv(flags: Flags) -> list[str]:
    """Flags by name as a command line has them.

    None and False are left out, True is a flag without value, a list is one flag with its items.
    """
    argv = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        argv.append(f"--{name}")
        if isinstance(value, list | tuple):
            argv += map(str, value)
        elif value is not True:
            argv.append(str(value))
    return argv


@dataclass(frozen=True)
class StageRunner:
    """Starts scripts for a run folder.

    Attributes:
        folder: Of the run; gets ``logs/``.
        scripts: Where the scripts lie.
        launcher: What starts a script on several processes, e.g. ``accelerate launch`` in words;
            empty for this Python alone.
        lock: Descriptor that holds the folder (`utils.resumable_run.only_writer`). A script
            inherits it: when this process is killed and the script goes on, the folder stays held
            until it ends. A launcher does not pass it on to what it starts.
    """

    folder: Path
    scripts: Path
    launcher: Sequence[str]
    lock: int | None

    def run(
        self, name: str, script: str, argv: Sequence[str], *, only_now: Sequence[str] = ()
    ) -> dict:
        """The result that a script printed; it is started unless it has ended before.

        Args:
            name: Of the stage.
            script: File name.
            argv: Its flags.
            only_now: More flags, that make no other stage of it: how to go on after a stop.

        Raises:
            UserError: If it fails; its own message stands above.
        """
        log = self.folder / LOGS_DIR / f"{name}.json"
        started = [*(self.launcher or [sys.executable]), str(self.scripts / script)]
        command = [*started, *argv, *only_now]
        shown = shlex.join([script, *argv])
        if log.is_file():
            found = read_json(log)
            if found["command"] == shown:
                return found["result"]
        _logger.info("[%s] %s", name, shown)
        began = time.monotonic()
        result = self._start(name, command)
        seconds = round(time.monotonic() - began, 1)
        write_json(log, {"command": shown, "seconds": seconds, "result": result})
        return result

    def _start(self, name: str, command: Sequence[str]) -> dict:
        options = {
            "stdout": subprocess.PIPE,
            "pass_fds": () if self.lock is None else (self.lock,),
            # Ctrl-C reaches it once, from here: training ends at once at the second.
            "start_new_session": True,
        }
        with subprocess.Popen(command, **options) as process:
            try:
                printed, _ = process.communicate()
            except BaseException:
                end_group(process)
                raise
        if process.returncode:
            raise UserError(
                f"stage {name} ended with status {process.returncode}; its message is above. What "
                "is there stays: put it right and start the same command again"
            )
        return json.loads(printed)

    def seconds(self) -> dict[str, float]:
        """How long each stage took that has ended, by its name."""
        logs = self.folder / LOGS_DIR
        found = {path: read_json(path) for path in sorted(logs.rglob("*.json"))}
        return {
            path.relative_to(logs).with_suffix("").as_posix(): log["seconds"]
            for path, log in found.items()
        }


def end_group(process: subprocess.Popen) -> None:
    """Ask a script and all that its launcher has started to end, and wait until they have."""
    os.killpg(process.pid, signal.SIGTERM)  # they save what they have
    process.wait()
    limit = time.monotonic() + LONGEST_END_S
    while time.monotonic() < limit:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def stop_at_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that the script it waits for ends too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
