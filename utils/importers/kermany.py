"""Kermany's OCT data: CNV, DME, drusen and normal, one JPEG per B-scan, the patient in its name.

Kermany et al. 2018, https://doi.org/10.1016/j.cell.2018.02.010; the data
https://data.mendeley.com/datasets/rscbjbr9sj. The chest X-rays of the same release are left alone.

Releases differ in their splits, and copies of them have patients in train and in test, which
flatters a test (Tampu et al. 2022, https://doi.org/10.1038/s41597-022-01618-6). So the column
``official_split`` is the release's, and in ``split`` such a patient is in the most held-out split
alone: the test set stays whole, and his images elsewhere are in no split.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.dataset_records import Problem
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import file_names, first_with, has_file, relative
from utils.importers.source_image import SourceImage
from utils.run_folder import get_logger

if TYPE_CHECKING:
    from utils.importers.table_index import TableIndex

FINDINGS = {
    "CNV": "choroidal neovascularization",
    "DME": "diabetic macular edema",
    "DRUSEN": "drusen",
    "NORMAL": "normal",
}
HELD_OUT = ("test", "val", "train")  # the most held-out first
REQUIRED = {"train": "the images to learn from", "test": "the images to test with"}
PLACES = (  # "OCT2017 ", with a space at its end, is how one mirror's archive has it
    "",
    *("OCT2017", "OCT2017 ", "oct2017/OCT2017 "),
    *("OCT", "CellData/OCT", "ZhangLabData/CellData/OCT"),
)
SUFFIXES = (".jpeg", ".jpg")

TREE = """\
SOURCE/ or SOURCE/OCT2017/ or SOURCE/ZhangLabData/CellData/OCT/
  train/  CNV/CNV-1016042-1.jpeg ...   DME/   DRUSEN/   NORMAL/
  test/   CNV/  DME/  DRUSEN/  NORMAL/
  val/    the same, in some releases
A file's name is CLASS-PATIENT-NUMBER.jpeg."""

_logger = get_logger("import")


def _root(source: Path) -> Path:
    marks = [f"{split}/{label}" for split in HELD_OUT for label in FINDINGS]
    return first_with(source, PLACES, marks)


def missing(source: Path, options: LayoutOptions) -> list[str]:
    """Every folder that is not there or has no image; val may be left out as a whole."""
    root = _root(source)
    parts = []
    for split in reversed(HELD_OUT):
        folder = root / split
        if not folder.is_dir():
            if split in REQUIRED:
                where = relative(folder, source)
                parts.append(f"{where}/ with {', '.join(FINDINGS)}: {REQUIRED[split]}")
            continue
        parts += [
            f"{relative(folder / label, source)}/*.jpeg: the {split} images of {words}"
            for label, words in FINDINGS.items()
            if not has_file(folder / label, SUFFIXES)
        ]
    return parts


def images(
    source: Path, options: LayoutOptions, index: "TableIndex"
) -> Iterator[SourceImage | Problem]:
    """The images of all splits; a name that does not tell the patient is a problem."""
    root = _root(source)
    home = _split_of_patients(root)
    adrift: Counter[tuple[str, str]] = Counter()  # (patient, split): images that are in no split
    for split, label, file_name, patient in _files(root):
        path = root / split / label / file_name
        if patient is None:
            detail = f"the name is not {label}-PATIENT-NUMBER.jpeg, so its patient is not known"
            yield Problem(relative(path, source), "unknown name", detail)
            continue
        if home[patient] != split:
            adrift[patient, split] += 1
        row = {
            "label": label,
            "finding": FINDINGS[label],
            "patient_id": patient,
            "split": split if home[patient] == split else "",
            "official_split": split,
            "source": "Kermany OCT2017",
            "modality": "OCT",
        }
        name = f"{split}/{label}/{file_name}"
        yield SourceImage(str(path), name, row, relative(path, source))
    if adrift:
        _logger.warning(_overlap_note(adrift, home))


def _files(root: Path) -> Iterator[tuple[str, str, str, str | None]]:
    """Split, label, file name and patient of each image, in a fixed order."""
    for split in reversed(HELD_OUT):
        for label in FINDINGS:
            pattern = re.compile(rf"{label}-(\d+)-\d+\.jpe?g", re.IGNORECASE)
            for name in file_names(root / split / label, SUFFIXES):
                match = pattern.fullmatch(name)
                yield split, label, name, match and match.group(1)


def _split_of_patients(root: Path) -> dict[str, str]:
    """The most held-out split of each patient; there are some 5,000."""
    home: dict[str, str] = {}
    for split, _, _, patient in _files(root):
        if patient is not None:
            home[patient] = min(split, home.get(patient, split), key=HELD_OUT.index)
    return home


def _overlap_note(adrift: Counter, home: dict[str, str]) -> str:
    patients = sorted({patient for patient, _ in adrift})
    patient, split = min(adrift)
    return (
        f"kermany: {len(patients)} patients are in more than one split of this release (patient "
        f"{patient}: {home[patient]} and {split}). Each is left in the most held-out one; the "
        f"{sum(adrift.values())} images elsewhere keep official_split and have no split. "
        "`prepare_dataset.py split --overwrite` divides all patients anew."
    )


LAYOUTS = (
    Layout(
        name="kermany",
        modality="OCT",
        columns=(
            *("label", "finding", "patient_id", "split", "official_split"),
            *("source", "modality"),
        ),
        tree=TREE,
        missing=missing,
        images=images,
    ),
)
