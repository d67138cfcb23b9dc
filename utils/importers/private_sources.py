"""What sources that hold real identities have in common: walking them, names that give nobody away.

Of a patient, a volume and a report's key only pseudonyms leave this package.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from utils.dataset_records import Problem
from utils.importers.release_folders import relative
from utils.importers.source_image import SourceImage
from utils.pseudonyms import Pseudonyms
from utils.volumes import FrameChoice

VOLUME_COLUMNS = (
    "patient_id",
    "laterality",
    "view",
    "source",
    "modality",
    "volume",
    "frame",
    "around",
)
_KIND_SEPARATOR = "\0"  # a patient's number and a volume's never meet


class Namer:
    """Pseudonyms of patients and volumes."""

    def __init__(self, pseudonyms: Pseudonyms | None) -> None:
        assert pseudonyms is not None, "an import of a private source has pseudonyms"
        self._pseudonyms = pseudonyms

    def patient(self, identity: str) -> str:
        """``P-`` and 12 hex digits."""
        return self._pseudonyms.of(f"patient{_KIND_SEPARATOR}{identity}")

    def volume(self, identity: str) -> str:
        """``V-`` and 12 hex digits."""
        return f"V{self._pseudonyms.of(f'volume{_KIND_SEPARATOR}{identity}')[1:]}"


def walk_files(folder: Path, on_error: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """Every file below a folder, in order of the paths; names that start with a dot are left out.

    Links to folders are not followed, so that no file comes twice.

    Args:
        folder: Where to begin.
        on_error: Called for each folder that cannot be read, which is left out.
    """
    for path, folders, files in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(path, name)


def unread(where: str, error: OSError) -> Problem:
    """A file or folder of the source that cannot be read."""
    return Problem(where, "cannot be read", error.strerror or type(error).__name__)


def unread_folders(errors: Iterable[OSError], source: Path) -> Iterator[Problem]:
    """What `walk_files` could not walk."""
    for error in errors:
        yield unread(relative(Path(error.filename), source), error)


def frame_images(
    path: Path, choice: FrameChoice, *, names: tuple[str, str], where: str, **columns: str
) -> Iterator[SourceImage]:
    """The chosen frames of one volume as images of the new folder.

    Args:
        path: The file.
        choice: The volume and its frames.
        names: Pseudonyms of the patient and the volume.
        where: The file, as messages call it.
        columns: Further columns.
    """
    patient, volume = names
    info = choice.info
    for frame in choice.frames:
        number = frame - info.first
        alone = info.num_frames == 1
        row = {
            **columns,
            "patient_id": patient,
            "laterality": info.laterality,
            "view": info.view,
            "source": info.device,
            "modality": info.modality,
            "volume": "" if alone else volume,
            "frame": "" if alone else str(number),
            "around": choice.around,
        }
        name = f"{patient}/{volume}" + ("" if alone else f"-{number:04d}")
        yield SourceImage(str(path), f"{name}.dcm", row, where, frame)
