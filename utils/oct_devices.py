"""OCT devices' own files by `oct-converter` (https://github.com/marksgraham/OCT-Converter).

Its readers trust the files and print to stdout; here every way they fail becomes an ImageError
that names the file, and what would hang or fill the memory is refused before they run.
"""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from utils.cli import UserError
from utils.image_files import ImageError
from utils.volume_info import (
    MAX_VALUES,
    OpenVolumes,
    VolumeInfo,
    check_size,
    grey_frame,
    value_range,
)

COMMAND = "pip install -r requirements-formats.txt"
HEADLESS = "; where a library of the screen is missing: apt install libgl1 libglib2.0-0"
_DEVICES = {
    ".e2e": "Heidelberg Spectralis",
    ".fda": "Topcon",
    ".fds": "Topcon",
    ".img": "Zeiss Cirrus",
    ".oct": "Optovue",  # or Bioptigen, which uses the same suffix
}
SUFFIXES = tuple(_DEVICES)
_EYES = {"R": "OD", "L": "OS", "OD": "OD", "OS": "OS"}
_MAX_DIRECTORIES = 100_000  # of an .e2e file
_CIRRUS_HEIGHT = 1024  # samples of an A-scan of every Cirrus cube
_CIRRUS_CUBES = ((512, 128), (200, 200))  # A-scans, B-scans


class _Numpy:
    """NumPy as oct-converter 0.7.0 expects it: `fromstring` of bytes went in NumPy 2.3."""

    fromstring = staticmethod(np.frombuffer)

    def __getattr__(self, name: str):
        return getattr(np, name)


def open_device_file(path: Path) -> OpenVolumes:
    """Read a device's file whole.

    Raises:
        UserError: If oct-converter is not installed.
        ImageError: Broken, over the limits, or without a scan.
    """
    try:
        import_module("oct_converter.readers")
    except ImportError as error:  # of a library of the system too: OpenCV's libGL on a server
        raise UserError(f"{path}: needs oct-converter: {COMMAND} ({error}{HEADLESS})") from error
    if path.stat().st_size > 4 * MAX_VALUES:
        raise ImageError(str(path), "decompression bomb", f"{path.stat().st_size} bytes")
    with _reader_errors(path):
        volumes = _read(path)
    infos, frames = [], []
    for number, volume in enumerate(volumes):
        scans = [_checked(path, scan) for scan in volume.volume]
        if not scans:
            continue
        infos.append(_describe(path, volume, scans, first=len(frames), number=number))
        frames += scans
    if not frames:
        raise ImageError(str(path), "no image", "no B-scan in it")

    @lru_cache(maxsize=len(infos))
    def window_of(first: int, count: int) -> tuple[float, float]:
        if path.suffix.lower() == ".e2e":  # the reader's grey values in [0, 1]
            return 0.0, 1.0
        return value_range(frames[first : first + count])

    def read(frame: int) -> Image.Image:
        if frames[frame].ndim == 3:
            return Image.fromarray(frames[frame])
        info = next(info for info in reversed(infos) if info.first <= frame)
        return grey_frame(frames[frame], window_of(info.first, info.num_frames))

    return OpenVolumes(tuple(infos), read)


@contextlib.contextmanager
def _reader_errors(path: Path) -> Iterator[None]:
    from construct import ConstructError
    from oct_converter.exceptions import InvalidOCTReaderError

    said = io.StringIO()
    errors = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NameError)
    errors += (OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error)
    try:
        with warnings.catch_warnings(record=True) as remarks, contextlib.redirect_stdout(said):
            warnings.simplefilter("always")  # kept from stderr: they may quote the file
            yield
    except ImageError:
        raise
    except (ConstructError, InvalidOCTReaderError, *errors) as error:
        kind = type(error).__name__
        raise ImageError(str(path), "corrupt volume", f"oct-converter: {kind}") from error
    # Where it is cut off, it goes on: with memory nobody has filled, or without the B-scan.
    remarked = any("Could not reshape image" in str(remark.message) for remark in remarks)
    if remarked or "Stopping load" in said.getvalue():
        raise ImageError(str(path), "corrupt volume", "oct-converter: cut off")


