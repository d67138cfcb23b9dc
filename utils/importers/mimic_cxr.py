"""MIMIC-CXR as PhysioNet distributes it: JPEG with tables, or DICOM; reports as text files.

https://physionet.org/content/mimic-cxr-jpg/2.1.0/ and https://physionet.org/content/mimic-cxr/2.1.0/
for credentialed users under PhysioNet's data use agreement (no sharing, no re-identification).
The DICOM release has no tables of views, splits and labels: those of MIMIC-CXR-JPG are used.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from utils.dataset_records import Problem
from utils.importers.chest_views import is_wanted_view
from utils.importers.chexpert_labels import OBSERVATIONS, label_columns
from utils.importers.counts import tell_counts
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.radiology_sections import section_text
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex
from utils.importers.tree_parts import find_table, missing_part

_METADATA = "mimic-cxr-2.0.0-metadata.csv.gz"
_SPLIT = "mimic-cxr-2.0.0-split.csv.gz"
_LABELS = ("mimic-cxr-2.0.0-chexpert.csv.gz", "mimic-cxr-2.0.0-negbio.csv.gz")
_REPORTS_ZIP = "mimic-cxr-reports.zip"
_SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
_REQUIRED = ("dicom_id", "subject_id", "study_id", "ViewPosition")
_STUDIES_KEPT = 64  # texts in memory: the images of a study stand close together
_PATIENTS_LOOKED_AT = 50  # until one has images, or reports: all have them, or hardly any

_TREE = """\
{name}/
  files/p10/p10000032/s50414267/02aa804e-….{suffix}
  mimic-cxr-2.0.0-metadata.csv.gz      views        (of MIMIC-CXR-JPG)
  mimic-cxr-2.0.0-split.csv.gz         splits       (of MIMIC-CXR-JPG)
  mimic-cxr-2.0.0-chexpert.csv.gz      labels, or -negbio.csv.gz (of MIMIC-CXR-JPG)
  files/p10/p10000032/s50414267.txt    reports: mimic-cxr-reports.zip of MIMIC-CXR, unpacked
                                       here, or in a folder beside this one
