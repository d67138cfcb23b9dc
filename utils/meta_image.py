"""MetaImage volumes (.mhd with .raw or .zraw, and .mha), by SimpleITK."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.cli import UserError
from utils.image_files import ImageError
from utils.volume_info import OpenVolumes, VolumeInfo, check_size, grey_frame, value_range

_HEADER_BYTES = 65536


def open_meta_image(path: Path) -> OpenVolumes:
    """Read a header; the values are read with the first frame.

    The third axis counts the B-scans, as in RETOUCH (https://retouch.grand-challenge.org).

    Raises:
        UserError: If SimpleITK is not installed.
        ImageError: Broken, over the limits, not grey, or its values in another folder.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise UserError(f"{path}: needs SimpleITK: pip install SimpleITK") from error
    _check_data_file(path)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageError(str(path), "corrupt volume", "its header is no MetaImage's") from error
    width, height, *depth = reader.GetSize()
    if len(depth) > 1 or reader.GetNumberOfComponents() != 1:
        raise ImageError(str(path), "no volume", "not two or three axes of grey values")
    num_frames = depth[0] if depth else 1
    check_size(path, num_frames=num_frames, height=height, width=width)

    @lru_cache(maxsize=1)
    def values() -> tuple[np.ndarray, tuple[float, float]]:
        try:
            stored = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise ImageError(str(path), "corrupt volume", "its values cannot be read") from error
        frames = stored.reshape(num_frames, height, width)
        return frames, value_range(frames)

    def read(frame: int):
        frames, window = values()
        return grey_frame(frames[frame], window)

    return OpenVolumes((VolumeInfo(num_frames, height, width),), read)


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its values; None if there is none.

    Raises:
        OSError: If the header cannot be read.
    """
    name = _data_name(path)
    beside = None if name is None or _is_elsewhere(name) else path.parent / name
    return beside if beside is not None and beside.is_file() else None


def _data_name(path: Path) -> str | None:
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES).decode("latin-1")
    found = re.search(r"^\s*ElementDataFile\s*=\s*(.+?)\s*$", header, re.MULTILINE)
    return None if found is None else found.group(1)


def _is_elsewhere(name: str) -> bool:
    return re.search(r"[/\\%]|^LIST\b|\s\d+\s", name) is not None


def _check_data_file(path: Path) -> None:
    """Refuse a header whose values lie elsewhere than beside it, or are not there."""
    name = _data_name(path)
    if name is None:
        raise ImageError(str(path), "corrupt volume", "no ElementDataFile: no MetaImage header")
    if name.upper() == "LOCAL":
        return
    if _is_elsewhere(name):
        raise ImageError(
            str(path), "corrupt volume", f"its values in {name!r}, not one file beside"
        )
    if not (path.parent / name).is_file():
        raise ImageError(str(path), "missing file", f"its values should be in {name} beside it")
