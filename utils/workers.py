"""Work on many items in processes, with a progress bar."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from utils.cli import available_cores

MIN_ITEMS_FOR_PROCESSES = 256  # starting the workers takes as long as some 100 images

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores_per_process(num_processes: int) -> int:
    """Cores for each of the processes that a launcher started on this machine, at least 1.

    Args:
        num_processes: Of the run; counts where the launcher does not tell those of the machine.
    """
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers it


def leave_signals_to_parent(worker_id: int) -> None:
    """Initialise a loader's worker, which ends with its parent: that answers Ctrl-C and SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    description: str,
    unit: str = "img",
    num_workers: int | None = None,
    quiet: bool = False,
) -> list[Result]:
    """Results of a function over items, in the order of the items; progress goes to stderr.

    Args:
        function: A function of a module (it is sent by name), of one argument.
        items: Small things that can be pickled: names, not pixels.
        description: What the progress bar says.
        unit: What it counts.
        num_workers: Processes; 0 works here, as does any number for few items. Default: one per
            core.
        quiet: Whether to draw no progress bar.
    """
    if num_workers is None:
        num_workers = available_cores()
    if num_workers == 0 or len(items) < MIN_ITEMS_FOR_PROCESSES:
        return _collect(map(function, items), len(items), description, unit, quiet)
    # Not fork: torch's threads may be running, and a forked copy of their locks hangs.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_ignore_interrupt)
    try:
        results = pool.map(function, items, chunksize=16)
        return _collect(results, len(items), description, unit, quiet)
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(
    results: Iterable[Result], total: int, description: str, unit: str, quiet: bool
) -> list[Result]:
    return list(
        tqdm(results, total=total, desc=description, unit=unit, mininterval=0.5, disable=quiet)
    )
