"""RETOUCH: volumes of three devices in which fluids are marked voxel by voxel.

Bogunović et al. 2019, https://doi.org/10.1109/TMI.2019.2901398; the data
https://retouch.grand-challenge.org. A case is one volume of one patient. The reference has the size
of the volume; its values are 1 (IRF), 2 (SRF), 3 (PED) and 0 for all else
(https://retouch.grand-challenge.org/Details). A B-scan's label is what the reference marks in it,
so the references are read here, one B-scan after the other.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.dataset_records import Problem
from utils.frames import read_frame
from utils.image_files import ImageError
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.release_folders import first_with, folder_names, relative
from utils.importers.source_image import SourceImage
from utils.volumes import choose_frames, inspect_volume

if TYPE_CHECKING:
    from utils.importers.table_index import TableIndex

DEVICES = {
    "Cirrus": "24 cases of a Zeiss Cirrus",
    "Spectralis": "24 cases of a Heidelberg Spectralis",
    "Topcon": "22 cases of Topcon's T-1000 and T-2000",
}
FLUIDS = {  # value in the reference: label, words
    1: ("IRF", "intraretinal fluid"),
    2: ("SRF", "subretinal fluid"),
    3: ("PED", "pigment epithelial detachment"),
}
NONE = "no fluid"  # not "normal": all patients have macular degeneration or vein occlusion
FILES = {
    "oct.mhd": "the header of the volume",
    "oct.raw": "the volume",
    "reference.mhd": "the header of the reference",
    "reference.raw": "the marked fluids",
}
TEST_FILES = ("oct.mhd", "oct.raw")  # the challenge keeps the reference of its test to itself

TREE = """\
SOURCE/, or SOURCE/TrainingCirrus/ and so on, as the archives unpack
  RETOUCH-TrainingSet-Cirrus/TRAIN001/      oct.mhd  oct.raw  reference.mhd  reference.raw
  RETOUCH-TrainingSet-Spectralis/TRAIN025/  ...
  RETOUCH-TrainingSet-Topcon/TRAIN049/      ...
  RETOUCH-TestSet-*/TEST001/                oct.mhd  oct.raw     (may be left out)"""


class _Case(NamedTuple):
    """A folder with one volume.

    Attributes:
        folder: Where it is.
        device: Key of `DEVICES`.
        split: Of the challenge: train, or test without reference.
    """

    folder: Path
    device: str
    split: str


def _set_folder(source: Path, device: str, split: str) -> Path:
    word = {"train": "Training", "test": "Test"}[split]
    name = f"RETOUCH-{word}Set-{device}"
    return first_with(source, ("", f"{word}{device}"), [name]) / name


def _cases(source: Path) -> Iterator[_Case]:
    for split in ("train", "test"):
        for device in DEVICES:
            top = _set_folder(source, device, split)
            for name in folder_names(top):
                yield _Case(top / name, device, split)


def missing(source: Path, options: LayoutOptions) -> list[str]:
    """Sets of training cases that are not there, and every file of a case that is not."""
    parts = []
    for device, words in DEVICES.items():
        top = _set_folder(source, device, "train")
        if not folder_names(top):
            parts.append(
                f"{relative(top, source)}/TRAIN.../: {words}, each with {', '.join(FILES)}"
            )
    for case in _cases(source):
        wanted = FILES if case.split == "train" else TEST_FILES
        parts += [
            f"{relative(case.folder / name, source)}: {FILES[name]}"
            for name in wanted
            if not (case.folder / name).is_file()
        ]
    return parts


def images(
    source: Path, options: LayoutOptions, index: "TableIndex"
) -> Iterator[SourceImage | Problem]:
    """The chosen B-scans of each case, with the fluids that are marked in each."""
    for case in _cases(source):
        where = relative(case.folder, source)
        try:
            yield from _scans(case, options, where)
        except ImageError as error:
            yield Problem(where, error.kind, f"{Path(error.name).name}: {error.detail}")


def _scans(case: _Case, options: LayoutOptions, where: str) -> Iterator[SourceImage]:
    volume, reference = case.folder / "oct.mhd", case.folder / "reference.mhd"
    frames = choose_frames(volume, central_n=options.central_n, around=options.around)
    if case.split == "train":
        _check_sizes(volume, reference)
    for frame in frames:
        fluids = _fluids(reference, frame) if case.split == "train" else None
        row = {
            "label": "" if fluids is None else ";".join(label for label, _ in fluids) or NONE,
            "finding": "" if fluids is None else ", ".join(words for _, words in fluids) or NONE,
            "patient_id": case.folder.name,
            "official_split": case.split,
            "source": f"RETOUCH {case.device}",
            "modality": "OCT",
        }
        name = f"{case.folder.name}/{case.folder.name}_{frame:03d}.mhd"
        yield SourceImage(str(volume), name, row, f"{where}/oct.mhd frame {frame}", frame)


def _check_sizes(volume: Path, reference: Path) -> None:
    sizes = [
        (info.num_frames, info.height, info.width)
        for info in (inspect_volume(volume), inspect_volume(reference))
    ]
    if sizes[0] != sizes[1]:
        detail = f"{sizes[1]} voxels (B-scans, rows, columns), the volume has {sizes[0]}"
        raise ImageError(str(reference), "reference of another size", detail)


def _fluids(reference: Path, frame: int) -> list[tuple[str, str]]:
    """Labels and words of the fluids that the reference marks in a B-scan."""
    counts = read_frame(reference, frame).histogram()  # of an 8-bit image the values as they are
    values = {value for value, count in enumerate(counts) if count}
    if not values <= {0, *FLUIDS}:
        detail = f"B-scan {frame} has {max(values)}; known are 0 to {max(FLUIDS)}, as 8 bits"
        raise ImageError(str(reference), "unknown value", detail)
    return [FLUIDS[value] for value in sorted(values - {0})]


LAYOUTS = (
    Layout(
        name="retouch",
        modality="OCT",
        columns=("label", "finding", "patient_id", "official_split", "source", "modality"),
        tree=TREE,
        missing=missing,
        images=images,
    ),
)
