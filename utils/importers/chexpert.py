"""CheXpert and CheXpert Plus as Stanford AIMI distributes them.

https://stanfordaimi.azurewebsites.net/datasets/8cbd9ed4-2eb9-4565-affc-111cf4f7ebe2 (CheXpert) and
https://stanfordaimi.azurewebsites.net/datasets/5158c524-d3ab-4e02-96e9-6ee9efc110a1 (Plus), both
under Stanford's research use agreement (no sharing, no commercial use). Irvin et al. 2019
(https://arxiv.org/abs/1901.07031), Chambon et al. 2024 (https://arxiv.org/abs/2405.19538).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from utils.cli import UserError
from utils.dataset_records import Problem
from utils.importers.chest_views import is_wanted_view
from utils.importers.chexpert_labels import OBSERVATIONS, label_columns
from utils.importers.counts import tell_counts
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.row_lookup import index_rows, json_lines
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex
from utils.importers.tree_parts import FileFinder, find_table, missing_part
from utils.line_text import fold_spaces

_TABLES = {"train": ("train.csv",), "valid": ("valid.csv",)}
_TEST_TABLES = ("test.csv", "test_labels.csv")  # the test set is a distribution of its own
_PLUS_TABLE = "df_chexpert_plus_240401.csv"
# CheXbert's labels of the impression first: as CheXpert's own, they come from that section.
_PLUS_LABELS = tuple(f"{name}_fixed.json" for name in ("impression", "report", "findings"))
_PLUS_LABEL_FOLDERS = ("chexbert_labels", ".")
_PLUS_LABEL_COLUMNS = ("path_to_image", *OBSERVATIONS)
_PLUS_SUFFIXES = (".png", ".dcm", ".jpg")
_SPLIT_NAMES = {"train": "train", "valid": "val", "test": "test"}
_PATH = re.compile(
    r"(?:.*/)?(?P<set>train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<image>[^/]+)"
)

_TREE = """\
CheXpert-v1.0-small/                             (or CheXpert-v1.0/)
  train.csv  valid.csv                           labels, views; test.csv if it is there
  train/patient00001/study1/view1_frontal.jpg    images; also in the folders of the batches:
                                                 "CheXpert-v1.0 batch 2 (train 1)"/patient00001/…
"""
_PLUS_TREE = """\
chexpert-plus/
  df_chexpert_plus_240401.csv                    sections of the reports, views, split
  chexbert_labels/impression_fixed.json          labels, or report_ or findings_fixed.json
  PNG/train/patient00001/study1/view1_frontal.png
                                                 images; also without PNG/, in the folders of the
                                                 chunks, or DICOM/ with .dcm
"""


def _image_folders(root: Path) -> list[Path]:
    return [root, *sorted(root.glob("CheXpert-v1.0 batch*"))]


def _plus_folders(root: Path) -> list[Path]:
    folders = [root, *sorted(root.glob("*chexpert_plus_chunk*"))]
    folders += sorted(root.glob("PNG/*chexpert_plus_chunk*"))
    kinds = ("PNG", "DICOM", "DICOM/Uncompressed", "DICOM/Compressed")
    return [*folders, *(folder / kind for folder in folders for kind in kinds)]


def _has_images(folders: list[Path], suffixes: tuple[str, ...]) -> bool:
    places = ("train/patient*", "valid/patient*", "patient*")
    return any(
        next(folder.glob(f"{place}/study*/*{suffix}"), None)
        for folder in folders
        for place in places
        for suffix in suffixes
    )


def _missing(root: Path, options: LayoutOptions) -> list[str]:
    del options
    parts = []
    for split, names in _TABLES.items():
        if find_table(root, *names) is None:
            parts.append(missing_part(root, names[0], f"labels and views of the {split} set"))
    if not _has_images(_image_folders(root), (".jpg",)):
        name = "train/patient00001/study1/view1_frontal.jpg"
        parts.append(missing_part(root, name, "the images"))
    return parts


def _images(
    root: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    files = FileFinder(_image_folders(root))
    for names in (*_TABLES.values(), _TEST_TABLES):
        table = find_table(root, *names)
        if table is None:
            continue  # the test set's
        for line, row in index.stream(table, ["Path", *OBSERVATIONS]):
            where = f"{table.name}:{line}"
            parts = _PATH.fullmatch(row["Path"])
            if parts is None:
                yield Problem(where, "unknown path", f"{row['Path']!r} names no patient and study")
                continue
            view = _view(parts["image"], row.get("AP/PA", ""))
            if not is_wanted_view(view, options.views):
                continue
            image = "/".join((parts["patient"], parts["study"], parts["image"]))
            path = files.find([f"{parts['set']}/{image}", image])
            if path is None:
                yield Problem(where, "missing file", f"{parts['set']}/{image}")
                continue
            columns = {**label_columns(row), **_row(parts, view), "source": "CheXpert"}
            yield SourceImage(str(path), f"{parts['set']}/{image}", columns, where)


def _view(image: str, position: str) -> str:
    """AP, PA, LL, … where the table says it, else what the file's name says."""
    return position.strip() or ("frontal" if "frontal" in image else "lateral")


