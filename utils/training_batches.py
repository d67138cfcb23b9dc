"""Batches of samples by their positions in the data stream, for one of several processes."""

from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch.utils.data import DataLoader

from utils.workers import leave_signals_to_parent


class PositionBatches:
    """Batch sampler: the positions of one process's batches, from a position on, without end."""

    def __init__(self, *, start: int, batch_size: int, rank: int, num_processes: int) -> None:
        """Take every ``num_processes``-th batch after ``start``, beginning with the ``rank``-th."""
        self.first = start + rank * batch_size
        self.stride = num_processes * batch_size
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[range]:
        for first in count(self.first, self.stride):
            yield range(first, first + self.batch_size)


def collate(samples: Sequence[dict | tuple[dict, ...]]) -> dict:
    """Stack samples: tensors get a first dimension N, ``name`` becomes the list ``names``.

    Where a position gives several images (`utils.preference_samples`), all first ones come first,
    then all second ones.
    """
    by_position = [sample if isinstance(sample, tuple) else (sample,) for sample in samples]
    rows = [row for place in zip(*by_position, strict=True) for row in place]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key != "name"}
    return batch | {"names": [row["name"] for row in rows]}


def make_loader(
    samples: torch.utils.data.Dataset,
    batches: PositionBatches | Sequence[Sequence[int]],
    *,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader:
    """Loader of the given batches; the number of workers changes the speed only."""
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_signals_to_parent,
        # Its own, or making an iterator would draw from the random numbers of the training.
        generator=torch.Generator(),
    )
