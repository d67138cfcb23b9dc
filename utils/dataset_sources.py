"""Find out what a data source is, and read its list of images: no pixel is touched here."""

import os
from collections.abc import Iterator
from pathlib import Path

from utils.cli import UserError, looks_like_hub_name
from utils.dataset_records import Columns, Table, make_record
from utils.dataset_tables import METADATA_NAMES, read_table
from utils.dicom import is_dicom_file
from utils.image_files import IMAGE_SUFFIXES

_SPLIT_FOLDERS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_NAMELESS_FILES = 100  # without a suffix, looked into to tell what they are
_SAVED_TABLES = ("dataset_dict.json", "dataset_info.json")  # of `datasets`' save_to_disk


def read_source(source: Path | str, columns: Columns, *, offline: bool) -> Table:
    """Read the table of any data source.

    Args:
        source: A dataset folder, a folder of class folders (below train, val and test or not), a
            flat folder of images, a CSV, WebDataset shards (``*.tar``, also by glob or brace
            range), a folder of shards, a folder of `datasets`' ``save_to_disk``, a hub name.
        columns: Names of the user's columns.
        offline: Whether downloads are forbidden.

    Raises:
        UserError: If the source does not exist or is none of these.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, columns)
    if str(source).endswith(".tar"):
        from utils.dataset_shards import read_shards

        return read_shards(str(path), columns)
    if path.is_file():
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise UserError(f"{source}: a file, but neither .csv, .jsonl nor .tar")
        return read_table(path, columns, foreign=path.name not in METADATA_NAMES)
    if not looks_like_hub_name(str(source)):
        raise UserError(f"{source}: no such file or folder")
    from utils.dataset_hub import read_hub

    return read_hub(str(source), columns, offline=offline)


def _read_folder(folder: Path, columns: Columns) -> Table:
    tables = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(tables) > 1:
        raise UserError(f"{folder}: has {' and '.join(METADATA_NAMES)}; keep one")
    if tables:
        return read_table(tables[0], columns, foreign=False)
    if any((folder / name).is_file() for name in _SAVED_TABLES):
        from utils.dataset_hub import read_saved

        return read_saved(folder, columns)
    if any(entry.suffix == ".tar" for entry in folder.iterdir()):
        from utils.dataset_shards import read_shards

        return read_shards(f"{folder}/*.tar", columns)
    return _read_class_folders(folder)


def walk_with_links(folder: str) -> Iterator[tuple[str, str]]:
    """Relative name and path of every file below, in order of name; dot names are left out.

    Links to folders are followed, but for those to a folder that they lie in.
    """
    return _walk(folder, "", frozenset())


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, str]]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder it lies in
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {real})
            else:
                yield prefix + entry.name, entry.path


def _is_dicom(path: str) -> bool:
    try:
        return is_dicom_file(path)
    except OSError:
        return False  # it is left out as any file without a suffix


def _read_class_folders(folder: Path) -> Table:
    """The names of the folders are the labels; below train, val and test they are splits too."""
    files = list(walk_with_links(str(folder)))
    tables = [name for name, _ in files if name.split("/")[-1] in METADATA_NAMES]
    if tables:  # taking folders for labels would lose what it says
        where = ", ".join(tables)
        raise UserError(f"{folder}: no metadata.csv in it, but {where}; give that folder")
    images = [file for file in files if file[0].lower().endswith(IMAGE_SUFFIXES)]
    tops = {name.split("/")[0] for name, _ in images if "/" in name}
    in_splits = bool(tops) and tops <= set(_SPLIT_FOLDERS)
    table = Table(root=folder, name=folder.name)
    labelled = False
    for name, path in images:
        folders = name.split("/")[:-1]
        row = {"file_name": name}
        if in_splits and folders:
            row["split"] = _SPLIT_FOLDERS[folders.pop(0)]
        if folders:
            row["label"] = folders[0]
            labelled = True
        table.records.append(make_record(row, name, path))
    table.columns = ("file_name", *["label"] * labelled, *["split"] * in_splits)
    others = [name for name, _ in files if not name.lower().endswith(IMAGE_SUFFIXES)]
    if others:
        table.notes.append(f"{len(others)} files are no images and left out, first: {others[0]}")
    nameless = [path for name, path in files if "." not in name.split("/")[-1]]
    if any(_is_dicom(path) for path in nameless[:_NAMELESS_FILES]):
        note = "DICOM files without a suffix are among them; import --layout dicom takes such"
        table.notes.append(note)
    return table
