"""Images whose files tell nothing but their pixels: one size, one form, no metadata."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from utils.dataset import Record
from utils.images import inspect_image, resize, share_lost

GRAY, COLOR = "gray", "rgb"
_MODES = {GRAY: ("L", 0), COLOR: ("RGB", 2)}  # of Pillow, and of a PNG's header
_LOSSY_FORMATS = ("JPEG", "MPO", "WEBP")


def blind_image(record: Record, *, resolution: int, resize_mode: str, color: str) -> bytes:
    """A record's image as a PNG whose length depends on resolution and colour alone.

    Args:
        record: Any image.
        resolution: Side in pixels.
        resize_mode: See ``utils.images.resize``; one that draws nothing.
        color: ``gray`` or ``rgb``, for every image of a study.
    """
    image = record.image().convert(_MODES[color][0])
    return stored_png(resize(image, resolution, resize_mode))


def stored_png(image: Image.Image) -> bytes:
    """PNG with uncompressed pixels: images of one size and mode give files of one length.

    A signature, IHDR, one IDAT and IEND (https://www.w3.org/TR/png-3), no filter, deflate without
    compression: nothing of it but pixels and checksums differs.

    Args:
        image: Mode ``L`` or ``RGB``, 8 bits.
    """
    kind = dict(_MODES.values())[image.mode]
    pixels = np.asarray(image)
    rows = pixels.reshape(pixels.shape[0], -1)  # (H, W * channels)
    rows = np.pad(rows, ((0, 0), (1, 0)))  # each begins with the number of its filter: 0
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def smallest_common_side(arms: Mapping[str, Sequence[Record]]) -> int:
    """The side that no arm must be enlarged to: the smallest of the arms' most frequent ones."""
    return min(
        Counter(min(header[:2]) for header in map(_header, records)).most_common(1)[0][0]
        for records in arms.values()
    )


def _header(record: Record):
    return inspect_image(record.image_source)


def visible_differences(
    arms: Mapping[str, Sequence[Record]], *, resolution: int, resize_mode: str
) -> list[str]:
    """What bringing all images to one form cannot hide, since it stays in the pixels; in words.

    Args:
        arms: The images that are shown, by arm.
        resolution: Side they are brought to.
        resize_mode: How.
    """
    headers = {name: list(map(_header, records)) for name, records in arms.items()}
    notes = []
    aspects = {
        "size": lambda h: f"{h.width} x {h.height} px",
        "bit depth": lambda h: f"{h.bit_depth} bits",
        "compression": lambda h: "lossy" if h.format in _LOSSY_FORMATS else "lossless",
        "colour": lambda h: "gray" if h.mode[0] in "LIF1" else "colour",
    }
    for aspect, tell in aspects.items():
        found = {name: Counter(map(tell, own)) for name, own in headers.items()}
        if len({frozenset(counts) for counts in found.values()}) > 1:
            told = "; ".join(f"{name}: {_most(counts)}" for name, counts in found.items())
            notes.append(f"the arms differ in {aspect}, which stays visible ({told})")
    lost = {
        n: np.mean([share_lost(*h[:2], resize_mode) for h in own]) for n, own in headers.items()
    }
    if max(lost.values()) > 0.01:
        told = ", ".join(f"{name} {share:.0%}" for name, share in lost.items())
        notes.append(f"--resize_mode {resize_mode} cuts away of the area: {told}")
    enlarged = [n for n, own in headers.items() if any(min(h[:2]) < resolution for h in own)]
    if enlarged:
        notes.append(f"images are enlarged to {resolution} px and look soft: {', '.join(enlarged)}")
    return notes


def _most(counts: Counter) -> str:
    listed = ", ".join(f"{count} of {value}" for value, count in counts.most_common(3))
    return listed + (", ..." if len(counts) > 3 else "")
