"""Files as OCT devices write them: Heidelberg, Topcon, Zeiss, Optovue, Bioptigen.

Names of patients in them, and in the names of the files, are read only to make pseudonyms.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from utils.dataset_records import Problem
from utils.image_files import ImageError
from utils.importers.counts import tell_counts
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.private_sources import (
    VOLUME_COLUMNS,
    Namer,
    frame_images,
    unread_folders,
    walk_files,
)
from utils.importers.release_folders import relative
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex
from utils.oct_devices import SUFFIXES
from utils.volumes import choose

_SUFFIXES = (*SUFFIXES, ".vol")

TREE = """\
SOURCE/, any folders and names; the suffix tells the device
  *.e2e  *.vol     Heidelberg
  *.fda  *.fds     Topcon
  *.img            Zeiss Cirrus cubes
  *.OCT + *.txt    Optovue; without the .txt, Bioptigen"""


def missing(source: Path, options: LayoutOptions) -> list[str]:
    """At least one file of a device."""
    if any(path.suffix.lower() in _SUFFIXES for path in walk_files(source)):
        return []
    return [f"no file of a device lies in {source}: {', '.join(_SUFFIXES)}"]


def images(
    source: Path, options: LayoutOptions, index: TableIndex
) -> Iterator[SourceImage | Problem]:
    """The chosen B-scans of all volumes of all files, in the order of their paths."""
    namer = Namer(options.pseudonyms)
    left_out, nameless = Counter(), Counter()
    closed: list[OSError] = []
    for path in walk_files(source, closed.append):
        where = relative(path, source)
        if path.suffix.lower() not in _SUFFIXES:
            left_out["of another format"] += 1
            continue
        try:
            choices = choose(path, central_n=options.central_n, around=options.around)
        except ImageError as error:
            yield Problem(where, error.kind, error.detail)
            continue
        for choice in choices:
            person = choice.info.patient
            if person is None:
                nameless["each file counts as a patient"] += 1
                person = f"file {where}"
            names = namer.patient(person), namer.volume(f"{where} {choice.info.identity}")
            yield from frame_images(path, choice, names=names, where=where)
    yield from unread_folders(closed, source)
    tell_counts("device-files", "files are left out", left_out)
    tell_counts("device-files", "volumes name no patient", nameless)


LAYOUTS = (
    Layout(
        name="device-files",
        modality="OCT",
        columns=VOLUME_COLUMNS,
        tree=TREE,
        missing=missing,
        images=images,
    ),
)
