"""Entries of a space looked up, verified and, where missing, made by all processes together.

The main process reads the folder and tells the others where entries lie, so that all see the same
whatever other runs do meanwhile. Every function here that takes an accelerator is called on every
process.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from utils.cli import UserError
from utils.run_folder import get_logger
from utils.tensor_shards import GONE, SHARD_ENTRIES, Space, find_damaged, scan, write_shard
from utils.tensor_table import TensorTable
from utils.workers import cores_per_process

MAX_ROUNDS = 3  # of making what is missing; more only if someone deletes as fast as we write
MAX_HASH_THREADS = 8
NETWORK_DISK_SECONDS = 2  # until a new file is seen by other machines

_logger = get_logger("cache")


class Job(NamedTuple):
    """Entries that are wanted, and how one that is missing is made.

    Attributes:
        space: Where they lie.
        what: One sentence about them, for about.json.
        keys: (..., key_bytes) uint8.
        make: Values at flat positions of ``keys``, in batches (b, *entry_shape), in this order.
        description: Of the progress bar.
        unit: What it counts.
        flag: Flag that names the folder, for messages.
        max_entries: Of a shard, which is what is lost if the run is killed.
    """

    space: Space
    what: str
    keys: np.ndarray
    make: Callable[[np.ndarray], Iterable[torch.Tensor]]
    description: str
    unit: str
    flag: str
    max_entries: int = SHARD_ENTRIES


class Placement(NamedTuple):
    """Where the wanted entries lie.

    Attributes:
        paths: Shards that hold some, each verified.
        shards: Number of each entry's shard, -1 where it is missing, int32, shaped as wanted.
        rows: Its row there.
    """

    paths: list[Path]
    shards: np.ndarray
    rows: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """Flat positions of entries that are in no shard."""
        return np.flatnonzero(self.shards.reshape(-1) < 0)


def locate(job: Job, accelerator, verified: set[Path]) -> Placement:
    """Find the wanted entries; damaged shards are deleted and do not count.

    Args:
        job: What is wanted.
        accelerator: Tells the process's share of the shards to verify.
        verified: Shards that need no check any more; grows.

    Raises:
        UserError: If a process cannot see what the main process sees.
    """
    for _ in range(MAX_ROUNDS):
        mine = _look_up(job) if accelerator.is_main_process else None
        placement = broadcast_object_list([mine])[0]
        unknown = [path for path in placement.paths if path not in verified]
        damaged = _verify(unknown, job.space, accelerator)
        verified |= {path for path in unknown if path.name not in damaged}
        if not damaged:
            return placement
        if accelerator.is_main_process:
            _delete({name: why for name, why in damaged.items() if why != GONE}, job.space)
        if GONE in damaged.values():
            time.sleep(NETWORK_DISK_SECONDS)
    raise UserError(
        f"{job.space.folder}: not every process can see {', '.join(damaged)}; "
        f"{job.flag} must be a folder that all processes share"
    )


def _look_up(job: Job) -> Placement:
    """Placement by the headers of the shards, on the main process."""
    found = scan(job.space)
    _delete(found.damaged, job.space)
    if found.foreign:
        _logger.warning("%s: not of this cache, left alone: %s", job.space.folder, found.foreign)
    shards, rows = found.index.find(job.keys)
    used = np.unique(shards[shards >= 0])
    renumber = np.full(len(found.paths) + 1, -1, dtype=np.int32)  # the last stands for -1
    renumber[used] = np.arange(len(used))
    return Placement([found.paths[number] for number in used], renumber[shards], rows)


def _verify(paths: Sequence[Path], space: Space, accelerator) -> dict[str, str]:
    """Name and reason of damaged shards; each process checks its share."""
    rank, count = accelerator.process_index, accelerator.num_processes
    threads = min(MAX_HASH_THREADS, cores_per_process(count))
    mine = find_damaged(paths[rank::count], space, num_threads=threads)
    return dict(gather_object(list(mine.items())))


def _delete(damaged: dict[str, str], space: Space) -> None:
    for name, reason in damaged.items():
        _logger.warning("%s: %s; deleted, to be made anew", space.folder / name, reason)
        (space.folder / name).unlink(missing_ok=True)


def fill(job: Job, accelerator, verified: set[Path]) -> TensorTable:
    """Make what is missing, and open a table of all wanted entries, shaped as ``job.keys``.

    Args:
        job: What is wanted.
        accelerator: Tells the process's share.
        verified: As for `locate`.

    Raises:
        UserError: If entries vanish as fast as they are made, or a process cannot see them.
    """
    for _ in range(MAX_ROUNDS):
        placement = locate(job, accelerator, verified)
        if not len(placement.missing):
            return TensorTable(*placement)
        if accelerator.is_main_process:
            job.space.describe(job.what)
        _make(job, placement.missing, accelerator)
    raise UserError(
        f"{job.space.folder}: what is written there is gone or damaged at once; is something "
        f"deleting it? Name another folder with {job.flag}"
    )


def _make(job: Job, missing: np.ndarray, accelerator) -> None:
    """Make each missing entry once, shared out in blocks; a block becomes a shard.

    The processes wait for each other after every block, not only at the end: a process that is
    slower by some percent would exceed the time limit of a collective after some hours.
    """
    keys = job.keys.reshape(-1, job.space.key_bytes)
    first = np.unique(keys[missing].view(f"S{job.space.key_bytes}"), return_index=True)[1]
    positions = missing[np.sort(first)]
    count = accelerator.num_processes
    size = min(job.space.shard_entries, job.max_entries, -(-len(positions) // count))
    blocks = [positions[at : at + size] for at in range(0, len(positions), size)]
    num_rounds = -(-len(blocks) // count)
    mine = blocks[accelerator.process_index :: count]
    total = sum(map(len, mine))
    quiet = not accelerator.is_local_main_process
    with tqdm(
        total=total, desc=job.description, unit=job.unit, mininterval=0.5, disable=quiet
    ) as bar:
        values = _in_blocks(job.make(np.concatenate(mine)) if mine else (), mine, bar)
        for number in range(num_rounds):
            if number < len(mine):
                write_shard(job.space, keys[mine[number]], next(values))
            accelerator.wait_for_everyone()


def _in_blocks(
    batches: Iterable[torch.Tensor], blocks: Sequence[np.ndarray], bar: tqdm
) -> Iterator[torch.Tensor]:
    """Values of one block after another, cut from batches that know nothing of blocks."""
    batches = iter(batches)
    held, count = [], 0
    for block in blocks:
        while count < len(block):
            held.append(next(batches))
            count += len(held[-1])
            bar.update(len(held[-1]))
        values = torch.cat(held)
        yield values[: len(block)]
        held, count = [values[len(block) :].clone()], count - len(block)
