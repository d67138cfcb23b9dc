"""Writes volumes as devices do, byte by byte from their formats' descriptions, for tests.

None of it uses the project's readers or oct-converter.
"""

import struct

import numpy as np


def write_vol(path, shares, *, position="OD", patient="", slo=(8, 6), scan_header=256):
    """Heidelberg .vol of reflectivities, (F, H, W) float."""
    num_frames, height, width = shares.shape
    header = bytearray(2048)
    header[:11] = b"HSF-OCT-103"
    struct.pack_into("<3i", header, 12, width, num_frames, height)
    struct.pack_into("<2i", header, 48, *slo)
    header[84:86] = position.encode()
    struct.pack_into("<i", header, 100, scan_header)
    header[104:112] = b"volume-1"
    header[140 : 140 + len(patient)] = patient.encode()
    scans = b"".join(b"\1" * scan_header + scan.astype("<f4").tobytes() for scan in shares)
    path.write_bytes(bytes(header) + b"\7" * (slo[0] * slo[1]) + scans)
    return path


def write_mhd(path, values, *, compressed=False):
    """MetaImage, (F, H, W) of uint8, uint16 or float32, as RETOUCH distributes its volumes."""
    import zlib

    kind = {"u1": "MET_UCHAR", "u2": "MET_USHORT", "f4": "MET_FLOAT"}[values.dtype.str[1:]]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    name = path.stem + (".zraw" if compressed else ".raw")
    lines = [
        "ObjectType = Image",
        f"NDims = {values.ndim}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {compressed}",
    ]
    if compressed:
        data = zlib.compress(data)
        lines.append(f"CompressedDataSize = {len(data)}")
    lines += [
        f"DimSize = {' '.join(str(size) for size in reversed(values.shape))}",
        "ElementSpacing = 0.0117 0.0019 0.047"[: 16 + 7 * values.ndim + 3],
        f"ElementType = {kind}",
        f"ElementDataFile = {name}",
    ]
    path.write_text("\n".join(lines) + "\n")
    (path.parent / name).write_bytes(data)
    return path


def write_cirrus(path, scans):
    """Zeiss cube, (F, 1024, W) uint8: no header, A-scan after A-scan."""
    path.write_bytes(scans.transpose(0, 2, 1).tobytes())
    return path


def write_optovue(path, scans, *, eye="OD"):
    """Optovue .OCT, (F, H, W) float32, with its .txt."""
    num_frames, height, width = scans.shape
    rows = [np.rot90(scan, -1) for scan in scans]  # stored A-scan by A-scan, deepest first
    path.write_bytes(np.stack(rows).astype("<f4").tobytes())
    lines = ["OCT Window Height = @", "Scan Length = # Ascans", "Scan Usage = $ frames"]
    text = "\n".join([*lines, f"Eye Scanned = {eye}"])
    text = (
        text.replace("@", f" {height} ").replace("#", f" {width} ").replace("$", f" {num_frames} ")
    )
    path.with_suffix(".txt").write_text(text)
    return path


def _chunk(name, data):
    return bytes([len(name)]) + name + struct.pack("<I", len(data)) + data


def write_topcon(path, scans, *, patient="12345", first="Jane", last="Doe", eye=1):
    """Topcon .fds or .fda, (F, H, W) uint16."""
    num_frames, height, width = scans.shape
    sizes = struct.pack("<BIIIIB", 2, width, height, 16, num_frames, 0)
    pixels = struct.pack("<I", scans.size * 2) + scans.astype("<u2").tobytes()
    person = b"".join(part.encode().ljust(32, b"\0") for part in (patient, first, last))
    person += b"\0" * 8 + b"\1" + struct.pack("<3H", 1950, 2, 3)
    taken = struct.pack("<BBI", eye, 2, 1) + b"\0" * 100 + struct.pack("<6H", 2020, 1, 2, 3, 4, 5)
    chunk = b"@IMG_SCAN_03" if path.suffix == ".fds" else b"@IMG_MOT_COMP_03"
    kind = path.suffix[1:].upper().encode()
    path.write_bytes(
        b"FOCT"
        + kind
        + struct.pack("<2I", 1, 2)
        + _chunk(b"@PATIENT_INFO_02", person.ljust(800, b"\0"))
        + _chunk(b"@CAPTURE_INFO_02", taken)
        + _chunk(chunk, sizes + pixels)
        + b"\0"
    )
    return path


def write_e2e(path, volumes, *, first="Jane", last="Doe", patient="12345", circular=False):
    """Heidelberg .e2e with several volumes, each (F, H, W) of uint16 in the device's own floats."""

    def chunk(kind, series, scan, data, ind=0):
        head = b"MDbData".ljust(12, b"\0") + struct.pack("<5I", 0, 0, 0, len(data), 0)
        head += struct.pack("<3IiHHII", 1, 1, series, scan, ind, 0, kind, 0)
        return (series, scan, kind), head + data

    person = first.encode().ljust(31, b"\0") + last.encode().ljust(51, b"\0") + b"\0" * 15
    person += struct.pack("<I", 19500203) + b"F" + patient.encode().ljust(25, b"\0")
    chunks = [chunk(9, 0, -1, person)]
    for series, scans in enumerate(volumes, start=1):
        for number, scan in enumerate(scans):
            image = struct.pack("<5I", scan.size * 2, 0, 0, *scan.shape)
            image += scan.astype("<u2").tobytes()
            chunks.append(chunk(0x40000000, series, 2 * number, image, ind=1))
    begin = 36 + 52
    position = begin + 52 + 44 * len(chunks)
    entries, bodies = b"", b""
    for (series, scan, kind), body in chunks:
        at = position + len(bodies)
        entries += struct.pack("<4I3IiHHII", 1, at, len(body), 0, 1, 1, series, scan, 0, 0, kind, 0)
        bodies += body
    blank = struct.pack("<I10H", 0, *[0] * 10)

    def directory(count, current, previous):
        return b"MDbDir".ljust(12, b"\0") + blank + struct.pack("<4I", count, current, previous, 0)

    path.write_bytes(
        b"CMDb".ljust(12, b"\0")
        + blank
        + directory(0, begin, 0)
        + directory(len(chunks), 0, begin if circular else 0)
        + entries
        + bodies
    )
    return path
