"""ChestX-ray14 of the NIH Clinical Center: labels by image, PNGs in twelve folders.

https://nihcc.app.box.com/v/ChestXray-NIHCC, free to use with citation of Wang et al. 2017
(https://arxiv.org/abs/1705.02315) and the NIH Clinical Center named as the source. No reports.
"""

from collections.abc import Iterator
from pathlib import Path

from utils.dataset_records import Problem
from utils.importers.chest_views import is_wanted_view, missing_laterals
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import has_file
from utils.importers.row_lookup import index_rows
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex
from utils.importers.tree_parts import FileFinder, find_table, missing_part

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_REQUIRED = ("Image Index", "Finding Labels", "Patient ID", "View Position")
_TREE = """\
nih14/
  Data_Entry_2017_v2020.csv            labels, patients, views (or Data_Entry_2017.csv)
  train_val_list.txt  test_list.txt    the official split
  images_001/images/00000001_000.png   images, to images_012; or all in images/
"""


def _image_folders(root: Path) -> list[Path]:
    numbered = (root / f"images_{number:03d}" / "images" for number in range(1, 13))
    return [*numbered, root / "images"]


def _missing(root: Path, options: LayoutOptions) -> list[str]:
    parts = missing_laterals(options.views)
    if find_table(root, *_TABLES) is None:
        parts.append(missing_part(root, " or ".join(_TABLES), "the labels of each image"))
    for split, name in _LISTS.items():
        if not (root / name).is_file():
            parts.append(missing_part(root, name, f"the images of the official {split} set"))
    if not any(has_file(folder, (".png",)) for folder in _image_folders(root)):
        parts.append(missing_part(root, "images_001/images/*.png or images/*.png", "the images"))
    return parts


def _split_rows(root: Path) -> Iterator[dict[str, str]]:
    for split, name in _LISTS.items():
        with (root / name).open(encoding="utf-8") as stream:
            yield from ({"name": line.strip(), "split": split} for line in stream if line.strip())


def _images(
    root: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    table = find_table(root, *_TABLES)
    splits = index_rows(index, _split_rows(root), columns=("name", "split"))
    files = FileFinder(_image_folders(root))
    for line, row in index.stream(table, _REQUIRED):
        if not is_wanted_view(row["View Position"], options.views):
            continue
        where = f"{table.name}:{line}"
        name = row["Image Index"]
        path = files.find([name])
        told = {row["split"] for row in splits.all(name)}
        if path is None:
            yield Problem(where, "missing file", name)
        elif len(told) > 1:
            yield Problem(where, "in two splits", f"{name} is in {' and '.join(_LISTS.values())}")
        elif not told:
            lists = " or ".join(_LISTS.values())
            yield Problem(where, "unknown split", f"{name} is not in {lists}")
        else:
            columns = {
                "label": row["Finding Labels"].replace("|", ";"),
                "patient_id": row["Patient ID"],
                "split": told.pop(),
                "source": "ChestX-ray14",
                "modality": "CXR",
                "view": row["View Position"],
            }
            yield SourceImage(str(path), name, columns, where)


LAYOUTS = (
    Layout(
        name="nih14",
        modality="CXR",
        columns=("label", "patient_id", "split", "source", "modality", "view"),
        tree=_TREE,
        missing=_missing,
        images=_images,
    ),
)
