"""Hash of every image's pixels, remembered so that only new and changed files are decoded.

Remembered is a hash of what the file system tells of a file (path, size, inode, times of change)
with the hash of its pixels; no name is kept. The time of change (ctime) cannot be set back by
copying or touching, and a file changed just now is not remembered, for it could change again
within the clock's tick.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from accelerate.utils import gather_object

from utils.dataset_records import HubImage, Record, TarImage
from utils.image_files import DIGEST_BYTES, pixel_hash, read_image
from utils.run_folder import get_logger
from utils.tensor_shards import (
    DamagedShardError,
    Space,
    check_shard,
    existing_part,
    scan,
    write_shard,
)
from utils.tensor_table import map_values
from utils.workers import cores_per_process, map_in_processes

SETTLED_NS = 2_000_000_000  # a file changed within this time may change again unseen

_SHARD_FILES = 2**20
_WHAT = (
    "hashes of images' pixels by hashes of their files' names, sizes and times; neither names nor "
    "pixels can be read from them"
)
_logger = get_logger("cache")


def digest_pixels(records: Sequence[Record], folder: Path, accelerator) -> np.ndarray:
    """`pixel_hash` of every image, (N, 16) uint8; call it on every process, each does its share.

    Args:
        records: The images.
        folder: Where the cache's spaces lie.
        accelerator: Tells the process's share.

    Raises:
        ImageError: If an image cannot be decoded.
    """
    rank, count = accelerator.process_index, accelerator.num_processes
    mine = _digest_share(
        records[rank::count], folder, count, quiet=not accelerator.is_local_main_process
    )
    digests = np.empty((len(records), DIGEST_BYTES), np.uint8)
    for place, share in enumerate(gather_object([mine])):
        digests[place::count] = share
    return digests


def _digest_share(
    records: Sequence[Record], folder: Path, num_processes: int, *, quiet: bool
) -> np.ndarray:
    memory = DigestMemory(folder, records)
    digests = memory.digests
    unknown = np.flatnonzero(~memory.known)
    if len(unknown) == 0:
        return digests
    hub = any(isinstance(records[index].source, HubImage) for index in unknown)
    digests[unknown] = _decode(
        [_source_of(records[index]) for index in unknown],
        num_workers=0 if hub else cores_per_process(num_processes),
        quiet=quiet,
    )
    memory.remember(unknown, digests[unknown])
    return digests


class DigestMemory:
    """What earlier runs remembered of these images.

    Attributes:
        digests: (N, 16) uint8, zeros where not known.
        known: (N,) bool, whether the file is unchanged since its pixels were hashed.
    """

    def __init__(self, folder: Path, records: Sequence[Record]) -> None:
        """Look up N records in a cache's folder, which need not exist."""
        # Another decoder may give other pixels for the same JPEG.
        facts = {"pillow": PIL.__version__, "hash": "blake2b of the 8-bit pixels"}
        self._space = Space(folder, "pixels", facts, (DIGEST_BYTES,), torch.uint8, DIGEST_BYTES)
        self._stamps, self._settled = _stamp(records)
        self.digests, self.known = _recall(self._space, self._stamps)
        self.known &= self._settled

    def remember(self, places: np.ndarray, digests: np.ndarray) -> None:
        """Write digests (n, 16) uint8 of images at these places; of a read-only folder nothing."""
        writable = os.access(existing_part(self._space.folder), os.W_OK)
        kept = self._settled[places] & writable
        places, digests = places[kept], digests[kept]
        for at in range(0, len(places), _SHARD_FILES):
            self._space.describe(_WHAT)
            part = slice(at, at + _SHARD_FILES)
            write_shard(self._space, self._stamps[places[part]], torch.from_numpy(digests[part]))


def _source_of(record: Record):
    return record.image_source, str(record.path or record.file_name)


def _decode(sources: Sequence, *, num_workers: int, quiet: bool) -> np.ndarray:
    """(n, 16) uint8."""
    hashes = map_in_processes(
        _hash_image, sources, description="hash pixels", num_workers=num_workers, quiet=quiet
    )
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, DIGEST_BYTES)


def _hash_image(source: tuple[str | Callable, str]) -> str:
    return pixel_hash(read_image(source[0], name=source[1]))


def _stamp(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Hash of each file's state (N, 16) uint8, and whether it can be relied on, (N,) bool."""
    now = time.time_ns()
    stamps = np.zeros((len(records), DIGEST_BYTES), np.uint8)
    settled = np.zeros(len(records), bool)
    tars: dict[str, tuple[str, bool]] = {}
    for place, record in enumerate(records):
        source = record.source
        if isinstance(source, HubImage):
            continue  # no file of its own: decoded at every start
        if isinstance(source, TarImage):
            if source.tar not in tars:
                tars[source.tar] = _file_state(source.tar, now)
            state, settled[place] = tars[source.tar]
            state = f"{state}\0{source.offset}\0{source.size}"
        else:
            state, settled[place] = _file_state(source, now)
        digest = hashlib.blake2b(state.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES)
        stamps[place] = np.frombuffer(digest.digest(), np.uint8)
    return stamps, settled


def _file_state(path: str, now: int) -> tuple[str, bool]:
    status = os.stat(path)  # noqa: PTH116 (a Path for each of a million files takes seconds)
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    # normpath of an absolute path alone: abspath asks for the working folder every time
    absolute = path if path.startswith("/") else os.path.abspath(path)  # noqa: PTH100
    return "\0".join((absolute, *map(str, parts))), changed + SETTLED_NS < now


def _recall(space: Space, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Digests (N, 16) uint8 remembered for these stamps, and which are, (N,) bool."""
    found = scan(space)
    for name, reason in found.damaged.items():
        _forget(space.folder / name, reason)
    shards, rows = found.index.find(stamps)
    digests = np.zeros((len(stamps), DIGEST_BYTES), np.uint8)
    known = shards >= 0
    for number in np.unique(shards[known]):
        path, held = found.paths[number], shards == number
        try:
            check_shard(path, space)
        except DamagedShardError as error:
            _forget(path, str(error))
            known &= ~held
            continue
        except FileNotFoundError:
            known &= ~held
            continue
        digests[held] = map_values(path).numpy()[rows[held]]
    return digests, known


def _forget(path: Path, reason: str) -> None:
    _logger.warning("%s: %s; deleted, its images are decoded again", path, reason)
    path.unlink(missing_ok=True)
