"""Parts of a source's tree: which of several places holds a file, and what to say if none does."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def find_table(root: Path, *names: str) -> Path | None:
    """The first of some tables that lies in a folder, as CSV or CSV.GZ; None if none does.

    Args:
        root: The folder.
        names: In order of preference, as they are distributed; with ``.gz`` or without, either
            form is found.
    """
    for name in names:
        plain = name.removesuffix(".gz")
        for candidate in (root / f"{plain}.gz", root / plain):
            if candidate.is_file():
                return candidate
    return None


def missing_part(root: Path, name: str, holds: str) -> str:
    """The sentence about a part that is not there."""
    return f"{name} is not in {root}: {holds}"


class FileFinder:
    """Finds files that lie in one of several folders; neighbours mostly lie together."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """Take the folders, in order of preference."""
        self._folders = list(folders)

    def find(self, names: Sequence[str]) -> Path | None:
        """The first that exists of some relative names; None if none does."""
        for number, folder in enumerate(self._folders):
            for name in names:
                if (folder / name).is_file():
                    self._folders.insert(0, self._folders.pop(number))
                    return folder / name
        return None
