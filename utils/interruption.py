"""Ctrl-C and SIGTERM during a training: all processes stop after the same step, not in its middle.

A signal reaches the processes at different moments, or one of them only. Every step they compare
notes through the main memory, one step late, so that no device has to wait.
"""

import ctypes
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence

import torch
import torch.distributed

from utils.run_folder import get_logger

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL_SECONDS = 1.0  # within which two signals are one that came twice
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_logger = get_logger("train")


class Interruption:
    """Notes the first signal; a second Ctrl-C ends the process at once.

    Other repetitions change nothing: a scheduler, a launcher and a terminal may each pass one on.
    Use it as a context manager around the loop, on every process.

    Attributes:
        signal: What all processes agreed to stop for, or 0.
    """

    def __init__(self, *, num_processes: int) -> None:
        """Prepare; a collective call if there are several processes."""
        self._signal = 0  # what reached this process, and when
        self._since = 0.0
        self.signal = 0
        self._handlers: dict[int, object] = {}
        self._group = None
        self._pending: tuple[torch.Tensor, object] | None = None
        if num_processes > 1:
            # A group of its own: the order of its messages must not mix with that of gradients.
            self._group = torch.distributed.new_group(backend="gloo")

    def __enter__(self) -> "Interruption":
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        _end_with_launcher()
        return self

    def __exit__(self, error_type, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._pending is not None and error_type is None:
            self._pending[1].wait()

    def _note(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._since = number, now
            name = signal.Signals(number).name
            _logger.warning("%s: saving after this step; Ctrl-C once more stops at once", name)
        elif number == signal.SIGINT and now - self._since > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    def agreed(self) -> int:
        """The signal to stop for, the same on all processes, or 0; call it once a step on each.

        Alone, a process stops after the step in which the signal came; several stop one step later.
        """
        if self._group is None:
            self.signal = self._signal
            return self.signal
        if self._pending is not None:
            votes, work = self._pending
            work.wait()
            self.signal = int(votes)
        votes = torch.tensor(self._signal)
        most = torch.distributed.ReduceOp.MAX
        work = torch.distributed.all_reduce(votes, most, group=self._group, async_op=True)
        self._pending = votes, work
        return self.signal


def _end_with_launcher() -> None:
    """Get SIGTERM when `accelerate launch` dies, which passes on no signal to a single process."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def exit_status(number: int) -> int:
    """What a shell reports of a process that a signal ended."""
    return 128 + number


def resume_command(argv: Sequence[str]) -> str:
    """The command that goes on; ``accelerate launch``'s own flags are not known here."""
    flags = shlex.join([*argv[1:], "--resume_from_checkpoint", "latest"])
    return f"accelerate launch {shlex.quote(argv[0])} {flags}"
