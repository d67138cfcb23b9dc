"""DICOM files as PIL images, by pydicom, which is asked for only when a DICOM file comes along.

The attributes are read without the pixels, and frames are decoded one at a time; how stored values
become grey is `utils.dicom_display`'s part.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from utils.cli import UserError
from utils.dicom_display import colour_image, frame_attributes, grey_image, is_plain

PREAMBLE_BYTES = 132  # 128 free bytes, then the four letters DICM (PS3.10, 7.1)
MAX_FRAMES = 4096  # of one file; the densest retinal volumes have some 1,500 B-scans
_DEFLATED = "1.2.840.10008.1.2.1.99"

# Transfer syntaxes beyond Pillow, and what decodes them (pydicom's documentation, "plugins").
_LIBJPEG = "pip install pylibjpeg pylibjpeg-libjpeg"
_OPENJPEG = "pip install pylibjpeg pylibjpeg-openjpeg"
_DECODERS = {
    "1.2.840.10008.1.2.4.51": ("libjpeg", _LIBJPEG),  # JPEG extended, 12 bits
    "1.2.840.10008.1.2.4.57": ("libjpeg", _LIBJPEG),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": ("libjpeg", _LIBJPEG),  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": ("libjpeg", _LIBJPEG),  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": ("libjpeg", _LIBJPEG),  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": ("openjpeg", _OPENJPEG),  # JPEG 2000 lossless; colour over 8 bits
    "1.2.840.10008.1.2.4.91": ("openjpeg", _OPENJPEG),  # JPEG 2000
    "1.2.840.10008.1.2.4.201": ("openjpeg", _OPENJPEG),  # high-throughput JPEG 2000
    "1.2.840.10008.1.2.4.202": ("openjpeg", _OPENJPEG),
    "1.2.840.10008.1.2.4.203": ("openjpeg", _OPENJPEG),
}


_BROKEN_FILE_ERRORS = (  # what pydicom raises, beside its own classes
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    AssertionError,
    struct.error,
    zlib.error,
)


class DicomError(ValueError):
    """A DICOM file that gives no image; ``kind`` is the short name of what is wrong."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        self.detail = detail
        super().__init__(f"{kind}: {detail}")


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these `PREAMBLE_BYTES` bytes is DICOM."""
    return head[128:132] == b"DICM"


def is_dicom_stream(stream: BinaryIO) -> bool:
    """Whether an open file, at its start, is DICOM; its first bytes are read."""
    return is_dicom(stream.read(PREAMBLE_BYTES))


def is_dicom_file(path: Path | str) -> bool:
    """Whether a file's first bytes are a DICOM's, whatever its name."""
    with Path(path).open("rb") as stream:
        return is_dicom_stream(stream)


def _broken_file_errors() -> tuple[type[Exception], ...]:
    if find_spec("pydicom") is None:
        return _BROKEN_FILE_ERRORS
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (*_BROKEN_FILE_ERRORS, BytesLengthException, InvalidDicomError)


@contextmanager
def pydicom_errors() -> Iterator[None]:
    """Turn what pydicom raises on broken files into DicomError; its texts may quote patients."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DicomError, UserError):
        raise
    except _broken_file_errors() as error:
        # Its class alone: the text may quote what stands in the file, names among it.
        raise DicomError("corrupt image", f"DICOM: pydicom: {type(error).__name__}") from error


def read_header(stream: BinaryIO, *, pixels: bool = True, max_pixels: int | None = None):
    """Read all attributes but the pixels.

    Args:
        stream: The file, at its start.
        pixels: Refuse a file that holds no image, or one over the limits.
        max_pixels: Of one frame.

    Returns:
        A pydicom dataset.

    Raises:
        UserError: If pydicom is not installed.
        DicomError: Not readable, deflated, without an image, too many pixels or frames.
    """
    try:
        import pydicom
        from pydicom.filereader import _read_file_meta_info, read_preamble
    except ImportError as error:
        raise UserError("a DICOM file needs pydicom: pip install pydicom") from error
    with pydicom_errors():
        read_preamble(stream, False)
        # Before dcmread: it would inflate a deflated file whole, however large it becomes.
        if _read_file_meta_info(stream).get("TransferSyntaxUID") == _DEFLATED:
            raise DicomError("deflated DICOM", "is not read; save it uncompressed (dcmconv +te)")
        stream.seek(0)
        header = pydicom.dcmread(stream, stop_before_pixels=True)
        if pixels:
            _check_size(header, max_pixels)
        return header


