"""Volumes of B-scans: what a file holds, and which frames to take of it.

Read are DICOM (one or many frames), MetaImage (.mhd, .mha), Heidelberg's .vol, and by oct-converter
.e2e, .fda, .fds, .img and .OCT. Open files are kept per process, a few at a time.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from utils import dicom
from utils.image_files import ImageError, image_errors
from utils.oct_devices import SUFFIXES as DEVICE_SUFFIXES
from utils.run_folder import get_logger
from utils.volume_info import OpenVolumes, VolumeInfo

VOLUME_SUFFIXES = (".mhd", ".mha", ".vol", *DEVICE_SUFFIXES)
_OPEN_FILES = 2  # a device's file lies in memory whole


@dataclass(frozen=True)
class FrameChoice:
    """Frames taken of one volume.

    Attributes:
        info: The volume.
        frames: Their numbers in the file, in order.
        around: What they lie around: ``fovea``, ``middle``, or empty where all are taken.
    """

    info: VolumeInfo
    frames: tuple[int, ...]
    around: str = ""


def files_of(path: Path) -> tuple[Path, ...]:
    """All files of a volume: itself, and what lies beside it with its values or their size.

    Raises:
        OSError: If it cannot be read.
    """
    suffix, beside = path.suffix.lower(), None
    if suffix in (".mhd", ".mha"):
        from utils.meta_image import data_file

        beside = data_file(path)
    elif suffix == ".oct" and path.with_suffix(".txt").is_file():  # Optovue's
        beside = path.with_suffix(".txt")
    return (path,) if beside is None else (path, beside)


def state_of(path: Path | str) -> tuple[int, int]:
    """Size and time of change of a volume, or of any file, that tell whether it is another now.

    Of a volume of several files both are added up, so that a change of any of them shows.

    Raises:
        OSError: If it is not there, or cannot be read.
    """
    stats = [file.stat() for file in files_of(Path(path))]
    return sum(stat.st_size for stat in stats), sum(stat.st_mtime_ns for stat in stats)


def open_volumes(path: Path | str) -> OpenVolumes:
    """Open a file; it is kept open until others take its place, or it changes.

    Raises:
        UserError: If the package that reads the format is not installed.
        ImageError: Missing, broken, over the limits, or of a format that is not read.
    """
    with image_errors(str(path)):
        return _open(Path(path).resolve(), str(path), *state_of(path))


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: Path, name: str, *_: int) -> OpenVolumes:
    from utils import dicom_volume, heidelberg_vol, meta_image, oct_devices

    suffix = path.suffix.lower()
    if dicom.is_dicom_file(path):
        return dicom_volume.open_dicom_volume(path)
    if suffix in (".mhd", ".mha"):
        return meta_image.open_meta_image(path)
    if suffix == ".vol":
        return heidelberg_vol.open_vol(path)
    if suffix in DEVICE_SUFFIXES:
        return oct_devices.open_device_file(path)
    known = ", ".join(VOLUME_SUFFIXES)
    raise ImageError(name, "not a volume", f"reads as none of DICOM, {known}")


def inspect_volumes(path: Path | str) -> tuple[VolumeInfo, ...]:
    """All volumes of a file, from its header alone where the format allows; see `open_volumes`."""
    return open_volumes(path).infos


def inspect_volume(path: Path | str) -> VolumeInfo:
    """The one volume of a file.

    Raises:
        ImageError: As `open_volumes`; and if the file holds several.
    """
    infos = inspect_volumes(path)
    if len(infos) > 1:
        raise ImageError(str(path), "several volumes", f"{len(infos)} in one file")
    return infos[0]


def choose(path: Path | str, *, central_n: int | None, around: str) -> list[FrameChoice]:
    """Frames to take of each volume of a file.

    Args:
        path: The file.
        central_n: So many neighbouring frames; None: all. A volume with fewer gives all it has.
        around: ``middle``, or ``fovea``: around the pit that `utils.fovea.guess_fovea` finds, the
            middle where it finds none, which the log tells.

    Raises:
        UserError, ImageError: As `open_volumes`.
    """
    opened = open_volumes(path)
    return [_choose(opened, info, central_n, around) for info in opened.infos]


def _choose(
    opened: OpenVolumes, info: VolumeInfo, central_n: int | None, around: str
) -> FrameChoice:
    numbers = range(info.first, info.first + info.num_frames)
    if central_n is None or central_n >= info.num_frames:
        return FrameChoice(info, tuple(numbers))
    center = info.num_frames // 2
    if around == "fovea":
        from utils.fovea import guess_fovea

        found = guess_fovea(partial(_grey, opened, info.first), info.num_frames)
        around = "middle" if found is None else around
        center = center if found is None else found
        if found is None:
            get_logger("volumes").info("no foveal pit found in a volume: its middle is taken")
    start = min(max(center - central_n // 2, 0), info.num_frames - central_n)
    return FrameChoice(info, tuple(numbers[start : start + central_n]), around)


def _grey(opened: OpenVolumes, first: int, frame: int):
    """A volume's frame as 8-bit grey, (H, W)."""
    import numpy as np

    from utils.image_files import to_8bit

    image = opened.read(first + frame)
    window = None
    if "window_problem" in image.info:  # told, or --window given, when it is written
        low, high = image.info["window"]
        window = low, max(high, low + 1)
    return np.asarray(to_8bit(image, window).convert("L"))


def choose_frames(path: Path | str, *, central_n: int | None, around: str) -> list[int]:
    """Numbers of the frames to take of all volumes of a file, in order; see `choose`."""
    choices = choose(path, central_n=central_n, around=around)
    return [frame for choice in choices for frame in choice.frames]
