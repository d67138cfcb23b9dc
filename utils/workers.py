"""Work on many items in processes, with a progress bar."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
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


def _follow_parent() -> None:
    """Initialise a worker: Ctrl-C, which reaches all, is the parent's, and so is the end.

    Without the thread the workers of a killed parent would wait for work forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # at once: whatever is being written is of a run that is no more


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
    """Results of a function over items, in the order of the items; see `iterate_in_processes`."""
    options = {"unit": unit, "num_workers": num_workers, "quiet": quiet}
    results = iterate_in_processes(
        function, items, total=len(items), description=description, **options
    )
    return list(results)


def iterate_in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    total: int,
    description: str,
    unit: str = "img",
    num_workers: int | None = None,
    quiet: bool = False,
    chunk_size: int = 16,
) -> Iterator[Result]:
    """Yield results of a function over items, in the order of the items; progress goes to stderr.

    Neither all items nor all results are held: items are taken a little ahead of the results.

    Args:
        function: A function of a module (it is sent by name), of one argument.
        items: Small things that can be pickled: names, not pixels.
        total: How many there are.
        description: What the progress bar says.
        unit: What it counts.
        num_workers: Processes; 0 works here, as does any number for few items. Default: one per
            core.
        quiet: Whether to draw no progress bar.
        chunk_size: Items that a process takes at once; 1 for such as take long.
    """
    options = {"total": total, "desc": description, "unit": unit, "disable": quiet}
    bar = partial(tqdm, mininterval=0.5, **options)
    if num_workers is None:
        num_workers = available_cores()
    few = total < MIN_ITEMS_FOR_PROCESSES if chunk_size > 1 else total < 2
    if num_workers == 0 or few:
        yield from bar(map(function, items))
        return
    # Not fork: torch's threads may be running, and a forked copy of their locks hangs.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_follow_parent)
    try:
        yield from bar(_ordered(pool, function, iter(items), chunk_size, ahead=4 * num_workers))
    finally:
        pool.shutdown(cancel_futures=True)


def _ordered(
    pool: ProcessPoolExecutor, function: Callable, items: Iterator, chunk_size: int, *, ahead: int
) -> Iterator:
    waiting: deque = deque()
    while chunk := list(islice(items, chunk_size)):
        waiting.append(pool.submit(_apply, function, chunk))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _apply(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]
