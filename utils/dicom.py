"""DICOM files as PIL images, by pydicom, which is asked for only when a DICOM file comes along."""

from typing import BinaryIO

import numpy as np
from PIL import Image

from utils.cli import UserError

PREAMBLE_BYTES = 132  # 128 free bytes, then the four letters DICM (PS3.10, 7.1)


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these `PREAMBLE_BYTES` bytes is DICOM."""
    return head[128:132] == b"DICM"


def _window(header) -> tuple[float, float] | None:
    """The file's first linear window as (low, high), PS3.3 C.11.2.1.2; None if it names none."""
    if "WindowCenter" not in header or "WindowWidth" not in header:
        return None
    first = [np.atleast_1d(header[key].value)[0] for key in ("WindowCenter", "WindowWidth")]
    center, width = (float(value) for value in first)
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def open_dicom(stream: BinaryIO, *, max_pixels: int) -> Image.Image:
    """Decode a DICOM file with one frame.

    Returns:
        Mode ``RGB``, or mode ``F`` in rescaled values (Rescale Slope and Intercept applied) with
        ``info``: ``bit_depth``; ``window`` (low, high) if the file names one; ``inverted`` if
        small values are bright (MONOCHROME1).

    Raises:
        UserError: If pydicom is not installed.
        ValueError: If the file has no pixels, several frames, or more than ``max_pixels``.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels import apply_modality_lut, convert_color_space
    except ImportError as error:
        raise UserError("a DICOM file needs pydicom: pip install pydicom") from error
    try:
        header = pydicom.dcmread(stream)
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise ValueError(f"{header.NumberOfFrames} frames; save each as a file of its own")
        if header.Rows * header.Columns > max_pixels:
            raise ValueError(f"decompression bomb: {header.Columns} x {header.Rows} px")
        pixels = header.pixel_array
    except (InvalidDicomError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"DICOM: {error}") from error
    if pixels.ndim == 3:
        interpretation = header.PhotometricInterpretation
        if interpretation.startswith("YBR"):
            pixels = convert_color_space(pixels, interpretation, "RGB")
        image = Image.fromarray(pixels.astype(np.uint8))
    else:
        image = Image.fromarray(np.asarray(apply_modality_lut(pixels, header), dtype=np.float32))
        window = _window(header)
        if window is not None and window[0] < window[1]:
            image.info["window"] = window
        image.info["inverted"] = header.PhotometricInterpretation == "MONOCHROME1"
    image.info["bit_depth"] = int(header.BitsStored)
    return image
