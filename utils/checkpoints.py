"""Checkpoints ``checkpoint-<step>``: names, the latest, all-or-nothing saving, pruning.

A checkpoint is filled under a temporary name by every process, sealed with `STATE_FILE`, which
lists the files and their sizes, flushed to the disk and renamed; only then do older ones go. A
folder without the seal, or without a file of the list, is not complete.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from utils.cli import UserError
from utils.run_folder import TEMPORARY_PREFIX, fsync, get_logger, write_json

STATE_FILE = "training_state.json"
LATEST = "latest"
_FILES = "files"  # entry of the state: size in bytes by name
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_TEXTS = ("No space left", "Disk quota exceeded")  # of libraries in compiled code
_ALMOST_NOTHING = 1 << 20  # bytes; torch tells of a failed write without its cause

_NAME = re.compile(r"checkpoint-(\d+)")
_logger = get_logger("checkpoints")


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Folder of the checkpoint after this many optimizer steps."""
    return output_dir / f"checkpoint-{step}"


def checkpoint_step(path: Path) -> int:
    """Number of optimizer steps that a checkpoint's name tells.

    Raises:
        ValueError: If it is not the name of a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path}: not named checkpoint-<step>")
    return int(match[1])


def list_checkpoints(output_dir: Path) -> list[Path]:
    """All checkpoints of a run, complete or not, by step."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a checkpoint is not complete, in words; None if it is."""
    try:
        files = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))[_FILES]
    except FileNotFoundError:
        return f"it has no {STATE_FILE}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {STATE_FILE} is damaged"
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is as it was when its saving came to its end."""
    return what_is_missing(checkpoint) is None


def find_checkpoint(output_dir: Path, target: str) -> Path:
    """The checkpoint that ``--resume_from_checkpoint`` means.

    Args:
        output_dir: The run's folder.
        target: ``latest`` for the last complete one, the name of one in ``output_dir``, or a path.

    Raises:
        UserError: If there is no such checkpoint, or it is not complete.
    """
    if target == LATEST:
        return _latest(output_dir)
    inside = output_dir / Path(target).name
    for path in (Path(target), inside) if len(Path(target).parts) > 1 else (inside, Path(target)):
        if path.is_dir():
            if not _NAME.fullmatch(path.name):
                raise UserError(f"{path}: not a checkpoint, those are named checkpoint-<step>")
            trouble = what_is_missing(path)
            if trouble is not None:
                raise UserError(f"{path}: not a complete checkpoint: {trouble}")
            return path
    raise UserError(f"no checkpoint {target!r}, neither as a path nor in {output_dir}")


def _latest(output_dir: Path) -> Path:
    checkpoints = list_checkpoints(output_dir)
    for path in reversed(checkpoints):
        trouble = what_is_missing(path)
        if trouble is None:
            return path
        _logger.warning("%s is not complete and is passed over: %s", path, trouble)
    raise UserError(
        f"{output_dir} has no complete checkpoint to resume from"
        + (f" ({len(checkpoints)} incomplete)" if checkpoints else "")
    )


def read_state(checkpoint: Path) -> dict:
    """What was stored beside the weights: step, position in the data, seed, ...

    Raises:
        UserError: If it cannot be read.
    """
    path = checkpoint / STATE_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def save_checkpoint(
    output_dir: Path,
    state: Mapping[str, object],
    *,
    fill: Callable[[Path], None],
    barrier: Callable[[], None],
    is_main: bool,
    total_limit: int | None = None,
) -> Path:
    """Save a checkpoint whole or not at all; call it on every process.

    Args:
        output_dir: The run's folder, on a disk that all processes share.
        state: Goes to `STATE_FILE`; has at least ``step``.
        fill: Writes this process's part of the state into a folder.
        barrier: Waits for every process.
        is_main: Whether this process renames, seals and prunes.
        total_limit: Complete checkpoints to keep, this one included; None keeps all.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoint_path(output_dir, int(state["step"]))
    temporary = output_dir / f"{TEMPORARY_PREFIX}{final.name}"
    try:
        with _full_disk_named(final):
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            barrier()
            fill(temporary)
            barrier()
            if is_main:
                write_json(temporary / STATE_FILE, {**state, _FILES: _sizes(temporary)})
                _flush(temporary)
                replace_folder(temporary, final)
                prune_checkpoints(output_dir, total_limit, keep=final)
    except BaseException:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    barrier()
    return final


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """Turn what the libraries raise on a full disk into a message about the folder to be saved."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full_disk(error, path if path.is_dir() else path.parent):
            raise
        raise UserError(
            f"the disk is full: {path} could not be saved ({str(error).splitlines()[0]}). Earlier "
            "checkpoints are whole: make room, then go on with --resume_from_checkpoint latest; "
            "--checkpoints_total_limit keeps fewer of them."
        ) from error


def _is_full_disk(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL_DISK
    if any(text in str(error) for text in _FULL_DISK_TEXTS):
        return True
    is_torch = isinstance(error, RuntimeError) and "inline_container" in str(error)
    return is_torch and shutil.disk_usage(folder).free < _ALMOST_NOTHING


def remove_leftovers(output_dir: Path) -> None:
    """Delete what a killed run left half-written; call it where no other run writes there."""
    for path in output_dir.glob(f"{TEMPORARY_PREFIX}*"):
        _logger.info("removing %s, left by a run that was killed", path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_folder(new: Path, target: Path) -> None:
    """Put a complete folder where another may stand; the old one goes only afterwards."""
    old = target.with_name(f"{TEMPORARY_PREFIX}old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    new.replace(target)
    fsync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def pipeline_folder(output_dir: Path) -> Iterator[Path]:
    """Give a folder to write a pipeline to; its parts then take their places in ``output_dir``.

    Checkpoints and logs that lie there already stay. ``model_index.json`` goes first and comes
    last, so that a mixture of two runs never loads.
    """
    temporary = output_dir / f"{TEMPORARY_PREFIX}pipeline"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    index = "model_index.json"
    try:
        with _full_disk_named(output_dir):
            yield temporary
            _flush(temporary)
            (output_dir / index).unlink(missing_ok=True)
            for part in sorted(temporary.iterdir(), key=lambda path: path.name == index):
                if part.is_dir():
                    replace_folder(part, output_dir / part.name)
                else:
                    part.replace(output_dir / part.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prune_checkpoints(output_dir: Path, total_limit: int | None, *, keep: Path) -> list[Path]:
    """Delete the oldest complete checkpoints beyond the limit, and return them.

    Incomplete ones do not count and are left alone: they are no loss and may be of use.

    Args:
        output_dir: The run's folder.
        total_limit: How many to leave, >= 1; None leaves all.
        keep: The one just written, which stays even where later ones of a former run exist.
    """
    complete = [path for path in list_checkpoints(output_dir) if is_complete(path)]
    too_many = max(0, len(complete) - total_limit) if total_limit else 0
    removed = [path for path in complete if path != keep][:too_many]
    for path in removed:
        # Renamed first, so that a half-deleted one is never taken for a checkpoint.
        doomed = path.with_name(f"{TEMPORARY_PREFIX}old-{path.name}")
        path.replace(doomed)
        shutil.rmtree(doomed)
        _logger.info("removed %s (--checkpoints_total_limit %d)", path, total_limit)
    return removed


def _flush(folder: Path) -> None:
    for path in [*sorted(folder.rglob("*")), folder]:
        fsync(path)
