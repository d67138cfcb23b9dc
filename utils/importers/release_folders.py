"""A data set's release as it lies unpacked: where it begins, and what is in its folders.

Names that start with a dot are left out: macOS leaves ``._NAME`` beside each file it unpacks.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

Items = TypeVar("Items", bound=Sequence)


def first_with(source: Path, places: Sequence[str], marks: Collection[str]) -> Path:
    """The first of these places below a source that has one of the marks; else the source.

    Args:
        source: The folder that the user named.
        places: Folders below it where the release may begin, ``""`` for itself.
        marks: Names of folders or files, relative to the place; one is enough.
    """
    for place in places:
        if any((source / place / mark).exists() for mark in marks):
            return source / place
    return source


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none if it is not there."""
    return _names(folder, lambda entry: entry.is_dir())


def file_names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files with one of these suffixes (lower case, with the dot), sorted."""
    return _names(folder, lambda entry: _has_suffix(entry, suffixes) and entry.is_file())


def has_file(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a folder has a file with one of these suffixes; ends at the first."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_has_suffix(entry, suffixes) and entry.name[0] != "." for entry in entries)


def _has_suffix(entry: os.DirEntry, suffixes: tuple[str, ...]) -> bool:
    return entry.name.lower().endswith(suffixes)


def _names(folder: Path, is_wanted: Callable[[os.DirEntry], bool]) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and is_wanted(entry))


def central(items: Items, count: int | None) -> Items:
    """The middle ones of a series; all if no count is given, or there are not more.

    For volumes that come as one file per B-scan: the fovea lies near the middle of a macular
    raster, and to look for it would need every pixel.
    """
    if count is None or count >= len(items):
        return items
    start = (len(items) - count) // 2
    return items[start : start + count]


def relative(path: Path, source: Path) -> str:
    """A path as messages name it: relative to the source, with forward slashes."""
    return path.relative_to(source).as_posix()
