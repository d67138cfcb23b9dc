"""One image from the source into the new folder: decoded once, judged, kept or written as PNG."""

from pathlib import Path
from typing import NamedTuple

from utils import dicom
from utils.dataset_import import hard_link
from utils.dataset_pixels import report_pixels, size_trouble
from utils.frames import read_frame
from utils.image_files import ImageError, Window, pixel_hash, png_bytes
from utils.images import shrink
from utils.importers.journal import Done, Entry
from utils.volumes import state_of


class Manner(NamedTuple):
    """How all images of an import are transferred.

    Attributes:
        folder: The new folder.
        as_png: Whether each image becomes a PNG; else those only whose new name says so.
        link: Whether kept files are hard-linked, not copied.
        window: For PNG: grey values of deeper images that become black and white.
        max_side: For PNG: longer sides are shrunk to this many pixels.
    """

    folder: str
    as_png: bool = False
    link: bool = False
    window: Window | None = None
    max_side: int | None = None


def transfer(entry: Entry, *, manner: Manner) -> Done:
    """Decode, judge and write one image; what is wrong with it is in the result.

    Raises:
        UserError: If a package that reads it is missing, or it cannot be linked.
        OSError: If it cannot be written.
    """
    done = Done(entry.name, entry.path, entry.frame)
    target = Path(manner.folder, entry.name)
    try:
        size, mtime_ns = state_of(entry.path)
    except OSError:
        return done._replace(kind="missing file", detail=f"{entry.source_name}: no such file")
    done = done._replace(size=size, mtime_ns=mtime_ns)
    kept = not manner.as_png and Path(entry.source_name).suffix == target.suffix
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # or writing would go through an old link into the source
    try:
        if kept and entry.frame is None:
            return _keep(entry, done, target, link=manner.link)
        return _write_png(entry, done, target, manner)
    except ImageError as error:
        return done._replace(kind=error.kind, detail=f"{entry.source_name}: {error.detail}")


def _keep(entry: Entry, done: Done, target: Path, *, link: bool) -> Done:
    try:
        data = Path(entry.path).read_bytes()
    except OSError as error:
        detail = f"cannot be read: {error.strerror}"
        raise ImageError(entry.source_name, "corrupt image", detail) from error
    if dicom.is_dicom(data[: dicom.PREAMBLE_BYTES]):
        detail = "DICOM under the name of another format; --image_format png leaves its tags behind"
        raise ImageError(entry.source_name, "DICOM", detail)
    report = report_pixels(data)
    if report.info is None:
        raise ImageError(entry.source_name, report.kind, report.detail)
    _check_sides(entry, report.info.width, report.info.height)
    if link:
        hard_link(entry.path, target)
    else:
        target.write_bytes(data)
    window = "{:g}..{:g}".format(*report.window) if report.window is not None else ""
    return done._replace(
        target_size=len(data), digest=report.hash, depth=report.info.bit_depth, window=window
    )


def _write_png(entry: Entry, done: Done, target: Path, manner: Manner) -> Done:
    image = read_frame(entry.path, entry.frame, window=manner.window)
    if manner.max_side is not None:
        image = shrink(image, manner.max_side)
    _check_sides(entry, image.width, image.height)
    data = png_bytes(image)
    target.write_bytes(data)
    return done._replace(target_size=len(data), digest=pixel_hash(image))


def _check_sides(entry: Entry, width: int, height: int) -> None:
    trouble = size_trouble(width, height)
    if trouble is not None:
        raise ImageError(entry.source_name, *trouble)
