"""VinDr-CXR as PhysioNet distributes it: DICOMs, and what each radiologist saw in them.

https://physionet.org/content/vindr-cxr/1.0.0/ for credentialed users under PhysioNet's data use
agreement. Nguyen et al. 2022 (https://doi.org/10.1038/s41597-022-01498-w): a training image is
read by three radiologists, a test image by five who agreed. All views are PA; no patient is named.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from utils.dataset_records import Problem
from utils.importers.chest_views import missing_laterals
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import has_file
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex
from utils.importers.tree_parts import missing_part

_KEYS = ("image_id", "rad_id")  # the other columns are labels, named differently in the two tables
_NO_FINDING = "No finding"  # the one label that both tables name alike
_POSITIVE = ("1", "1.0")
_TABLES = {split: f"annotations/image_labels_{split}.csv" for split in ("train", "test")}
_TREE = """\
vindr-cxr/
  train/000434271f63a053c4128a0ba6352c7f.dicom    images
  test/002a34c58c5b758217ed1f584ccbcfe9.dicom
  annotations/image_labels_train.csv              labels: three readers an image
  annotations/image_labels_test.csv               labels: the readers' consensus
"""


def _missing(root: Path, options: LayoutOptions) -> list[str]:
    parts = missing_laterals(options.views)
    present = _sets(root)
    for split in present or _TABLES:
        if not has_file(root / split, (".dicom",)):
            parts.append(missing_part(root, f"{split}/*.dicom", f"the images of the {split} set"))
        if not (root / _TABLES[split]).is_file():
            parts.append(missing_part(root, _TABLES[split], f"the labels of the {split} set"))
    return parts


def _sets(root: Path) -> list[str]:
    """The sets of which something is there: either may be downloaded alone."""
    return [
        split
        for split, name in _TABLES.items()
        if has_file(root / split, (".dicom",)) or (root / name).is_file()
    ]


def _label_columns(readings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What more than half of the readers saw, and what fewer saw: ``label``, ``uncertain``."""
    votes = {
        name: sum(reading[name].strip() in _POSITIVE for reading in readings)
        for name in readings[0]
        if name not in _KEYS
    }
    half = len(readings) / 2
    return {
        "label": ";".join(name for name, count in votes.items() if count > half),
        "uncertain": ";".join(name for name, count in votes.items() if 0 < count <= half),
        "num_readers": str(len(readings)),
    }


def _images(
    root: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    del options  # all views are PA
    for split in _sets(root):
        table = root / _TABLES[split]
        readings = index.load(table, ["image_id"])
        for line, row in index.stream(table, ["image_id", _NO_FINDING]):
            read = readings.all(row["image_id"])
            if row != read[0]:  # told with the first reader's row
                continue
            image = f"{split}/{row['image_id']}.dicom"
            where = f"{table.name}:{line}"
            if not (root / image).is_file():
                yield Problem(where, "missing file", image)
                continue
            columns = _label_columns(read)
            columns |= {"split": split, "source": "VinDr-CXR", "modality": "CXR", "view": "PA"}
            yield SourceImage(str(root / image), image, columns, where)


LAYOUTS = (
    Layout(
        name="vindr-cxr",
        modality="CXR",
        columns=("label", "split", "source", "modality", "view", "uncertain", "num_readers"),
        tree=_TREE,
        missing=_missing,
        images=_images,
    ),
)