"""


def _study_folder(row: Mapping[str, str]) -> str:
    subject = row["subject_id"]
    return f"p{subject[:2]}/p{subject}/s{row['study_id']}"


def _is_filled(files: Path, pattern: str) -> bool:
    """Whether one of the first patients has a file of that pattern."""
    patients = islice(files.glob("p[0-9][0-9]/p[0-9]*"), _PATIENTS_LOOKED_AT)
    return any(next(patient.glob(pattern), None) for patient in patients)


def _reports_folder(root: Path) -> Path | None:
    """The folder ``files`` of the reports: in the tree, or beside it as PhysioNet names it."""
    root = root.resolve()
    beside = [root, root.parent, *sorted(root.parent.glob("mimic-cxr*"))]
    beside += sorted(root.parent.parent.glob("mimic-cxr/*"))  # mimic-cxr-jpg/2.1.0, mimic-cxr/2.1.0
    for folder in beside:
        for files in (folder / "files", folder / "mimic-cxr-reports" / "files"):
            if _is_filled(files, "s*.txt"):
                return files
    return None


def _missing(root: Path, options: LayoutOptions, *, suffix: str) -> list[str]:
    parts = []
    if not _is_filled(root / "files", f"s*/*{suffix}"):
        name = f"files/p10/p10000032/s50414267/….{suffix[1:]}"
        parts.append(missing_part(root, name, "the images"))
    tables = (
        ((_METADATA,), "the view of each image"),
        ((_SPLIT,), "the official split"),
        (_LABELS, "the labels of each study"),
    )
    for names, holds in tables:
        if find_table(root, *names) is None:
            parts.append(missing_part(root, " or ".join(names), f"{holds}; of MIMIC-CXR-JPG"))
    if options.report_sections and _reports_folder(root) is None:
        holds = (
            f"the reports; unpack {_REPORTS_ZIP} of MIMIC-CXR here or in a folder beside, or give "
            "--report_sections without a name to leave texts out"
        )
        parts.append(missing_part(root, "files/p10/p10000032/s50414267.txt", holds))
    return parts


def _report_text(path: Path, *, wanted: tuple[str, ...]) -> str:
    return section_text(path.read_text(encoding="utf-8"), wanted)


class _Study:
    """What the tables and reports know of an image: its split, its study's text and labels."""

    def __init__(self, root: Path, options: LayoutOptions, index: TableIndex) -> None:
        self._wanted = options.report_sections
        self._reports = _reports_folder(root) if self._wanted else None
        self._splits = index.load(find_table(root, _SPLIT), ["dicom_id"], values=["split"])
        labels = find_table(root, *_LABELS)
        self._labels = index.load(labels, ["study_id"], values=OBSERVATIONS)
        self._label_table, self.unlabelled = labels.name, Counter()
        self._text_of = lru_cache(_STUDIES_KEPT)(partial(_report_text, wanted=self._wanted))

    def columns(self, row: Mapping[str, str], where: str) -> dict[str, str] | Problem:
        """Columns of an image, or what is wrong with it."""
        split = (self._splits.get(row["dicom_id"]) or {}).get("split", "")
        if split not in _SPLIT_NAMES:
            return Problem(where, "unknown split", f"{split!r} in {_SPLIT.removesuffix('.gz')}")
        text = self._text(row, where)
        if isinstance(text, Problem):
            return text
        labels = self._labels.get(row["study_id"])
        self.unlabelled[f"study not in {self._label_table}"] += labels is None
        return {"text": text, **label_columns(labels), "split": _SPLIT_NAMES[split]}

    def _text(self, row: Mapping[str, str], where: str) -> str | Problem:
        if self._reports is None:
            return ""
        path = self._reports / f"{_study_folder(row)}.txt"
        try:
            text = self._text_of(path)
        except FileNotFoundError:
            return Problem(where, "missing report", f"no {path}")
        except OSError as error:
            return Problem(where, "cannot be read", f"{path}: {error.strerror}")
        except UnicodeDecodeError as error:
            return Problem(where, "not UTF-8", f"{path}: {error.reason} at byte {error.start}")
        sections = " or ".join(self._wanted)
        return text or Problem(where, "empty text", f"{path} has no section {sections}")


def _images(
    root: Path, options: LayoutOptions, index: TableIndex, *, suffix: str, source: str
) -> Iterator[SourceImage | Problem]:
    metadata = find_table(root, _METADATA)
    study = _Study(root, options, index)
    for line, row in index.stream(metadata, _REQUIRED):
        if not is_wanted_view(row["ViewPosition"], options.views):
            continue
        where = f"{metadata.name}:{line}"
        name = f"{_study_folder(row)}/{row['dicom_id']}{suffix}"
        if not (root / "files" / name).is_file():
            yield Problem(where, "missing file", f"files/{name}")
            continue
        columns = study.columns(row, where)
        if isinstance(columns, Problem):
            yield columns
        else:
            columns |= {"source": source, **_row(row)}
            yield SourceImage(str(root / "files" / name), name, columns, where)
    tell_counts(source.lower(), "images have no label", +study.unlabelled)


def _row(row: Mapping[str, str]) -> dict[str, str]:
    return {
        "patient_id": row["subject_id"],
        "modality": "CXR",
        "study_id": row["study_id"],
        "view": row["ViewPosition"],
    }


_COLUMNS = (
    "text",
    "label",
    "patient_id",
    "split",
    "source",
    "modality",
    "study_id",
    "view",
    "uncertain",
)

LAYOUTS = tuple(
    Layout(
        name=name,
        modality="CXR",
        columns=_COLUMNS,
        tree=_TREE.format(name=name, suffix=suffix[1:]),
        missing=partial(_missing, suffix=suffix),
        images=partial(_images, suffix=suffix, source=source),
    )
    for name, suffix, source in (
        ("mimic-cxr-jpg", ".jpg", "MIMIC-CXR-JPG"),
        ("mimic-cxr", ".dcm", "MIMIC-CXR"),
    )
)