def _row(parts: re.Match, view: str) -> dict[str, str]:
    return {
        "patient_id": parts["patient"],
        "split": _SPLIT_NAMES[parts["set"]],
        "modality": "CXR",
        "study_id": f"{parts['patient']}/{parts['study']}",
        "view": view,
    }


def _plus_label_file(root: Path) -> Path | None:
    files = (root / folder / name for name in _PLUS_LABELS for folder in _PLUS_LABEL_FOLDERS)
    return next((path for path in files if path.is_file()), None)


def _plus_missing(root: Path, options: LayoutOptions) -> list[str]:
    del options
    parts = []
    if find_table(root, _PLUS_TABLE) is None:
        parts.append(missing_part(root, _PLUS_TABLE, "the reports, views and split"))
    if _plus_label_file(root) is None:
        name = " or ".join(f"chexbert_labels/{name}" for name in _PLUS_LABELS)
        parts.append(missing_part(root, name, "the labels"))
    if not _has_images(_plus_folders(root), _PLUS_SUFFIXES):
        name = "PNG/train/patient00001/study1/view1_frontal.png"
        parts.append(missing_part(root, name, "the images"))
    return parts


def _plus_images(
    root: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    table = find_table(root, _PLUS_TABLE)
    label_file = _plus_label_file(root)
    labels = index_rows(index, _plus_labels(label_file), columns=_PLUS_LABEL_COLUMNS)
    unlabelled: Counter[str] = Counter()
    files = FileFinder(_plus_folders(root))
    sections = [f"section_{name}" for name in options.report_sections]
    sections = [name.replace("indication", "clinical_history") for name in sections]
    for line, row in index.stream(table, ["path_to_image", "ap_pa", "split"]):
        where = f"{table.name}:{line}"
        parts = _PATH.fullmatch(row["path_to_image"])
        if parts is None:
            text = f"{row['path_to_image']!r} names no patient and study"
            yield Problem(where, "unknown path", text)
            continue
        view = _view(parts["image"], row["ap_pa"])
        if not is_wanted_view(view, options.views):
            continue
        stem = row["path_to_image"].rpartition(".")[0]
        path = files.find([f"{stem}{suffix}" for suffix in _PLUS_SUFFIXES])
        text = _plus_text(row, sections)
        if path is None:
            yield Problem(where, "missing file", f"{stem}.png or .dcm")
        elif sections and not text:
            yield Problem(where, "empty text", f"no {' or '.join(sections)}")
        else:
            told = labels.get(row["path_to_image"])
            unlabelled[f"not in {label_file.name}"] += told is None
            columns = {"text": text, **label_columns(told)}
            columns |= _row(parts, view) | {"source": "CheXpert Plus"}
            yield SourceImage(str(path), f"{stem}{path.suffix}", columns, where)
    tell_counts("chexpert-plus", "images have no label", +unlabelled)


def _plus_labels(path: Path) -> Iterator[dict[str, object]]:
    """Rows of a file of labels.

    Raises:
        UserError: If one lacks an observation (null is there, and means not mentioned).
    """
    for row in json_lines(path):
        lacking = [name for name in _PLUS_LABEL_COLUMNS if name not in row]
        if lacking:
            raise UserError(f"{path}: a row has no {', '.join(lacking)}: not CheXbert's labels")
        yield row


def _plus_text(row: Mapping[str, str], sections: list[str]) -> str:
    return fold_spaces(" ".join(row.get(name, "") for name in sections))


_COLUMNS = ("label", "patient_id", "split", "source", "modality", "study_id", "view", "uncertain")

LAYOUTS = (
    Layout("chexpert", "CXR", _COLUMNS, _TREE, _missing, _images),
    Layout("chexpert-plus", "CXR", ("text", *_COLUMNS), _PLUS_TREE, _plus_missing, _plus_images),
)
