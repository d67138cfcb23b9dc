"""What the processes of one ``accelerate launch`` do together; alone, all of it does nothing.

A process that ended by an error leaves the others with a broken connection: they say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from utils.cli import UserError

Value = TypeVar("Value")


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
