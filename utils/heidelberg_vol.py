"""Heidelberg's raw export (.vol): a header, the fundus picture, B-scans of float values.

Offsets by the HSF-OCT specification, as published with the HEYEX reader of Mayer et al.
(https://www5.cs.fau.de/research/software/octseg/): versions 100 to 104 begin alike.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.image_files import ImageError
from utils.volume_info import OpenVolumes, VolumeInfo, check_size, grey_frame

_HEADER_BYTES = 2048
_MAGIC = b"HSF-OCT-1"
_INVALID = 1e30  # values above are no measurement (the file has the largest float32)
_DISPLAY_POWER = 0.25  # reflectivity to grey, as the device's own display


def open_vol(path: Path) -> OpenVolumes:
    """Read the header; each frame is read when it is asked for.

    Raises:
        ImageError: Not this format, cut off, or over the limits.
    """
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise ImageError(str(path), "not a volume", "does not begin as Heidelberg's .vol does")
    width, num_frames, height = struct.unpack_from("<3i", header, 12)
    slo_width, slo_height = struct.unpack_from("<2i", header, 48)
    (scan_header,) = struct.unpack_from("<i", header, 100)
    check_size(path, num_frames=num_frames, height=height, width=width)
    scan_bytes = scan_header + 4 * width * height
    first = _HEADER_BYTES + slo_width * slo_height
    needed = first + num_frames * scan_bytes
    if min(slo_width, slo_height, scan_header) < 0 or path.stat().st_size < needed:
        raise ImageError(str(path), "corrupt volume", f"cut off: {needed} bytes are to be there")
    position = _text(header[84:88])
    info = VolumeInfo(
        num_frames,
        height,
        width,
        patient=_text(header[140:161]) or None,
        laterality=position if position in ("OD", "OS") else "",
        device="Heidelberg Spectralis",
        identity=_text(header[104:120]),
    )

    def read(frame: int):
        with path.open("rb") as stream:
            stream.seek(first + frame * scan_bytes + scan_header)
            return grey_frame(_shown(stream, (height, width)), (0.0, 1.0))

    return OpenVolumes((info,), read)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("latin-1").strip()


def _shown(stream: BinaryIO, shape: tuple[int, int]) -> np.ndarray:
    """Reflectivities as grey in [0, 1], (H, W) float32; black where nothing was measured."""
    values = np.frombuffer(stream.read(4 * shape[0] * shape[1]), "<f4").reshape(shape)
    measured = np.isfinite(values) & (values < _INVALID)
    return np.clip(np.where(measured, values, 0), 0, 1) ** _DISPLAY_POWER
