"""What a file of one or many volumes holds, whatever its format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from utils.dicom import MAX_FRAMES
from utils.image_files import MAX_PIXELS, ImageError

MAX_VALUES = 2**30  # of one file; 512 B-scans of 1024 x 1024 px are half of it


@dataclass(frozen=True)
class VolumeInfo:
    """One volume of a file.

    Attributes:
        num_frames: B-scans, at least 1.
        height: Of each, in pixels.
        width: Of each, in pixels.
        patient: Who it is of, as the file names the person: for pseudonyms alone, never to be
            shown or written. None if the file does not say.
        laterality: OD, OS or empty.
        device: Maker and model as far as the file tells.
        modality: OCT, CXR or DICOM's own word.
        first: The file's number of the volume's first frame.
        identity: What tells it from other volumes; for pseudonyms alone, as ``patient``.
        view: DICOM's View Position; empty where there is none.
    """

    num_frames: int
    height: int
    width: int
    patient: str | None = None
    laterality: str = ""
    device: str = ""
    modality: str = "OCT"
    first: int = 0
    identity: str = ""
    view: str = ""


@dataclass(frozen=True)
class OpenVolumes:
    """A file of volumes that is open.

    Attributes:
        infos: Its volumes, in order; their frames are numbered on through the file.
        read: A frame by its number, as `utils.image_files.decode` gives an image.
    """

    infos: tuple[VolumeInfo, ...]
    read: Callable[[int], Image.Image]


def check_size(path: Path | str, *, num_frames: int, height: int, width: int) -> None:
    """Refuse a volume over the limits before anything of it is decoded.

    Raises:
        ImageError: No pixels, or more of them, or of frames, than a scanner makes.
    """
    size = f"{num_frames} frames of {width} x {height} px"
    if min(num_frames, height, width) < 1:
        raise ImageError(str(path), "no image", size)
    too_large = height * width > MAX_PIXELS or num_frames * height * width > MAX_VALUES
    if too_large or num_frames > MAX_FRAMES:
        raise ImageError(str(path), "decompression bomb", f"{size} are over the limits")


def grey_frame(values: np.ndarray, window: tuple[float, float]) -> Image.Image:
    """A frame, (H, W), of any real type: 8 bits as they are, deeper ones with their window."""
    if values.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(values))
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    image.info["window"] = window
    image.info["bit_depth"] = 8 * values.dtype.itemsize
    return image


def value_range(frames: Sequence[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest finite value of all frames: one window for the whole volume."""
    finite = [frame[np.isfinite(frame)] for frame in frames]
    lows = [float(values.min()) for values in finite if values.size]
    highs = [float(values.max()) for values in finite if values.size]
    return (min(lows), max(highs)) if lows else (0.0, 1.0)
