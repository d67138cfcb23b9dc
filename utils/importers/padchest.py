"""PadChest as BIMCV distributes it: one table, 16-bit PNGs in numbered folders.

https://bimcv.cipf.es/bimcv-projects/padchest/ under the PadChest Dataset Research Use Agreement.
Bustos et al. 2020 (https://arxiv.org/abs/1901.07441). Reports are Spanish, without accents and
stop words as the data set gives them.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from utils.dataset_records import Problem
from utils.importers.chest_views import is_wanted_view
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex
from utils.importers.tree_parts import FileFinder, find_table, missing_part
from utils.line_text import fold_spaces

_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
_EXCLUDED = "EXCLUDE"  # a projection: what the data set itself calls no chest X-ray
_REQUIRED = (
    "ImageID",
    "ImageDir",
    "StudyID",
    "PatientID",
    "Projection",
    "PhotometricInterpretation_DICOM",
    "Report",
    "MethodLabel",
    "Labels",
)
_TREE = """\
padchest/
  PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv   reports, labels, projections
                                                         (.gz as it is, or unpacked)
  0/…_….png … 54/…_….png    images: folders of the numbered zips, also below images/,
                            or all in one folder
"""


def _image_folders(root: Path) -> list[Path]:
    return [root, root / "images"]


def _missing(root: Path, options: LayoutOptions) -> list[str]:
    del options
    parts = []
    if find_table(root, _TABLE) is None:
        name = _TABLE.removesuffix(".gz")
        parts.append(missing_part(root, name, "the report, labels and projection of each image"))
    if not any(_has_images(folder) for folder in _image_folders(root)):
        parts.append(missing_part(root, "0/*.png … 54/*.png", "the images"))
    return parts


def _has_images(folder: Path) -> bool:
    patterns = ("*.png", "[0-9]/*.png", "[0-9][0-9]/*.png")
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _labels(cell: str) -> str | None:
    """``"['normal', ' cardiomegaly ']"`` to ``normal;cardiomegaly``; None if it is no list."""
    if cell.strip() in ("", "nan"):
        return ""
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return None
    names = (fold_spaces(value) for value in values)
    return ";".join(dict.fromkeys(name for name in names if name))


def _images(
    root: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    table = find_table(root, _TABLE)
    files = FileFinder(_image_folders(root))
    for line, row in index.stream(table, _REQUIRED):
        view = row["Projection"].strip()
        if view == _EXCLUDED or not is_wanted_view(view, options.views):
            continue
        where = f"{table.name}:{line}"
        folder = row["ImageDir"].strip().removesuffix(".0")  # as pandas writes a column with gaps
        path = files.find([f"{folder}/{row['ImageID']}", row["ImageID"]])
        labels = _labels(row["Labels"])
        text = fold_spaces(row["Report"])
        if path is None:
            yield Problem(where, "missing file", f"{folder}/{row['ImageID']}")
        elif labels is None:
            yield Problem(where, "broken labels", f"{row['Labels'][:80]!r} is no list of words")
        elif options.report_sections and not text:
            yield Problem(where, "empty text", "the column Report is empty")
        else:
            columns = _row(row, labels, text if options.report_sections else "")
            yield SourceImage(str(path), f"{folder}/{row['ImageID']}", columns, where)


def _row(row: Mapping[str, str], labels: str, text: str) -> dict[str, str]:
    return {
        "text": text,
        "label": labels,
        "patient_id": row["PatientID"],
        "source": "PadChest",
        "modality": "CXR",
        "study_id": row["StudyID"],
        "view": row["Projection"].strip(),
        "label_method": row["MethodLabel"],
        "photometric": row["PhotometricInterpretation_DICOM"],
    }


LAYOUTS = (
    Layout(
        name="padchest",
        modality="CXR",
        columns=(
            "text",
            "label",
            "patient_id",
            "source",
            "modality",
            "study_id",
            "view",
            "label_method",
            "photometric",
        ),
        tree=_TREE,
        missing=_missing,
        images=_images,
    ),
)
