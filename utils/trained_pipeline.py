"""A pipeline of one folder as the result of another: its files, not copies, where the disk can."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from utils.checkpoints import replace_folder
from utils.json_file import read_json
from utils.run_folder import TEMPORARY_PREFIX, atomic_folder

_FILES = ("model_index.json", "model_card.md", "options.json")


def publish_pipeline(source: Path, target: Path) -> None:
    """Bring a pipeline to a place, whole or not at all; an older one there goes only afterwards.

    Args:
        source: Pipeline folder; what else lies in it stays there.
        target: Where it is to be.
    """
    fresh = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    parts = read_json(source / "model_index.json")
    with atomic_folder(fresh) as temporary:
        for path in sorted(source.iterdir()):
            if path.is_dir() and path.name in parts:
                shutil.copytree(path, temporary / path.name, copy_function=_link_or_copy)
            elif path.name in _FILES:
                _link_or_copy(path, temporary / path.name)
    replace_folder(fresh, target)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
