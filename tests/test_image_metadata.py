"""What an image file says beside its pixels, wherever it lies and wherever it says it."""

import io
import json
import struct
import tarfile
import zlib
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

import prepare_dataset
from utils.image_metadata import metadata_entries


def told(source: Path, out: Path, capsys, *more: str) -> tuple[int, dict]:
    """Exit status of the check, and what it printed."""
    flags = ["--data_dir", str(source), "--output_dir", str(out), "--num_workers", "0"]
    status = prepare_dataset.main(["privacy", *flags, *more])
    return status, json.loads(capsys.readouterr().out)


def png_with(entries: dict[str, str], **options) -> bytes:
    text = PngImagePlugin.PngInfo()
    for key, value in entries.items():
        text.add_text(key, value)
    file = io.BytesIO()
    Image.new("L", (40, 30), 90).save(file, format="PNG", pnginfo=text, **options)
    return file.getvalue()


def test_metadata_of_images_in_shards_is_told(tmp_path, capsys):
    folder = tmp_path / "shards"
    folder.mkdir()
    members = {"0.png": png_with({"Author": "Okafor"}), "0.txt": b"Drusen.", "0.cls": b"AMD"}
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    status, result = told(folder, tmp_path / "out", capsys)
    assert status == 1
    assert result["by_rule"] == {"metadata: PNG Author": 1}


def jpeg(mode: str = "L", **options) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((48, 40), 50).convert(mode).save(file, format="JPEG", **options)
    return file.getvalue()


def with_segment(marker: int, content: bytes) -> bytes:
    """A JPEG with a segment of its own after the start of the image."""
    whole = jpeg()
    return whole[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + whole[2:]


def exif_with_thumbnail() -> bytes:
    """EXIF whose second directory (IFD1) points at a small JPEG."""
    small = jpeg()
    first = struct.pack("<HHHIII", 1, 0x0112, 3, 1, 1, 26)  # Orientation; IFD1 begins at 26
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(small), 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + small


def photoshop(number: int, content: bytes) -> bytes:
    return b"Photoshop 3.0\x008BIM" + struct.pack(">HHI", number, 0, len(content)) + content


def png_with_late_text() -> bytes:
    """A PNG whose text stands behind its pixels; EXIF before them, for else Pillow reads on."""
    exif = Image.Exif()
    exif[0x0112] = 1  # Orientation
    plain = png_with({}, exif=exif)
    body = b"tEXtAuthor\0Okafor"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return plain[:-12] + chunk + plain[-12:]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (jpeg(exif=exif_with_thumbnail()), "EXIF thumbnail"),
        (with_segment(0xEC, b"Okafor's viewer"), "JPEG APP12"),
        (with_segment(0xE3, b"Meta\0Okafor"), "JPEG APP3"),
        (with_segment(0xE0, b"JFXX\0\x13Okafor"), "JPEG APP0"),
        (with_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0Okafor"), "JPEG APP1"),
        (with_segment(0xED, photoshop(0x040C, b"a small picture.")), "JPEG thumbnail"),
        (with_segment(0xFE, b"Okafor"), "JPEG comment"),
        (jpeg() + b"Okafor 1951", "JPEG bytes after the end"),
        (jpeg("RGB", progressive=True) + jpeg(), "JPEG bytes after the end"),
        (png_with({}) + b"Okafor 1951", "PNG bytes after the end"),
        (png_with_late_text(), "PNG Author"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_viewer_shows_is_told(content, name):
    assert [entry[0] for entry in metadata_entries(partial(io.BytesIO, content))] == [name]


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP"])
def test_bytes_after_the_end_are_told_of_every_format_that_has_one(image_format):
    file = io.BytesIO()
    Image.new("L", (40, 30), 90).save(file, format=image_format)
    content = file.getvalue()
    assert metadata_entries(partial(io.BytesIO, content + b"\0\0\r\n")) == []
    ((name, value),) = metadata_entries(partial(io.BytesIO, content + b"Okafor"))
    assert name == f"{image_format} bytes after the end"
    assert "Okafor" in value


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"icc_profile": bytes(range(256)) * 300},
        {"mode": "RGB"},
        {"mode": "CMYK", "quality": 95},
    ],
)
def test_nothing_is_told_of_pixels_alone(options):
    for quality in (30, 100):
        content = jpeg(**{"quality": quality, **options})
        assert metadata_entries(partial(io.BytesIO, content)) == []


def test_keys_of_ones_own_are_not_quoted_in_what_is_told(tmp_path, capsys):
    folder, out = tmp_path / "set", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(png_with({"Jane Okafor 4711": "x", "PatientID": "17"}))
    (folder / "metadata.csv").write_text("file_name,text\na.png,Drusen.\n", encoding="utf-8")
    _, result = told(folder, out, capsys)
    assert result["by_rule"] == {"metadata: PNG PatientID": 1, "metadata: PNG text": 1}
    written = "".join(path.read_text(encoding="utf-8") for path in out.iterdir())
    assert "Okafor" not in written
    told(folder, out, capsys, "--show_findings")
    assert "Jane Okafor 4711" in (out / "privacy.csv").read_text(encoding="utf-8")
