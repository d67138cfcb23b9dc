"""Where the picture of an image file ends: what follows is shown by no viewer, and may be anything.

JPEG: ITU-T T.81, annex B; PNG: ISO/IEC 15948, 5.3; WebP: RFC 9649, 2.4; BMP: bfSize of its header.
"""

from __future__ import annotations

import re
import struct

_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_ALONE = frozenset([0x01, *range(0xD0, 0xD9)])  # markers without a length
# In the coded data FF00 is a byte FF, and FFD0 to FFD7 are restarts; FF before a marker is fill.
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PADDING = b"\0\xff \r\n\t"  # what writers fill files up with


def bytes_after_end(content: bytes, image_format: str) -> bytes:
    """What stands behind the picture, without padding; empty for formats without an end.

    Args:
        content: Of the whole file.
        image_format: Pillow's name: JPEG, MPO, PNG, WEBP, BMP; others have no end.
    """
    if image_format in ("JPEG", "MPO"):
        end = _end_of_jpeg(content)
    elif image_format == "PNG":
        end = _end_of_png(content)
    elif image_format == "WEBP" and len(content) >= 8:
        end = 8 + struct.unpack_from("<I", content, 4)[0]
    elif image_format == "BMP" and len(content) >= 6:
        end = struct.unpack_from("<I", content, 2)[0] or len(content)
    else:
        return b""
    return content[end:].strip(_PADDING)


def _end_of_jpeg(content: bytes) -> int:
    place = 2  # after the start of the image
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            return len(content)  # a broken file: the decoder has its say of it
        marker = content[place + 1]
        if marker == _END_OF_IMAGE:
            return place + 2
        if marker in _ALONE:
            place += 2
            continue
        if marker == 0xFF:
            place += 1
            continue
        place += 2 + struct.unpack_from(">H", content, place + 2)[0]
        if marker == _START_OF_SCAN:
            match = _MARKER_AFTER_SCAN.search(content, place)
            place = match.start() if match else len(content)
    return len(content)


def _end_of_png(content: bytes) -> int:
    place = 8  # after the signature
    while place + 12 <= len(content):
        length = struct.unpack_from(">I", content, place)[0]
        kind = content[place + 4 : place + 8]
        place += 12 + length
        if kind == b"IEND":
            return place
    return len(content)
