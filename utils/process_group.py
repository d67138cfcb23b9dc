"""What the processes of one ``accelerate launch`` do together; alone, all of it does nothing.

A process that ended by an error leaves the others with a broken connection: they say so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from utils.cli import UserError, resolve_device
from utils.run_folder import get_logger

Value = TypeVar("Value")


def join(device: str, *, longest_wait: timedelta, main_loggers: Collection[str]) -> PartialState:
    """The state of the processes that ``accelerate launch`` started, or of this one alone.

    Args:
        device: ``--device``.
        longest_wait: Of a process for the slowest one.
        main_loggers: Loggers of which only the main process's tell more than errors.
    """
    on_cpu = torch.device(resolve_device(device)).type == "cpu"
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or on_cpu
    state = PartialState(cpu=on_cpu, timeout=longest_wait)
    if not state.is_main_process:
        for name in main_loggers:
            get_logger(name).setLevel("ERROR")
    return state


def own_device(device: str, state: PartialState) -> str:
    """Where this process computes: one alone as ``--device`` says, of several its own."""
    return resolve_device(device) if state.num_processes == 1 else str(state.device)


@contextmanager
def _translated() -> Iterator[None]:
    """What torch says of a lost connection, in words for users.

    Gloo raises RuntimeError, NCCL a subclass of it.
    """
    try:
        yield
    except RuntimeError as error:
        raise UserError("another process of this run has ended; it says why") from error


def from_main(value: Value) -> Value:
    """The main process's value; all processes must call it."""
    with _translated():
        return broadcast_object_list([value])[0]


def wait_for_all(state: PartialState) -> None:
    """Wait until all processes have come here."""
    with _translated():
        state.wait_for_everyone()


@contextmanager
def main_first(state: PartialState) -> Iterator[None]:
    """Let the main process go through a block before the others: what it downloads, they find."""
    if not state.is_main_process:
        wait_for_all(state)
    yield
    if state.is_main_process:
        wait_for_all(state)


def leave(state: PartialState) -> None:
    """End the connection in good order; without it a process may abort when Python ends."""
    wait_for_all(state)
    state.destroy_process_group()
