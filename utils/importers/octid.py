"""OCTID: one fovea-centred B-scan of a Cirrus HD-OCT per file, its class in the file's name.

Gholami et al. 2020, https://arxiv.org/abs/1812.07056; the data
https://borealisdata.ca/dataverse/OCTID, one archive per class. Nothing tells the patients.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.dataset_records import Problem
from utils.dataset_sources import walk_with_links
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import relative
from utils.importers.source_image import SourceImage

if TYPE_CHECKING:
    from utils.importers.table_index import TableIndex

FINDINGS = {
    "NORMAL": "normal",
    "AMRD": "age-related macular degeneration",
    "CSR": "central serous retinopathy",
    "DR": "diabetic retinopathy",
    "MH": "macular hole",
}
SUFFIXES = (".jpeg", ".jpg")
NAME = re.compile(rf"({'|'.join(FINDINGS)})(\d+)\.jpe?g", re.IGNORECASE)

TREE = """\
SOURCE/, the archives of the five classes unpacked in it, each in a folder of any name
  NORMAL1.jpeg ...   AMRD1.jpeg ...   CSR1.jpeg ...   DR1.jpeg ...   MH1.jpeg ...
A file's name is its class and a number."""


def _files(folder: Path) -> Iterator[Path]:
    for name, path in walk_with_links(str(folder)):
        if name.lower().endswith(SUFFIXES):
            yield Path(path)


def missing(source: Path, options: LayoutOptions) -> list[str]:
    """Every class without an image."""
    found = {match.group(1).upper() for path in _files(source) if (match := _match(path))}
    return [
        f"{label}1.jpeg and the others of its archive: the images of {words}"
        for label, words in FINDINGS.items()
        if label not in found
    ]


def _match(path: Path) -> re.Match | None:
    return NAME.fullmatch(path.name)


def images(
    source: Path, options: LayoutOptions, index: "TableIndex"
) -> Iterator[SourceImage | Problem]:
    """The JPEGs, in whatever folder they are; one that is not named after a class is a problem."""
    for path in _files(source):
        where = relative(path, source)
        match = _match(path)
        if match is None:
            detail = f"the name is not one of {', '.join(FINDINGS)} and a number"
            yield Problem(where, "unknown name", detail)
            continue
        label = match.group(1).upper()
        row = {
            "label": label,
            "finding": FINDINGS[label],
            "source": "OCTID",
            "modality": "OCT",
        }
        yield SourceImage(os.fspath(path), f"{label}/{path.name}", row, where)


LAYOUTS = (
    Layout(
        name="octid",
        modality="OCT",
        columns=("label", "finding", "source", "modality"),
        tree=TREE,
        missing=missing,
        images=images,
    ),
)
