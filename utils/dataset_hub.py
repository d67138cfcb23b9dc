"""Tables of the `datasets` library: by hub name, or a folder of its ``save_to_disk``."""

from collections.abc import Iterator
from pathlib import Path

from utils.cli import UserError, go_offline
from utils.dataset_records import Columns, HubImage, Problem, Table, make_record
from utils.dataset_tables import cell_text, final_columns, project_names

_SPLIT_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


def _import_datasets():
    try:
        import datasets
    except ImportError as error:
        raise UserError("a hub data set needs the package: pip install datasets") from error
    return datasets


def read_hub(name: str, columns: Columns, *, offline: bool) -> Table:
    """Read a data set of the Hugging Face hub, or its cached copy.

    Raises:
        UserError: If it cannot be had; the text says why.
    """
    if offline:
        go_offline()
    datasets = _import_datasets()
    if offline:  # it may have been imported before, and reads the environment only once
        import huggingface_hub

        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        how = "looked for in the local cache only (--offline)" if offline else "tried as hub name"
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name}: no such file or folder; {how}: {reason}") from error
    return table_of(loaded, name, columns)


def read_saved(folder: Path, columns: Columns) -> Table:
    """Read a folder that `datasets.Dataset.save_to_disk` wrote."""
    try:
        loaded = _import_datasets().load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read by `datasets`: {error}") from error
    return table_of(loaded, folder.name, columns)


def table_of(loaded, name: str, columns: Columns) -> Table:
    """Table of a `datasets.Dataset` or `datasets.DatasetDict`; the images stay encoded.

    The image column is found by its type, the label column's numbers become their names, and
    splits called train, validation and test become the column ``split``.
    """
    datasets = _import_datasets()
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    table = Table(root=None, name=name)
    seen: dict[str, None] = {}
    for part, data in parts.items():
        image_column = columns.image or _image_column(data.features, datasets)
        if image_column not in data.features:
            there = ", ".join(data.features)
            detail = f"{image_column or 'of images'} (columns: {there})"
            where = f"{name}:{part}" if part else name
            table.problems.append((None, Problem(where, "missing column", detail)))
            continue
        data = data.cast_column(image_column, datasets.Image(decode=False))
        others = data.remove_columns(image_column)
        prefix = f"{part}/" if part else ""
        for index, row in enumerate(_rows(others, columns, datasets)):
            row["file_name"] = f"{prefix}{index:06d}"
            if part in _SPLIT_NAMES:
                row.setdefault("split", _SPLIT_NAMES[part])
            seen.update(dict.fromkeys(row))
            source = HubImage(data, index, image_column)
            table.records.append(make_record(row, f"{name}:{prefix}{index}", source))
    table.columns = tuple(seen)
    return table


def _image_column(features, datasets) -> str | None:
    return next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)


def _rows(data, columns: Columns, datasets) -> Iterator[dict[str, str]]:
    names = list(data.column_names)
    renamed, _ = project_names(names, columns)
    finals = final_columns(names, renamed)
    for values in data:
        row = {}
        for old, new in zip(names, finals):
            kind, value = data.features[old], values[old]
            if isinstance(kind, datasets.ClassLabel) and value is not None:
                value = kind.int2str(value)
            if new is not None and new != "file_name":
                row[new] = cell_text(value)
        yield row
