"""Tensors by key, in a folder of safetensors shards: written whole or not at all, verified, mapped.

A `Space` is one folder of entries of one shape, one type and one origin, told in its
``about.json``. A shard holds some of them as ``values`` (n, ...); its metadata has their keys and
the SHA-256 of all that counts. It is named by that hash, so any number of processes may write into
one folder, and twice the same is once. Deleting shards loses their entries only.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save

from utils.run_folder import TEMPORARY_PREFIX, atomic_path, write_json
from utils.tensor_table import KeyIndex

FORMAT_VERSION = 1
SHARD_BYTES = 128 * 2**20  # what is lost if a build is killed, and is held in memory
SHARD_ENTRIES = 4096
GONE = "gone"  # why a shard cannot be checked that another process sees
LEFTOVER_SECONDS = 3600  # a temporary file this old has no writer any more

_SUFFIX = ".safetensors"
_NAME_DIGITS = 32
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_BLOCK_BYTES = 8 * 2**20
_TYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


class DamagedShardError(ValueError):
    """A file that is not a whole shard of its space; the text says why."""


@dataclass(frozen=True)
class Space:
    """A folder of entries of one shape, type and origin.

    Attributes:
        root: Where spaces lie.
        kind: First part of the folder's name.
        facts: All that entries depend on besides their key; JSON.
        entry_shape: Of one entry.
        dtype: Of the values.
        key_bytes: Length of a key.
    """

    root: Path
    kind: str
    facts: Mapping[str, object]
    entry_shape: tuple[int, ...]
    dtype: torch.dtype
    key_bytes: int

    @property
    def identity(self) -> str:
        """Hash of everything but the root, 16 hexadecimal digits."""
        text = json.dumps(self._description(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where the shards lie."""
        return self.root / f"{self.kind}-{self.identity}"

    @property
    def entry_bytes(self) -> int:
        """Disk space of one entry with its key."""
        return math.prod(self.entry_shape) * self.dtype.itemsize + 2 * self.key_bytes

    @property
    def shard_entries(self) -> int:
        """How many entries make a full shard."""
        return max(1, min(SHARD_ENTRIES, SHARD_BYTES // self.entry_bytes))

    def _description(self) -> dict:
        return {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "entry_shape": list(self.entry_shape),
            "dtype": _TYPE_NAMES[self.dtype],
            **self.facts,
        }

    def describe(self, what: str) -> None:
        """Write about.json, with a sentence for whoever finds the folder."""
        if not (self.folder / "about.json").exists():
            write_json(self.folder / "about.json", {"what": what} | self._description())


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists already."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


class _Header(NamedTuple):
    keys: np.ndarray  # (n, key_bytes) uint8
    sha256: str
    data_start: int
    data_bytes: int


def write_shard(space: Space, keys: np.ndarray, values: torch.Tensor) -> Path:
    """Write entries as one shard, atomically, and return its path.

    Args:
        space: Where they belong.
        keys: (n, key_bytes) uint8, n >= 1.
        values: (n, *entry_shape) of the space's type, on the CPU.
    """
    assert values.shape == (len(keys), *space.entry_shape), (values.shape, space.entry_shape)
    assert values.dtype == space.dtype, (values.dtype, space.dtype)
    values = values.contiguous()
    digest = _start_digest(space, keys)
    digest.update(values.reshape(-1).view(torch.uint8).numpy())
    metadata = {
        "space": space.identity,
        "keys": keys.tobytes().hex(),
        "sha256": digest.hexdigest(),
    }
    path = space.folder / f"{digest.hexdigest()[:_NAME_DIGITS]}{_SUFFIX}"
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({"values": values}, metadata))
    return path


def _start_digest(space: Space, keys: np.ndarray):
    digest = hashlib.sha256(f"{space.identity}\0{len(keys)}\0".encode())
    digest.update(np.ascontiguousarray(keys))
    return digest


def _read_header(path: Path, space: Space) -> _Header:
    """Header of a shard; the values are not read.

    Raises:
        DamagedShardError: If it cannot be a shard of this space, or is cut short.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise DamagedShardError("not a safetensors file")
            header = json.loads(stream.read(length))
        metadata, values = header["__metadata__"], header["values"]
        keys = np.frombuffer(bytes.fromhex(metadata["keys"]), dtype=np.uint8)
        keys = keys.reshape(-1, space.key_bytes)
        found = (metadata["space"], values["dtype"], values["shape"], set(header))
        wanted = (
            *(space.identity, _TYPE_NAMES[space.dtype], [len(keys), *space.entry_shape]),
            {"__metadata__", "values"},
        )
        start, end = values["data_offsets"]
        sha256 = metadata["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedShardError(f"no header of a shard: {error}") from error
    if found != wanted:
        raise DamagedShardError("of another cache")
    num_bytes = len(keys) * math.prod(space.entry_shape) * space.dtype.itemsize
    if (start, end) != (0, num_bytes) or path.stat().st_size != 8 + length + num_bytes:
        raise DamagedShardError("cut short, or longer than it should be")
    return _Header(keys, sha256, 8 + length, num_bytes)


def check_shard(path: Path, space: Space) -> None:
    """Hash a shard and compare.

    Raises:
        DamagedShardError: If it is not what was written.
        FileNotFoundError: If it is gone.
    """
    header = _read_header(path, space)
    digest = _start_digest(space, header.keys)
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as stream:
        stream.seek(header.data_start)
        while count := stream.readinto(block):
            digest.update(block[:count])
    if digest.hexdigest() != header.sha256:
        raise DamagedShardError("its hash is another than when it was written")


def find_damaged(paths: Sequence[Path], space: Space, *, num_threads: int) -> dict[str, str]:
    """Check shards (`check_shard`) at the disk's speed; name and reason of those not sound."""

    def trouble(path: Path) -> str | None:
        try:
            check_shard(path, space)
        except DamagedShardError as error:
            return str(error)
        except FileNotFoundError:
            return GONE
        return None

    with ThreadPoolExecutor(num_threads) as pool:  # hashing releases the interpreter's lock
        reasons = pool.map(trouble, paths)
        return {path.name: reason for path, reason in zip(paths, reasons) if reason is not None}


class Scan(NamedTuple):
    """What lies in a space's folder.

    Attributes:
        index: Keys of all shards whose header is sound.
        paths: These shards, as the index numbers them.
        damaged: Name and reason of shards that are not.
        foreign: Names of files that no one here wrote.
    """

    index: KeyIndex
    paths: list[Path]
    damaged: dict[str, str]
    foreign: list[str]


def scan(space: Space) -> Scan:
    """Read the headers of all shards; temporary files whose writer died are removed."""
    paths, keys, damaged, foreign = [], [], {}, []
    for path in sorted(space.folder.iterdir()) if space.folder.is_dir() else ():
        if path.name.startswith(TEMPORARY_PREFIX):
            _remove_leftover(path)
        elif not _is_shard_name(path):
            foreign += [path.name] * (path.name != "about.json")
        else:
            try:
                keys.append(_read_header(path, space).keys)
                paths.append(path)
            except DamagedShardError as error:
                damaged[path.name] = str(error)
            except FileNotFoundError:  # another run removed it meanwhile
                continue
    return Scan(KeyIndex(keys, space.key_bytes), paths, damaged, foreign)


def _is_shard_name(path: Path) -> bool:
    digits = set(path.stem) <= set("0123456789abcdef") and len(path.stem) == _NAME_DIGITS
    return path.suffix == _SUFFIX and digits and path.is_file()


def _remove_leftover(path: Path) -> None:
    try:
        if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
            path.unlink()
    except (FileNotFoundError, PermissionError):  # removed by another run, or not ours
        return
