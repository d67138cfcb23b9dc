"""Duke's set of Srinivasan: 45 Spectralis volumes as TIFFs, 15 each of dry AMD, DME and normal.

Srinivasan et al. 2014, https://doi.org/10.1364/BOE.5.003568; the data
https://people.duke.edu/~sf59/Srinivasan_BOE_2014_dataset.htm. A folder is a volume of one patient.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.dataset_records import Problem
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import central, file_names, first_with, has_file, relative
from utils.importers.source_image import SourceImage

if TYPE_CHECKING:
    from utils.importers.table_index import TableIndex

FINDINGS = {
    "AMD": "dry age-related macular degeneration",
    "DME": "diabetic macular edema",
    "NORMAL": "normal",
}
VOLUMES_PER_CLASS = 15
IMAGES = "TIFFs/8bitTIFFs"
PLACES = ("", "Publication_Dataset", "2014_BOE_Srinivasan/Publication_Dataset")
SUFFIXES = (".tif", ".tiff")

TREE = f"""\
SOURCE/ or SOURCE/Publication_Dataset/
  AMD1/{IMAGES}/001.tif ...    to AMD15/
  DME1/{IMAGES}/001.tif ...    to DME15/
  NORMAL1/{IMAGES}/001.tif ... to NORMAL15/"""


def _cases(label: str) -> list[str]:
    return [f"{label}{number}" for number in range(1, VOLUMES_PER_CLASS + 1)]


def _root(source: Path) -> Path:
    return first_with(source, PLACES, [case for label in FINDINGS for case in _cases(label)])


def missing(source: Path, options: LayoutOptions) -> list[str]:
    """The volumes that are not there or have no TIFF, one sentence per class."""
    root = _root(source)
    parts = []
    for label, words in FINDINGS.items():
        gone = [case for case in _cases(label) if not has_file(root / case / IMAGES, SUFFIXES)]
        if gone:
            parts.append(f"{', '.join(gone)}, each with {IMAGES}/*.tif: volumes of {words}")
    return parts


def images(
    source: Path, options: LayoutOptions, index: "TableIndex"
) -> Iterator[SourceImage | Problem]:
    """The B-scans of each volume in their order; ``central_n`` takes the middle ones."""
    root = _root(source)
    for label, words in FINDINGS.items():
        for case in _cases(label):
            folder = root / case / IMAGES
            for name in central(file_names(folder, SUFFIXES), options.central_n):
                row = {
                    "label": label,
                    "finding": words,
                    "patient_id": case,
                    "source": "Duke Srinivasan 2014",
                    "modality": "OCT",
                }
                where = relative(folder / name, source)
                yield SourceImage(str(folder / name), f"{case}/{name}", row, where)


LAYOUTS = (
    Layout(
        name="srinivasan",
        modality="OCT",
        columns=("label", "finding", "patient_id", "source", "modality"),
        tree=TREE,
        missing=missing,
        images=images,
    ),
)
