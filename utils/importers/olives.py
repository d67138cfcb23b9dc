"""OLIVES: Spectralis B-scans of two trials in diabetic eyes, 9,408 of them with 16 biomarkers.

Prabhushankar et al. 2022, https://arxiv.org/abs/2209.11195; the data
https://doi.org/10.5281/zenodo.6622145. Only the B-scans of the table of biomarkers are brought in:
the fundus images and the 70,000 B-scans without biomarkers are left alone.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from utils.dataset_records import Problem
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import central, first_with
from utils.importers.source_image import SourceImage

if TYPE_CHECKING:
    from utils.importers.table_index import TableIndex

PATH = "Path (Trial/Arm/Folder/Visit/Eye/Image Name)"
BIOMARKERS = {  # column: label
    "Atrophy / thinning of retinal layers": "retinal atrophy",
    "Disruption of EZ": "ellipsoid zone disruption",
    "DRIL": "disorganization of retinal inner layers",
    "IR hemorrhages": "intraretinal hemorrhage",
    "IR HRF": "intraretinal hyperreflective foci",
    "Partially attached vitreous face": "partially attached vitreous",
    "Fully attached vitreous face": "fully attached vitreous",
    "Preretinal tissue/hemorrhage": "preretinal tissue",
    "Vitreous debris": "vitreous debris",
    "VMT": "vitreomacular traction",
    "DRT/ME": "macular edema",
    "Fluid (IRF)": "intraretinal fluid",
    "Fluid (SRF)": "subretinal fluid",
    "Disruption of RPE": "retinal pigment epithelium disruption",
    "PED (serous)": "serous pigment epithelial detachment",
    "SHRM": "subretinal hyperreflective material",
}
NONE = "no biomarker"  # looked for and not there, which is not the same as not looked for
CLINICAL = {"Eye_ID": "eye_id", "BCVA": "bcva", "CST": "cst"}
TRIALS = {
    "Prime_FULL": "the B-scans of the PRIME trial (diabetic retinopathy)",
    "TREX DME": "the B-scans of the TREX-DME trial (diabetic macular edema)",
}
DEPTHS = {"Prime_FULL": 5, "TREX DME": 6}  # parts of a path; TREX-DME has the arm, too
TABLE = "Biomarker_Clinical_Data_Images.csv"
LABEL_FOLDERS = ("ml_centric_labels", "full_labels", "")
TABLE_PLACES = tuple(
    f"{top}{folder}".rstrip("/")
    for top in ("OLIVES_Dataset_Labels/", "", "OLIVES/OLIVES_Dataset_Labels/")
    for folder in LABEL_FOLDERS
)
SCANS_PER_VOLUME = 49
OTHER_SUFFIX = {".tif": ".png", ".png": ".tif"}  # the table says .tif where some archives have .png

TREE = f"""\
SOURCE/, where the archives are unpacked
  OLIVES/ or here
    Prime_FULL/01-001/W0/OD/0.tif ...          patient, week, eye
    TREX DME/GILA/0201GOD/V1/OD/TREXJ_000000.tif ...   arm, patient, visit, eye
  OLIVES_Dataset_Labels/ml_centric_labels/ (or full_labels/)
    {TABLE}"""


def _table(source: Path) -> Path:
    return first_with(source, TABLE_PLACES, [TABLE]) / TABLE


def missing(source: Path, options: LayoutOptions) -> list[str]:
    """The table of biomarkers and the folders of the trials."""
    parts = []
    if not _table(source).is_file():
        parts.append(
            f"OLIVES_Dataset_Labels/ml_centric_labels/{TABLE}: 16 biomarkers, acuity, thickness, "
            "eye and patient of each labelled B-scan"
        )
    return parts + [
        f"OLIVES/{trial}/: {words}"
        for trial, words in TRIALS.items()
        if not (first_with(source, ("", "OLIVES"), [trial]) / trial).is_dir()
    ]


def images(
    source: Path, options: LayoutOptions, index: "TableIndex"
) -> Iterator[SourceImage | Problem]:
    """One image per row of the table; ``central_n`` takes the middle ones of the 49 of a volume."""
    table = _table(source)
    roots = {trial: first_with(source, ("", "OLIVES"), [trial]) for trial in TRIALS}
    wanted = set(central(range(SCANS_PER_VOLUME), options.central_n))
    for line, row in index.stream(table, (PATH, "Patient_ID", *BIOMARKERS, *CLINICAL)):
        place = _place(row[PATH])
        where = f"{table.name}:{line}"
        if place is None:
            detail = f"{row[PATH]!r} is not TRIAL/.../VISIT/EYE/IMAGE of {' or '.join(TRIALS)}"
            yield Problem(where, "unknown path", detail)
        elif place.number is None or place.number in wanted:
            yield _image(row, place, roots[place.trial], where)


class _Place(NamedTuple):
    """What the path of a B-scan tells.

    Attributes:
        path: Below the folder of both trials.
        trial, visit, eye: Folders of it.
        number: Of the B-scan in its volume, from 0; None if the name does not end in a number.
    """

    path: PurePosixPath
    trial: str
    visit: str
    eye: str
    number: int | None


def _place(cell: str) -> _Place | None:
    """Of a cell such as ``/Prime_FULL/01-001/W0/OD/0.tif``; None if it is not like that."""
    parts = cell.strip().strip("/").split("/")
    if len(parts) != DEPTHS.get(parts[0]) or not all(parts) or {".", ".."} & set(parts):
        return None
    path = PurePosixPath(*parts)
    digits = re.search(r"(\d+)$", path.stem)
    return _Place(path, parts[0], parts[-3], parts[-2], int(digits.group(1)) if digits else None)


def _file(root: Path, path: PurePosixPath) -> Path:
    """The file; with the other suffix if only that one is there."""
    file = root / path
    other = file.with_suffix(OTHER_SUFFIX.get(file.suffix.lower(), file.suffix))
    return other if not file.is_file() and other.is_file() else file


def _image(row: Mapping[str, str], place: _Place, root: Path, where: str) -> SourceImage | Problem:
    labels = []
    for column, label in BIOMARKERS.items():
        value = row[column].strip()
        if value in ("1", "1.0"):
            labels.append(label)
        elif value not in ("", "0", "0.0"):  # empty: not marked
            return Problem(where, "unknown value", f"{column}: {value!r} is neither 0 nor 1")
    columns = {
        "label": ";".join(labels) or NONE,
        "finding": ", ".join(labels) or NONE,
        "patient_id": row["Patient_ID"].strip(),
        "eye": place.eye,
        "visit": place.visit,
        **{name: row[column].strip() for column, name in CLINICAL.items()},
        "source": f"OLIVES {place.trial}",
        "modality": "OCT",
    }
    path = _file(root, place.path)
    name = str(place.path.with_suffix(path.suffix))
    return SourceImage(str(path), name, columns, where)


LAYOUTS = (
    Layout(
        name="olives",
        modality="OCT",
        columns=(
            *("label", "finding", "patient_id", "eye", "visit"),
            *CLINICAL.values(),
            *("source", "modality"),
        ),
        tree=TREE,
        missing=missing,
        images=images,
    ),
)