def _read(path: Path) -> Sequence:
    """The file's volumes, as oct-converter's `OCTVolumeWithMetaData`."""
    readers = import_module("oct_converter.readers")
    suffix = path.suffix.lower()
    if suffix == ".e2e":
        _check_directories(path)
        return readers.E2E(path).read_oct_volume()
    if suffix in (".fda", ".fds"):
        module = import_module(f"oct_converter.readers.{suffix[1:]}")
        module.np = _Numpy()
        return [getattr(module, suffix[1:].upper())(path).read_oct_volume()]
    if suffix == ".img":
        width, num_frames = _cirrus_shape(path)
        check_size(path, num_frames=num_frames, height=_CIRRUS_HEIGHT, width=width)
        return [readers.IMG(path).read_oct_volume(rows=_CIRRUS_HEIGHT, cols=width)]
    if path.with_suffix(".txt").is_file():
        # Of several scans in one file the reader gives the first one's pixels to all.
        return readers.POCT(path).read_oct_volume()[:1]
    volumes = readers.BOCT(path).read_oct_volume()
    for volume in volumes:
        volume.volume = [scan.T for scan in volume.volume]  # stored A-scan by A-scan
    return volumes


def _check_directories(path: Path) -> None:
    """Follow the .e2e file's chain of directories, as its reader would do for ever in a circle.

    Entries beyond the end of the file are refused: the reader would leave such scans out.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        skip = 64 if stream.read(21) == b"E2EMultipleVolumeFile" else 0
        (at,) = _unsigned(stream, skip + 36 + 40, 1)
        seen = set()
        while at:
            if at in seen or len(seen) > _MAX_DIRECTORIES:
                raise ImageError(str(path), "corrupt volume", "its directories go in circles")
            seen.add(at)
            count, _, previous = _unsigned(stream, skip + at + 36, 3)
            for number in range(count):
                position, start = _unsigned(stream, skip + at + 52 + 44 * number, 2)
                if position < start and skip + start + 60 > size:
                    raise ImageError(str(path), "corrupt volume", f"cut off before byte {start}")
            at = previous


def _unsigned(stream: io.BufferedReader, offset: int, count: int) -> tuple[int, ...]:
    stream.seek(offset)
    return struct.unpack(f"<{count}I", stream.read(4 * count))


def _cirrus_shape(path: Path) -> tuple[int, int]:
    """A-scans and B-scans of a Cirrus cube, which has no header: by its name, else its size."""
    scans = path.stat().st_size / _CIRRUS_HEIGHT
    named = re.search(r"(?<!\d)(\d{2,4})x(\d{1,4})(?!\d)", path.name)
    cubes = [tuple(map(int, named.groups()))] if named else _CIRRUS_CUBES
    for width, num_frames in cubes:
        if width * num_frames == scans:
            return width, num_frames
    known = ", ".join(f"{width}x{count}" for width, count in cubes)
    detail = f"{path.stat().st_size} bytes are no cube of {known}, each A-scan {_CIRRUS_HEIGHT}"
    raise ImageError(str(path), "corrupt volume", detail)


def _checked(path: Path, scan) -> np.ndarray:
    """A B-scan as grey (H, W) of any type, or 8-bit colour (H, W, 3)."""
    scan = np.asarray(scan)
    if scan.ndim not in (2, 3) or (scan.ndim == 3 and scan.dtype != np.uint8):
        raise ImageError(str(path), "corrupt volume", f"a B-scan of {scan.ndim} axes")
    check_size(path, num_frames=1, height=scan.shape[0], width=scan.shape[1])
    return scan.astype(np.float32) if scan.dtype == np.float64 else scan


def _describe(path: Path, volume, scans, *, first: int, number: int) -> VolumeInfo:
    height, width = scans[0].shape[:2]
    check_size(path, num_frames=first + len(scans), height=height, width=width)
    names = (volume.surname, volume.first_name, volume.DOB)
    person = str(volume.patient_id or "").strip() or " ".join(str(n) for n in names if n)
    bioptigen = path.suffix.lower() == ".oct" and not path.with_suffix(".txt").is_file()
    return VolumeInfo(
        len(scans),
        height,
        width,
        patient=person.strip() or None,
        laterality=_EYES.get(str(volume.laterality or ""), ""),
        device="Bioptigen" if bioptigen else _DEVICES[path.suffix.lower()],
        first=first,
        identity=f"{volume.volume_id or ''}#{number}",
    )
