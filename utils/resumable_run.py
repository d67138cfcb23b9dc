"""A run folder that the same command continues, and that no other command may touch."""

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from utils.cli import UserError
from utils.run_folder import TEMPORARY_PREFIX, to_plain, write_options

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed there
    fcntl = None


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[int | None]:
    """Hold a folder against a second run that would write to it; a killed run holds nothing.

    Yields:
        The descriptor that holds it; None where the system has no such locks.

    Raises:
        UserError: If another run holds it.
    """
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--output_dir {folder}: another run is writing to it") from error
        yield descriptor
    finally:
        os.close(descriptor)


def open_run(
    folder: Path,
    args: argparse.Namespace,
    *,
    identity: Mapping[str, object],
    free_flags: Collection[str],
    outputs: Collection[str],
    anew: bool,
) -> None:
    """Make a folder ready: new with options.json, or checked to hold the same run.

    Args:
        folder: Exists, and nobody else writes to it.
        args: The parsed flags.
        identity: What decides over the result beside the flags, e.g. hashes of the inputs; goes
            to options.json, which is known by these entries to be of the same script.
        free_flags: Flags that may differ, for they change nothing of the result.
        outputs: Patterns of the files a run writes, e.g. ``images/*.png``.
        anew: Delete what an earlier run wrote, whatever its flags.

    Raises:
        UserError: If the folder holds another run, or files of another origin.
    """
    options = _read_options(folder / "options.json", identity)
    if options is not None and not anew:
        _check_same_run(folder, options, args, identity, free_flags)
    for path in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        # Of a run that was killed.
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if options is None or anew:
        own = [] if options is None else [*outputs, "options.json"]
        _empty_folder(folder, own)
        write_options(folder, args, **identity)


def _read_options(path: Path, identity: Mapping[str, object]) -> dict | None:
    if not path.exists():
        return None
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); name another --output_dir") from error
    if not isinstance(options, dict) or not {"flags", *identity} <= options.keys():
        raise UserError(f"{path}: of a run of another script; name another --output_dir")
    return options


def _check_same_run(
    folder: Path,
    options: Mapping,
    args: argparse.Namespace,
    identity: Mapping[str, object],
    free_flags: Collection[str],
) -> None:
    before, now = options["flags"], to_plain(vars(args))
    changes = [
        f"  --{name}: {json.dumps(before.get(name))} before, {json.dumps(now.get(name))} now"
        for name in sorted(before.keys() | now.keys())
        if name not in free_flags and before.get(name) != now.get(name)
    ]
    changes += [
        f"  {name}: {json.dumps(options[name])} before, {json.dumps(value)} now"
        for name, value in identity.items()
        if options[name] != value
    ]
    if changes:
        raise UserError(
            f"--output_dir {folder} holds a run that was started otherwise:\n"
            + "\n".join(changes)
            + "\nRepeat the old flags, name another folder, or start anew with --overwrite."
        )


def _empty_folder(folder: Path, own: Collection[str]) -> None:
    """Delete the files that match the patterns ``own``, unless there are others too."""
    ours = {path for pattern in own for path in folder.glob(pattern) if not path.is_dir()}
    foreign = sorted(path for path in folder.rglob("*") if path.is_file() and path not in ours)
    if foreign:
        raise UserError(
            f"--output_dir {folder}: holds files that are not of a run of this script, first: "
            f"{foreign[0].relative_to(folder)}; name another folder"
        )
    # The options go last: as long as they are there, a deletion that was stopped can be repeated.
    for path in sorted(ours, key=lambda path: path.name == "options.json"):
        path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
