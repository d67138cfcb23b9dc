"""Any tree of DICOM files, as hospitals export them: known by their content, whatever their names.

Scans and X-rays of one frame or many; texts from a table of reports. The tags that name somebody
are read only to be turned into pseudonyms, or into the key of the reports.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from utils import dicom, dicom_volume
from utils.cli import UserError
from utils.dataset_records import Problem
from utils.image_files import ImageError, image_errors
from utils.importers.counts import tell_counts
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.private_sources import (
    VOLUME_COLUMNS,
    Namer,
    frame_images,
    unread,
    unread_folders,
    walk_files,
)
from utils.importers.release_folders import relative
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex, stream_table, table_columns
from utils.line_text import fold_spaces
from utils.volumes import choose

# Modalities (PS3.3, C.7.3.1.1.1) of documents and measurements, and of values in a grid that are no
# picture: a segmentation, a parametric map, a dose.
_NO_PICTURES = {
    *("AR", "AU", "DOC", "ECG", "EEG", "EMG", "EOG", "EPS", "FID", "HD", "IOL", "KER", "KO"),
    *("LEN", "M3D", "OAM", "OPV", "PLAN", "PR", "REG", "RESP", "RTDOSE", "RTIMAGE", "RTPLAN"),
    *("RTRECORD", "RTSTRUCT", "RWV", "SEG", "SMR", "SR", "SRF", "TEXTUREMAP", "VA"),
}
# The same by what is stored (PS3.4, B.5): the start of the SOP class's UID, and what it is.
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NO_PICTURE_CLASSES = {
    "1.2.840.10008.1.3.10": "a directory",
    f"{_STORAGE}9.": "a waveform",
    f"{_STORAGE}11.": "a presentation state",
    f"{_STORAGE}30": "a parametric map",
    f"{_STORAGE}66": "raw data, a registration, a segmentation",
    f"{_STORAGE}67": "a value mapping",
    f"{_STORAGE}68.": "a surface",
    f"{_STORAGE}78.": "a measurement of the eye",
    f"{_STORAGE}79.": "a report of the macula's thickness",
    f"{_STORAGE}80.": "a visual field",
    f"{_STORAGE}88.": "a structured report",
    f"{_STORAGE}104.": "a document",
    f"{_STORAGE}481.": "radiotherapy",
}

TREE = """\
SOURCE/, any folders and names, with or without a suffix
  DICOMDIR                       left out, as are reports, PDFs, presentation states
  PAT00001/STU00001/IM000001     X-rays, B-scans, volumes (Ophthalmic Tomography)
  anything/else.dcm
--reports reports.csv            optional: AccessionNumber (or --reports_key), text, label"""


def missing(source: Path, options: LayoutOptions) -> list[str]:
    """At least one DICOM file, and the columns of the reports."""
    parts = []
    if not any(_is_dicom(path) for path in walk_files(source)):
        parts.append(f"no DICOM file lies in {source}: files of format PS3.10 (DICM at byte 128)")
    if options.reports is not None:
        from pydicom.datadict import tag_for_keyword

        if tag_for_keyword(options.reports_key) is None:
            parts.append(f"--reports_key {options.reports_key}: no keyword of a DICOM attribute")
        try:
            stream_table(options.reports, (options.reports_key, "text"))
        except UserError as error:
            parts.append(f"--reports: {error}")
    return parts


def images(
    source: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    """All frames of all files, in the order of their paths."""
    namer = Namer(options.pseudonyms)
    reports = _Reports(options, index) if options.reports is not None else None
    left_out, nameless = Counter(), Counter()
    closed: list[OSError] = []
    for path in walk_files(source, closed.append):
        where = relative(path, source)
        try:
            if not dicom.is_dicom_file(path):
                left_out["no DICOM"] += 1
                continue
            yield from _file_images(path, where, options, (namer, reports, left_out, nameless))
        except ImageError as error:
            yield Problem(where, error.kind, error.detail)
        except OSError as error:
            yield unread(where, error)
    yield from unread_folders(closed, source)
    tell_counts("dicom", "files are left out", left_out)
    tell_counts("dicom", "files name no patient", nameless)
    if reports is not None:
        tell_counts(
            "dicom",
            "reports have no image",
            +Counter({f"by {options.reports_key}": reports.num_unused()}),
        )


def _is_dicom(path: Path) -> bool:
    with suppress(OSError):  # `images` tells it
        return dicom.is_dicom_file(path)
    return False


def _file_images(
    path: Path, where: str, options: LayoutOptions, tools: tuple
) -> Iterator[SourceImage | Problem]:
    namer, reports, left_out, nameless = tools
    with image_errors(str(path)), path.open("rb") as stream:
        header = dicom.read_header(stream, pixels=False)
        kind = _no_picture(header)
    if kind:
        left_out[kind] += 1
        return
    columns: dict[str, str] = {}
    if reports is not None:
        told = reports.columns_of(header)
        if isinstance(told, str):
            yield Problem(where, "no report", told)
            return
        columns = told
    for choice in choose(path, central_n=options.central_n, around=options.around):
        person = choice.info.patient
        if person is None:
            nameless["each study counts as a patient"] += 1
            person = f"study {dicom_volume.text_of(header, 'StudyInstanceUID') or where}"
        names = namer.patient(person), namer.volume(choice.info.identity or where)
        yield from frame_images(path, choice, names=names, where=where, **columns)


def _no_picture(header) -> str:
    """What a file is that never holds a picture; empty of all others, cut-off ones among them."""
    modality = dicom_volume.code_of(header, "Modality")
    if modality in _NO_PICTURES:
        return f"without a picture ({modality})"
    stored = str(header.file_meta.get("MediaStorageSOPClassUID") or "")
    for start, kind in _NO_PICTURE_CLASSES.items():
        if stored.startswith(start):
            return f"without a picture ({kind})"
    return ""


class _Reports:
    """The table of reports, by the value of an attribute that is never told."""

    def __init__(self, options: LayoutOptions, index: TableIndex) -> None:
        self._key = options.reports_key
        self._name = options.reports.name
        there = table_columns(options.reports)
        wanted = [name for name in ("text", "label") if name in there]
        self._lookup = index.load(options.reports, [self._key], values=wanted)
        self._unused = {hash(key) for key in self._lookup.distinct_keys()}

    def num_unused(self) -> int:
        """Keys that no image has."""
        return len(self._unused)

    def columns_of(self, header) -> dict[str, str] | str:
        """Text and label of an image; what is wrong, in words, if there is none."""
        key = dicom_volume.text_of(header, self._key)
        if not key:
            return f"the file has no {self._key}"
        rows = self._lookup.all(key)
        self._unused.discard(hash(key))
        found = {(fold_spaces(row["text"]), row.get("label", "").strip()) for row in rows}
        if len(found) != 1:
            return f"{self._name} has {len(found)} reports of its {self._key}"
        ((text, label),) = found
        if not text:
            return f"the report of its {self._key} is empty"
        return {"text": text, "label": label}


LAYOUTS = (
    Layout(
        name="dicom",
        modality="",
        columns=("text", "label", *VOLUME_COLUMNS),
        tree=TREE,
        missing=missing,
        images=images,
    ),
)
