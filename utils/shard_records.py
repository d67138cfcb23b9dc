"""The records of shards: read from the shards' indexes when asked for, never all in memory."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from utils.dataset_records import Record, make_record
from utils.lazy_records import LazyRecords
from utils.shard_index import ShardIndex, read_cells, read_row, read_rows

_CHUNK = 4096  # rows read at once


class ShardRecords(LazyRecords):
    """Records in the order of the shards, or of a selection; a sequence that builds its items.

    Attributes:
        indexes: Of the shards.
    """

    def __init__(
        self,
        indexes: Iterable[ShardIndex],
        rows: np.ndarray | None = None,
        make_text: Callable[[Record], str] | None = None,
    ) -> None:
        """Keep what the records are read from.

        Args:
            indexes: Of the shards.
            rows: Which of all shards' rows these are, (n,) int64; None for all.
            make_text: Gives a record its text in place of its own; a function of a module.
        """
        self.indexes = tuple(indexes)
        self._ends = list(accumulate(index.num_rows for index in self.indexes))
        self._rows = rows
        self._make_text = make_text

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int | slice):
        """A record; for a slice a selection, as lazy as this."""
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        index = range(len(self))[index]  # from the end, or IndexError
        row = index if self._rows is None else int(self._rows[index])
        number = bisect_right(self._ends, row)
        shard = self.indexes[number]
        return self._record(*read_row(shard, row - self._ends[number] + shard.num_rows))

    def __iter__(self) -> Iterator[Record]:
        for shard, rows in self._runs():
            for sample in read_rows(shard, rows):
                yield self._record(*sample)

    def _record(self, *sample) -> Record:
        record = make_record(*sample)
        return replace(record, text=self._make_text(record)) if self._make_text else record

    def _runs(self) -> Iterator[tuple[ShardIndex, np.ndarray]]:
        """Rows, in order, in runs within one shard: its index and the rows in it, (n,) int64."""
        ends = np.array(self._ends, np.int64)
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            rows = np.arange(start, stop) if self._rows is None else self._rows[start:stop]
            numbers = np.searchsorted(ends, rows, side="right")
            borders = np.flatnonzero(np.diff(numbers)) + 1
            for run in np.split(np.arange(len(rows)), borders):
                number = int(numbers[run[0]])
                shard = self.indexes[number]
                yield shard, rows[run] - (self._ends[number] - shard.num_rows)

    def take(self, indices: Iterable[int]) -> "ShardRecords":
        """The records at these indices, in this order."""
        if isinstance(indices, range) and indices == range(len(self)):
            return self
        if isinstance(indices, range):
            indices = np.arange(indices.start, indices.stop, indices.step)
        elif not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, np.int64)
        rows = indices if self._rows is None else self._rows[indices]
        return ShardRecords(self.indexes, rows.astype(np.int64), self._make_text)

    def with_text(self, make_text: Callable[[Record], str]) -> "ShardRecords":
        """The same records with the text that a function of a module makes of each."""
        return ShardRecords(self.indexes, self._rows, make_text)

    def cells(self, column: str) -> Iterator[str]:
        """One column as it stands in the shards; empty where a row does not have it."""
        for shard, rows in self._runs():
            yield from read_cells(shard, column, rows)

    def texts(self) -> Iterator[str]:
        """The text of each record."""
        if self._make_text is None:
            return (cell.strip() for cell in self.cells("text"))
        return (record.text for record in self)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of the runs of records that lie in one shard."""
        if self._rows is None:
            return tuple(index.num_rows for index in self.indexes if index.num_rows)
        numbers = np.searchsorted(np.array(self._ends, np.int64), self._rows, side="right")
        borders = np.flatnonzero(np.diff(numbers)) + 1
        return tuple(np.diff([0, *borders.tolist(), len(numbers)]).tolist())

    @property
    def names_are_checked(self) -> bool:
        """Whether no two shards have the same name: within one, names are checked when scanned."""
        stems = [Path(index.shard).stem for index in self.indexes]
        return len(set(stems)) == len(stems)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the shards' rows and of the selection, as hex."""
        digest = hashlib.sha256("".join(index.digest for index in self.indexes).encode())
        if self._rows is not None:
            digest.update(np.ascontiguousarray(self._rows, "<i8").data)
        return digest.hexdigest()
