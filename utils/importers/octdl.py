"""OCTDL: 2,064 B-scans of an Optovue Avanti with disease, condition, patient and eye in a table.

Kulyabin et al. 2024, https://doi.org/10.1038/s41597-024-03182-7; the data
https://data.mendeley.com/datasets/sncdhf53xc.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from utils.dataset_records import Problem
from utils.image_files import IMAGE_SUFFIXES
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import file_names, first_with, has_file, relative
from utils.importers.source_image import SourceImage

if TYPE_CHECKING:
    from utils.importers.table_index import TableIndex

FINDINGS = {
    "AMD": "age-related macular degeneration",
    "DME": "diabetic macular edema",
    "ERM": "epiretinal membrane",
    "NO": "normal",
    "RAO": "retinal artery occlusion",
    "RVO": "retinal vein occlusion",
    "VID": "vitreomacular interface disease",
}
STAGES = ("early", "intermediate", "late")  # subcategories of AMD
CONDITIONS = {  # those that say more than the disease
    "MNV": "macular neovascularization",
    "MNV_suspected": "suspected macular neovascularization",
    "drusen": "drusen",
    "ME": "macular edema",
    "DRIL": "disorganization of retinal inner layers",
    "MH": "macular hole",
}
TABLE = "OCTDL_labels.csv"
REQUIRED = ("file_name", "disease", "patient_id")
KEPT = ("condition", "subcategory", "eye")  # not sex and year: nobody here needs them
PLACES = ("", "OCTDL")
SUFFIXES = (".jpg", ".jpeg")

TREE = """\
SOURCE/ or SOURCE/OCTDL/
  OCTDL_labels.csv   columns file_name, disease, subcategory, condition, patient_id, eye, ...
  AMD/amd_1047099_1.jpg ...   DME/   ERM/   NO/   RAO/   RVO/   VID/"""


def missing(source: Path, options: LayoutOptions) -> list[str]:
    """The table, and every class folder that is not there or has no image."""
    parts = []
    if not _table(source).is_file():
        parts.append(f"{TABLE}: disease, condition, patient and eye of every image")
    root = first_with(source, PLACES, FINDINGS)
    return parts + [
        f"{relative(root / label, source)}/*.jpg: the images of {words}"
        for label, words in FINDINGS.items()
        if not has_file(root / label, SUFFIXES)
    ]


def _table(source: Path) -> Path:
    return first_with(source, PLACES, [TABLE]) / TABLE


def images(
    source: Path, options: LayoutOptions, index: "TableIndex"
) -> Iterator[SourceImage | Problem]:
    """One image per row of the table; a file without a row is a problem."""
    table = _table(source)
    root = first_with(source, PLACES, FINDINGS)
    for line, row in index.stream(table, REQUIRED):
        yield _image(root, row, f"{table.name}:{line}")
    named = index.load(table, ["file_name"], values=["disease"])
    for label in FINDINGS:
        for name in file_names(root / label, SUFFIXES):
            if named.get(Path(name).stem) is None and named.get(name) is None:
                detail = f"{table.name} does not name it; are both of one version of the data?"
                yield Problem(relative(root / label / name, source), "no row", detail)


def _image(root: Path, row: Mapping[str, str], where: str) -> SourceImage | Problem:
    name, label = row["file_name"].strip(), row["disease"].strip()
    if label not in FINDINGS:
        return Problem(where, "unknown disease", f"{label!r} is none of {', '.join(FINDINGS)}")
    if not name:
        return Problem(where, "empty file name", "no image is named")
    if PurePosixPath(name.replace("\\", "/")).name != name:
        return Problem(where, "path outside the folder", f"{name}: only a file's name may be here")
    if PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
        name += ".jpg"  # the table leaves it out
    columns = {
        "label": label,
        "finding": _finding(label, row),
        "patient_id": row["patient_id"].strip(),
        **{column: row.get(column, "").strip() for column in KEPT},
        "source": "OCTDL",
        "modality": "OCT",
    }
    return SourceImage(str(root / label / name), f"{label}/{name}", columns, where)


def _finding(label: str, row: Mapping[str, str]) -> str:
    """Disease in words, with the stage of AMD and the condition where they add to it."""
    disease = FINDINGS[label]
    condition = CONDITIONS.get(row.get("condition", "").strip(), "")
    stage = row.get("subcategory", "").strip()
    words = f"{stage} {disease}" if label == "AMD" and stage in STAGES else disease
    return f"{words}, {condition}" if condition and condition not in disease else words


LAYOUTS = (
    Layout(
        name="octdl",
        modality="OCT",
        columns=("label", "finding", "patient_id", *KEPT, "source", "modality"),
        tree=TREE,
        missing=missing,
        images=images,
    ),
)
