"""What the import knows of one way that files lie in a source."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.dataset_records import Problem
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex
from utils.pseudonyms import Pseudonyms


@dataclass(frozen=True)
class LayoutOptions:
    """What the flags say to a layout; each layout heeds its part.

    Attributes:
        views: frontal, lateral or all, of chest X-rays.
        report_sections: Sections of a report that become the text, in this order.
        central_n: B-scans around the fovea (or the middle) of each volume; None: all.
        around: fovea or middle.
        reports: A CSV of texts by key.
        reports_key: The DICOM attribute that is the key; the CSV has a column of that name.
        pseudonyms: Names of patients where the source holds their identities.
    """

    views: str = "frontal"
    report_sections: tuple[str, ...] = ("findings", "impression")
    central_n: int | None = None
    around: str = "fovea"
    reports: Path | None = None
    reports_key: str = "AccessionNumber"
    pseudonyms: Pseudonyms | None = None


@dataclass(frozen=True)
class Layout:
    """One way that files lie in a source.

    Attributes:
        name: Of ``--layout``.
        modality: CXR or OCT; empty where the files tell.
        columns: All that rows can have, in order, without ``file_name``.
        tree: The expected tree in a few lines, for messages and documentation.
        missing: Every part that is not there, one sentence each: what, where it is expected, what
            it holds; empty if all is there. Cheap.
        images: Streams the images, always in the same order, and the problems of the tables' rows;
            holds neither all rows nor pixels.
    """

    name: str
    modality: str
    columns: tuple[str, ...]
    tree: str
    missing: Callable[[Path, LayoutOptions], list[str]]
    images: Callable[[Path, LayoutOptions, TableIndex], Iterator[SourceImage | Problem]]
