"""A run folder that the same command continues, and that no other command may touch."""

import argparse
import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from utils.cli import UserError
from utils.run_folder import TEMPORARY_PREFIX, to_plain, write_options

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed there
    fcntl = None


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder against a second run that would write to it; a killed run holds nothing.

    Raises:
        UserError: If another run holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--output_dir {folder}: another run is writing to it") from error
        yield
    finally:
        os.close(descriptor)


def open_run(
    folder: Path,
    args: argparse.Namespace,
    *,
    identity: Mapping[str, object],
    free_flags: Collection[str],
    outputs: Collection[str],
    overwrite: bool,
) -> None:
    """Make a folder ready: new with options.json, or checked to hold the same run.

    Args:
        folder: Exists, and nobody else writes to it.
        args: The parsed flags.
        identity: What decides over the result beside the flags, e.g. hashes of the inputs; goes
            to options.json.
        free_flags: Flags that may differ, for they change nothing of the result.
        outputs: Patterns of the files a run writes, e.g. ``images/*.png``.
        overwrite: Delete what an earlier run wrote and start anew.

    Raises:
        UserError: If the folder holds another run, or something else.
    """
    options_path = folder / "options.json"
    if options_path.exists() and not overwrite:
        _check_same_run(args, identity, free_flags, options_path)
    for path in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        path.unlink()  # of a run that was killed
    if options_path.exists() and overwrite:
        _delete_run(folder, outputs)
    if options_path.exists():
        return
    if any(folder.iterdir()):
        raise UserError(
            f"--output_dir {folder}: not empty, and without options.json no run of this script; "
            "name another folder"
        )
    write_options(folder, args, **identity)


def _check_same_run(
    args: argparse.Namespace,
    identity: Mapping[str, object],
    free_flags: Collection[str],
    options_path: Path,
) -> None:
    try:
        options = json.loads(options_path.read_text(encoding="utf-8"))
        flags_before = dict(options["flags"])
        identity_before = {name: options[name] for name in identity}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{options_path}: not of a run of this script ({error}); name another --output_dir"
        ) from error
    flags = to_plain(vars(args))
    pairs = [
        (f"--{name}", flags_before.get(name), flags.get(name))
        for name in sorted(flags_before.keys() | flags.keys())
        if name not in free_flags
    ]
    pairs += [(name, identity_before[name], value) for name, value in identity.items()]
    changes = [
        f"  {name}: {json.dumps(before)} before, {json.dumps(now)} now"
        for name, before, now in pairs
        if before != now
    ]
    if changes:
        raise UserError(
            "\n".join(
                [
                    f"--output_dir {options_path.parent} holds a run that was started otherwise:",
                    *changes,
                    "Repeat the old flags, name another folder, or start anew with --overwrite.",
                ]
            )
        )


def _delete_run(folder: Path, outputs: Collection[str]) -> None:
    """Delete what a run writes, and nothing else; options.json last."""
    paths = [path for pattern in outputs for path in folder.glob(pattern)]
    for path in paths:
        path.unlink()
    for parent in {path.parent for path in paths} - {folder}:
        if not any(parent.iterdir()):
            parent.rmdir()
    (folder / "options.json").unlink()
