"""What a run leaves on disk: atomic writes, options.json, hashes, the log and the result.

A file that is there is complete: it is written under a temporary name beside its place, flushed
to the disk, then renamed. Temporary names start with ``.tmp-`` and every reader ignores them.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
FEATURE_CACHE = "feature_cache"  # folder beside a run's, for what scripts find out about images

_RECORDED_PACKAGES = (
    "accelerate",
    "datasets",
    "diffusers",
    "numpy",
    "peft",
    "pillow",
    "safetensors",
    "scipy",
    "torch",
    "torchmetrics",
    "torchvision",
    "transformers",
)


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        fsync(folder)


def _temporary_beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: np.save and Pillow look at it. The stem does not: it may be 255 bytes long.
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}{path.suffix}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path to write; it takes the place of ``path`` only if the block succeeds.

    Args:
        path: The file to write. Its folder is made if missing. An old file stays until the end.

    Yields:
        A path in the same folder with the same suffix, not existing yet.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes ``path`` only if the block succeeds.

    Args:
        path: The folder to make. It must not exist, or be an empty folder.

    Yields:
        An empty folder beside ``path``.

    Raises:
        FileExistsError: At once, if ``path`` is a file or a folder with something in it.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")
    temporary = _temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                fsync(file)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync_folder(path.parent)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file, atomically, line ends as they are in ``text``."""
    write_bytes(path, text.encode("utf-8"))


def to_plain(value: object) -> object:
    """Turn a value into what JSON can hold: NaN and infinities become None, paths text.

    Raises:
        TypeError: If the value (or a part of it) has no plain form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [to_plain(item) for item in items]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        return to_plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def _to_json(value: object) -> str:
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path | str, value: object) -> None:
    """Write a JSON file, atomically; NaN and infinities, which JSON has not, become null."""
    write_text(path, _to_json(value))


class _UnixLines:
    """Ends rows with LF. The csv module must be left to its CRLF, or it does not quote a CR."""

    def __init__(self, handle) -> None:
        self._handle = handle

    def write(self, row: str) -> int:
        return self._handle.write(row.removesuffix("\r\n") + "\n")


def write_csv(
    path: Path | str, rows: Iterable[Mapping[str, object]], fieldnames: Sequence[str]
) -> None:
    """Write a CSV file (UTF-8, LF), atomically; None and missing keys become empty fields.

    Raises:
        ValueError: If a row has a key that is not in ``fieldnames``.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as handle,
    ):
        writer = csv.DictWriter(_UnixLines(handle), fieldnames=list(fieldnames), restval="")
        writer.writeheader()
        writer.writerows(rows)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that change results, those that are installed."""
    found = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_options(output_dir: Path | str, args: argparse.Namespace, **extra: object) -> Path:
    """Write ``options.json``: how this run was started, so that it can be repeated.

    Args:
        output_dir: The run's folder, made if missing.
        args: The parsed flags; functions among them (subcommands) are left out.
        extra: More entries, e.g. ``data_hash=...``.

    Returns:
        The path of the file.
    """
    path = Path(output_dir) / "options.json"
    flags = {name: value for name, value in sorted(vars(args).items()) if not callable(value)}
    options = {
        "script": Path(sys.argv[0]).name,
        "argv": sys.argv[1:],
        "flags": flags,
        "versions": versions(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    write_json(path, options | extra)
    return path


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_folder(path: Path | str, suffixes: Iterable[str] | None = None) -> str:
    """SHA-256 of a folder's file names and contents, as hex; the same on every machine.

    Args:
        path: The folder, read with all that is below it. Names that start with a dot are left out.
        suffixes: Only files that end in one of these, e.g. ``(".safetensors", ".json")``.
    """
    folder = Path(path)
    wanted = None if suffixes is None else tuple(suffixes)
    digest = hashlib.sha256()
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    for name in sorted(name.as_posix() for name in names):
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and (wanted is None or name.endswith(wanted)):
            digest.update(f"{name}\0{sha256_file(folder / name)}\n".encode())
    return digest.hexdigest()


class _ProgressFriendlyHandler(logging.Handler):
    """Writes to the current stderr, above a tqdm bar if one is running."""

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        tqdm_module = sys.modules.get("tqdm")
        if tqdm_module is not None:
            tqdm_module.tqdm.write(message, file=sys.stderr)
        else:
            sys.stderr.write(message + "\n")


def get_logger(name: str) -> logging.Logger:
    """Logger that writes one line per message to stderr and leaves a progress bar whole."""
    logger = logging.getLogger(name)
    if not any(isinstance(handler, _ProgressFriendlyHandler) for handler in logger.handlers):
        handler = _ProgressFriendlyHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def print_result(value: object) -> None:
    """Print a script's result as JSON on stdout, where nothing else is printed."""
    sys.stdout.write(_to_json(value))
    sys.stdout.flush()