def _check_size(header, max_pixels: int | None) -> None:
    if not header.get("Rows") or not header.get("Columns"):
        raise DicomError("no image", "without rows and columns: no picture, or cut off")
    size = f"{header.Columns} x {header.Rows} px"
    if max_pixels is not None and header.Rows * header.Columns > max_pixels:
        raise DicomError("decompression bomb", f"{size}, the limit is {max_pixels} pixels")
    if not 1 <= num_frames(header) <= MAX_FRAMES:
        detail = f"{num_frames(header)} frames; 1 to {MAX_FRAMES} are read"
        raise DicomError("decompression bomb", detail)


def num_frames(header) -> int:
    """Frames that a file says it holds."""
    return int(header.get("NumberOfFrames") or 1)


def decode_frame(stream: BinaryIO, header, frame: int = 0) -> Image.Image:
    """Decode one frame; the others are not.

    Args:
        stream: The file.
        header: As `read_header` gives it.
        frame: Counted from 0.

    Returns:
        Mode ``RGB``; mode ``L`` for 8 bits that need no window; else mode ``F`` as
        `dicom_display.grey_image` gives it. ``info["bit_depth"]`` always.

    Raises:
        DicomError: If the pixels are broken, or need a decoder that is not installed.
    """
    from pydicom.pixels import apply_color_lut, pixel_array

    with pydicom_errors():
        attributes = frame_attributes(header, frame)
        bits = int(header.get("BitsStored") or header.BitsAllocated)
        try:
            several = num_frames(header) > 1
            pixels = pixel_array(stream, index=frame if several else None)
        except RuntimeError as error:
            _check_decoder(header, error)
            raise
        if header.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, header)[..., :3]
            bits = int(header.RedPaletteColorLookupTableDescriptor[2])
        image = colour_image(pixels, bits) if pixels.ndim == 3 else grey_image(pixels, attributes)
    image.info["bit_depth"] = bits
    return image


def _check_decoder(header, error: RuntimeError) -> None:
    syntax = header.file_meta.TransferSyntaxUID
    module, command = _DECODERS.get(syntax, (None, ""))
    if module is not None and find_spec(module) is None:
        raise DicomError("missing decoder", f"{syntax.name} needs: {command}") from error


def open_dicom(stream: BinaryIO, *, max_pixels: int) -> Image.Image:
    """Decode a DICOM file with one frame; the image is as `decode_frame` gives it.

    Raises:
        UserError: If pydicom is not installed.
        DicomError: If the file has no image, several frames, or more than ``max_pixels``.
    """
    header = _single(stream, max_pixels)
    return decode_frame(stream, header)


def _single(stream: BinaryIO, max_pixels: int):
    header = read_header(stream, max_pixels=max_pixels)
    if num_frames(header) > 1:
        way_out = "prepare_dataset.py import --layout dicom takes them apart"
        raise DicomError("several frames", f"{num_frames(header)} frames; {way_out}")
    return header


def describe_dicom(stream: BinaryIO, *, max_pixels: int) -> tuple[int, int, str, int]:
    """Width, height, mode and bits per channel of a file with one frame, from its header alone."""
    with pydicom_errors():
        header = _single(stream, max_pixels)
        bits = int(header.get("BitsStored") or header.BitsAllocated)
        colour = int(header.get("SamplesPerPixel") or 1) > 1
        palette = header.PhotometricInterpretation == "PALETTE COLOR"
        grey = "L" if is_plain(frame_attributes(header)) else "F"
        return header.Columns, header.Rows, "RGB" if colour or palette else grey, bits
