"""What can be wrong with the pixels of a data set: every image is decoded once.

Memory does not grow with the images but for a hash of each, 24 bytes.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from utils.dataset_records import HubImage, Problem, Record
from utils.image_files import (
    DIGEST_BYTES,
    ImageError,
    ImageInfo,
    Window,
    decode,
    inspect_image,
    pixel_hash,
    to_8bit,
)
from utils.image_files import value_window as window_of
from utils.lazy_records import take
from utils.workers import iterate_in_processes

DUPLICATE = "duplicate pixels"  # kind of problem
MIN_SIDE_PX = 8  # one latent of Stable Diffusion's VAE

Judged = list[tuple[int, Problem]]


class PixelReport(NamedTuple):
    """What decoding one image told; ``kind`` and ``detail`` are set if it failed."""

    info: ImageInfo | None = None
    hash: str = ""
    window: Window | None = None
    kind: str = ""
    detail: str = ""


def report_pixels(source) -> PixelReport:
    """Decode one image in full and tell what it is."""
    try:
        image, info = decode(source)
        window = window_of(image)
        digest = pixel_hash(to_8bit(image))
    except ImageError as error:
        return PixelReport(kind=error.kind, detail=error.detail)
    return PixelReport(info=info, hash=digest, window=window)


def read_pixels(
    records: Sequence[Record], *, num_workers: int | None = None, memory=None
) -> Iterator[PixelReport]:
    """Decode every image, in parallel, with a progress bar on stderr; one report after another.

    Args:
        records: The images.
        num_workers: Processes; 0 decodes here. Default: one per core, and none for few images.
        memory: A `utils.pixel_digests.DigestMemory` of these records: what it knows is decoded
            again only where there is more to tell than a hash, and what is new it will know.
    """
    if memory is None:
        yield from _decode(records, num_workers)
        return
    known = {
        int(place): _recalled(records[place], memory, place)
        for place in np.flatnonzero(memory.known)
    }
    known = {place: report for place, report in known.items() if report is not None}
    new = [place for place in range(len(records)) if place not in known]
    decoded = iter(_decode(take(records, new), num_workers)) if new else iter(())
    places, digests = array("q"), bytearray()
    for place in range(len(records)):
        report = known[place] if place in known else next(decoded)
        if place not in known and report.info is not None:
            places.append(place)
            digests += bytes.fromhex(report.hash)
        yield report
    assert next(decoded, None) is None  # ends its progress bar and its processes
    memory.remember(
        np.array(places, np.int64), np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)
    )


def _recalled(record: Record, memory, place: int) -> PixelReport | None:
    """The report of an unchanged file by its header; None where it must be decoded again."""
    try:
        info = inspect_image(record.image_source)
    except ImageError:
        return None
    deep = info.bit_depth > 8  # its window stands in the pixels
    return None if deep else PixelReport(info=info, hash=memory.digests[place].tobytes().hex())


def _decode(records: Sequence[Record], num_workers: int | None) -> Iterator[PixelReport]:
    if records and isinstance(records[0].source, HubImage):
        num_workers = 0  # the hub's table would be copied to the workers with every image
    sources = (record.image_source for record in records)
    return iterate_in_processes(
        report_pixels,
        sources,
        total=len(records),
        description="checking pixels",
        num_workers=num_workers,
    )


def judge_pixels(
    records: Sequence[Record], reports: Iterable[PixelReport]
) -> tuple[Judged, list[str]]:
    """Judge decoded images; kept of each is the hash of its pixels.

    Args:
        records: The images.
        reports: What `read_pixels` told of them, in the same order.

    Returns:
        The problems, each with its place in ``records``, and notes on bit depths.
    """
    found: Judged = []
    digests, places = bytearray(), array("q")
    windowed, shortened = _Tally(), _Tally()
    for place, report in enumerate(reports):
        if report.window is not None:
            windowed.add(place, "{:g}..{:g}".format(*report.window))
        elif report.info is not None and report.info.bit_depth > 8:
            shortened.add(place)
        trouble = _pixel_trouble(report)
        if trouble is not None:
            record = records[place]
            problem = Problem(record.where, trouble[0], f"{record.file_name}: {trouble[1]}")
            found.append((place, problem))
        else:
            digests += bytes.fromhex(report.hash)
            places.append(place)
    for later, first in repeats(digests):
        problem = _duplicate(records[places[later]], records[places[first]])
        found.append((places[later], problem))
    return sorted(found, key=itemgetter(0)), _depth_notes(records, windowed, shortened)


def _pixel_trouble(report: PixelReport) -> tuple[str, str] | None:
    """Kind and detail of what is wrong with one image by itself."""
    if report.info is None:
        return report.kind, report.detail
    return size_trouble(report.info.width, report.info.height)


def size_trouble(width: int, height: int) -> tuple[str, str] | None:
    """Kind and detail if an image is too small in pixels; None if it is not."""
    if min(width, height) < MIN_SIDE_PX:
        return "too small", f"{width} x {height} px, at least {MIN_SIDE_PX} needed"
    return None


def _duplicate(record: Record, first: Record) -> Problem:
    detail = f"{record.file_name} has the pixels of {first.file_name} at {first.where}"
    if first.split != record.split:
        detail += f", which is in split {first.split}, this in {record.split}"
    return Problem(record.where, DUPLICATE, detail)


def repeats(digests: bytes | bytearray) -> list[tuple[int, int]]:
    """Which of many digests stood there before.

    Args:
        digests: N of `DIGEST_BYTES` each, one after the other.

    Returns:
        (number of the digest, number of the first that is equal), for each that is not the first.
    """
    values = np.frombuffer(digests, f"S{DIGEST_BYTES}")  # of equal length, so padding is harmless
    order = np.argsort(values, kind="stable")
    is_new = np.ones(len(order), bool)
    is_new[1:] = values[order[1:]] != values[order[:-1]]
    starts = np.flatnonzero(is_new)
    firsts = np.repeat(order[starts], np.diff([*starts.tolist(), len(order)]))
    again = order != firsts
    return sorted(zip(order[again].tolist(), firsts[again].tolist()))


@dataclass
class _Tally:
    """How many images, and the first of them."""

    count: int = 0
    first: int = 0
    detail: str = ""

    def add(self, place: int, detail: str = "") -> None:
        if not self.count:
            self.first, self.detail = place, detail
        self.count += 1


def _depth_notes(records: Sequence[Record], windowed: _Tally, shortened: _Tally) -> list[str]:
    notes = []
    if windowed.count:
        first = f"{records[windowed.first].file_name} {windowed.detail}"
        notes.append(windowed_note(windowed.count, first))
    if shortened.count:
        notes.append(shortened_note(shortened.count, records[shortened.first].file_name))
    return notes


def windowed_note(count: int, first: str) -> str:
    """Tell that images are windowed to 8 bits wherever they are read; of one an example."""
    return (
        f"{count} images are deeper than 8 bits: each is windowed by its own DICOM window or its "
        f"smallest and largest value (first: {first}); for one window for all, import with "
        "--image_format png --window LOW HIGH"
    )


def shortened_note(count: int, first: str) -> str:
    """Tell that colour images lose their lower bits wherever they are read; of one an example."""
    return f"{count} colour images are deeper than 8 bits: the upper 8 are used (first: {first})"
