"""Where entries lie in shards (`utils.tensor_shards`), and a view of them as one array on disk."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from utils.cli import UserError


class KeyIndex:
    """Where each key lies; arrays, no objects, so that millions are cheap."""

    def __init__(self, keys: Iterable[np.ndarray], key_bytes: int) -> None:
        """Index shards by their keys, (n, key_bytes) uint8 each; of equal keys the first counts."""
        keys = [*keys, np.empty((0, key_bytes), np.uint8)]
        every = np.ascontiguousarray(np.concatenate(keys)).view(f"S{key_bytes}")[:, 0]
        counts = [len(each) for each in keys]
        order = np.argsort(every, kind="stable")
        self._sorted = every[order]
        self._shards = np.repeat(np.arange(len(keys), dtype=np.int32), counts)[order]
        rows = [np.arange(count, dtype=np.int32) for count in counts]
        self._rows = np.concatenate(rows)[order]

    def __len__(self) -> int:
        return len(self._sorted)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of each key (..., key_bytes) uint8, both (...) int32; -1 if not there."""
        wanted = np.ascontiguousarray(keys).view(self._sorted.dtype)[..., 0]
        shards, rows = np.full((2, *wanted.shape), -1, dtype=np.int32)
        if len(self._sorted):
            places = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
            hit = self._sorted[places] == wanted
            shards[hit], rows[hit] = self._shards[places[hit]], self._rows[places[hit]]
        return shards, rows


class TensorTable:
    """Entries by place, read from memory-mapped shards when asked for.

    Processes forked from this one share the maps; one that gets a pickled copy makes its own.
    """

    def __init__(self, paths: Sequence[Path], shards: np.ndarray, rows: np.ndarray) -> None:
        """Map all shards, so that they may be deleted while this is in use.

        Args:
            paths: The shards.
            shards: Number of the shard of each entry, int, any shape.
            rows: Row of each entry in its shard, of the same shape.
        """
        self.paths = list(paths)
        self.shards = shards
        self.rows = rows
        self._tensors = [map_values(path) for path in self.paths]

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def entry_bytes(self) -> int:
        """Size of one entry's values."""
        return self._tensors[0][0].nbytes

    def __getitem__(self, place: int | tuple[int, ...]) -> torch.Tensor:
        return self._tensors[self.shards[place]][self.rows[place]]

    def gather(self) -> torch.Tensor:
        """All entries in memory, shaped as asked for: (..., *entry_shape)."""
        flat_shards, flat_rows = self.shards.reshape(-1), torch.from_numpy(self.rows.reshape(-1))
        first = self._tensors[0]
        gathered = torch.empty(len(flat_shards), *first.shape[1:], dtype=first.dtype)
        for number, values in enumerate(self._tensors):
            held = torch.from_numpy(np.flatnonzero(flat_shards == number))
            gathered[held] = values[flat_rows[held].long()]
        return gathered.reshape(*self.shards.shape, *first.shape[1:])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_tensors": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._tensors = [map_values(path) for path in self.paths]


def map_values(path: Path) -> torch.Tensor:
    """Values of a shard, (n, ...), memory-mapped: only what is used gets read.

    Raises:
        UserError: If the file is gone or no shard.
    """
    try:
        with safe_open(path, framework="pt") as shard:
            return shard.get_tensor("values")
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(
            f"{path}: gone or changed since it was verified ({error}); start again, and what is "
            "missing is made anew"
        ) from error
