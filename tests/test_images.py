"""Pixels in, pixels out: known answers, and each way a file can be broken."""

import contextlib
import io
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import image_files, images

ROOT = Path(__file__).parents[1]


def noise(height=48, width=64, *, seed=0, high=256):
    return np.random.default_rng(seed).integers(0, high, (height, width)).astype(np.uint8)


def encoded(image, image_format, **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def png_of(width, height, *, depth=8, colour=0, rows=b""):
    """A PNG by hand: Pillow can neither write 16-bit colour nor a header that lies."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def pixels(source, **options):
    return np.asarray(images.read_image(source, **options))


# Reading


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "WEBP"])
def test_eight_bits_are_read_as_they_are(image_format, tmp_path):
    colour = np.stack([noise(seed=seed) for seed in range(3)], axis=-1)
    path = tmp_path / "a file"
    path.write_bytes(encoded(Image.fromarray(colour), image_format, lossless=True))
    assert np.array_equal(pixels(path), colour)


@pytest.mark.parametrize("source", ["path", "str", "bytes", "opener"])
def test_an_image_can_come_from(source, tmp_path):
    data = encoded(Image.fromarray(noise()), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    given = {
        "path": tmp_path / "a.png",
        "str": str(tmp_path / "a.png"),
        "bytes": data,
        "opener": lambda: io.BytesIO(data),
    }[source]
    assert images.read_image(given).mode == "L"
    assert np.array_equal(pixels(given), noise())


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_windowed_not_clipped(image_format):
    values = np.array([[1000, 1000, 3000], [2000, 5000, 1500]] * 8, dtype=np.uint16)
    data = encoded(Image.fromarray(values), image_format)
    assert images.inspect_image(data).bit_depth == 16
    own = [[0, 0, 128], [64, 255, 32]]  # (value - 1000) / 4000 * 255, rounded
    given = [[0, 0, 255], [128, 255, 64]]  # (value - 1000) / 2000 * 255, cut at both ends
    assert pixels(data)[:2].tolist() == own
    assert pixels(data, window=(1000, 3000))[:2].tolist() == given


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_deep_tiff_is_windowed(dtype):
    values = np.array([[-100, 0], [100, 300]], dtype=dtype)
    assert pixels(encoded(Image.fromarray(values), "TIFF")).tolist() == [[0, 64], [128, 255]]


def test_a_flat_deep_image_is_black_not_a_division_by_zero():
    flat = np.full((8, 8), 7000, dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(flat), "PNG")).max() == 0


def test_a_window_leaves_eight_bits_alone():
    data = encoded(Image.fromarray(noise()), "PNG")
    assert np.array_equal(pixels(data, window=(0, 4095)), noise())


def test_sixteen_bit_colour_keeps_its_upper_bits_and_refuses_a_window():
    row = b"\0" + struct.pack(">6H", 0, 256, 65535, 511, 32768, 4095)
    data = png_of(2, 1, depth=16, colour=2, rows=row)
    assert images.inspect_image(data).bit_depth == 16
    assert pixels(data).tolist() == [[[0, 1, 255], [1, 128, 15]]]
    with pytest.raises(images.ImageError, match="cannot be windowed"):
        images.read_image(data, window=(0, 4095))


def test_transparent_parts_are_black():
    grey = Image.fromarray(np.full((8, 8), 200, np.uint8))
    half = grey.copy()
    half.putalpha(Image.fromarray(np.where(np.arange(64).reshape(8, 8) < 32, 255, 0).astype("u1")))
    read = images.read_image(encoded(half, "PNG"))
    assert read.mode == "L"
    assert np.asarray(read)[:4].min() == 200
    assert np.asarray(read)[4:].max() == 0


def test_palette_with_alpha_is_composed_on_black():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 250, 10, 20])
    palette.paste(0, (0, 0, 8, 4))
    opaque = pixels(encoded(palette, "PNG"))
    assert opaque[7, 7].tolist() == [250, 10, 20]
    hidden = pixels(encoded(palette, "PNG", transparency=b"\xff\x00"))
    assert hidden.max() == 0


def test_a_transparent_grey_value_is_black():
    values = np.array([[10, 200]] * 4, dtype=np.uint8)
    data = encoded(Image.fromarray(values), "PNG", transparency=200)
    assert pixels(data).tolist() == [[10, 0]] * 4


def test_cmyk_and_one_bit_are_converted():
    cmyk = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert images.inspect_image(encoded(cmyk, "JPEG")).mode == "CMYK"
    assert pixels(encoded(cmyk, "JPEG")).min() == 255
    one_bit = Image.fromarray(np.array([[True, False]] * 4))
    assert pixels(encoded(one_bit, "PNG")).tolist() == [[255, 0]] * 4


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    data = encoded(Image.fromarray(noise(16, 32)), "PNG", exif=exif)
    assert np.array_equal(pixels(data), np.rot90(noise(16, 32), k=-1))
    assert image_files.decode(data)[1][:2] == (16, 32)


# Broken files


def broken_files():
    jpeg = encoded(Image.fromarray(noise()), "JPEG")
    png = encoded(Image.fromarray(noise()), "PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    deep = noise().astype(np.float32)
    deep[0, 0] = np.nan
    two = Image.fromarray(noise())
    return {
        "empty file": b"",
        "not an image": b"these are the words of a report",
        "not an image-gif": encoded(Image.fromarray(noise()), "GIF"),
        "corrupt image-jpeg": jpeg[: len(jpeg) // 2],
        "corrupt image-jpeg-end": jpeg[:-60],
        "corrupt image-png": png[: len(png) // 2],
        "corrupt image-bits": bytes(flipped),
        "corrupt image-header": png[:20],
        "corrupt image-tiff": encoded(Image.fromarray(noise()), "TIFF")[:200],
        "decompression bomb": png_of(40_000, 40_000, rows=b"\0" * 100),
        "decompression bomb-small": png_of(10_000, 10_000, rows=b"\0" * 100),
        "several pages": encoded(two, "TIFF", save_all=True, append_images=[two]),
        "values not finite": encoded(Image.fromarray(deep), "TIFF"),
    }


@pytest.mark.parametrize("case", broken_files())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_broken_file_is_named_with_its_trouble(case, tmp_path):
    path = tmp_path / "scan 1.png"
    path.write_bytes(broken_files()[case])
    with pytest.raises(images.ImageError) as caught:
        images.read_image(path)
    kinds = {case.split("-")[0], "not an image" if case == "corrupt image-header" else None}
    assert caught.value.kind in kinds
    assert str(path) in str(caught.value)


def test_a_jpeg_cut_anywhere_is_an_error_or_whole():
    data = encoded(Image.fromarray(noise(16, 16)), "JPEG")
    whole = pixels(data)
    for length in range(1, len(data)):
        with contextlib.suppress(images.ImageError):
            assert np.array_equal(pixels(data[:length]), whole), length
    with pytest.raises(images.ImageError, match="truncated"):
        images.read_image(data[:-20])


def test_a_folder_and_a_missing_file_are_image_errors(tmp_path):
    for path, kind in ((tmp_path, "folder"), (tmp_path / "none.png", "missing file")):
        with pytest.raises(images.ImageError) as caught:
            images.inspect_image(path)
        assert caught.value.kind == kind


def test_an_image_error_survives_the_way_from_a_worker():
    error = images.ImageError("a: b.png", "corrupt image", "cut: off")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.name, copy.kind, copy.detail) == (
        "a: b.png: corrupt image: cut: off",
        "a: b.png",
        "corrupt image",
        "cut: off",
    )


def test_an_empty_window_is_refused():
    data = encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "PNG")
    with pytest.raises(images.ImageError, match="LOW must be below HIGH"):
        images.read_image(data, window=(10, 10))


# DICOM


def dicom_bytes(values, *, photometric="MONOCHROME2", **elements):
    pydicom = pytest.importorskip("pydicom", reason="pydicom reads DICOM files")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.PixelRepresentation = 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PhotometricInterpretation = photometric
    for name, value in elements.items():
        setattr(file, name, value)
    file.PixelData = values.astype("<u2").tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, file)
    return stream.getvalue()


DICOM_VALUES = np.array([[0, 1000], [2000, 4000]])


def test_dicom_takes_the_files_window():
    data = dicom_bytes(DICOM_VALUES, WindowCenter=1000.5, WindowWidth=2001)  # 0..2000
    assert pixels(data).tolist() == [[0, 128], [255, 255]]
    assert pixels(data, window=(0, 4000)).tolist() == [[0, 64], [128, 255]]
    assert images.inspect_image(data)[3:] == (12, "DICOM")


def test_dicom_without_window_takes_its_extremes_after_rescaling():
    data = dicom_bytes(DICOM_VALUES, RescaleSlope=2, RescaleIntercept=-1000)
    assert pixels(data).tolist() == [[0, 64], [128, 255]]
    assert pixels(data, window=(-1000, 1000)).tolist() == [[0, 255], [255, 255]]


def test_dicom_monochrome1_is_inverted():
    data = dicom_bytes(DICOM_VALUES, photometric="MONOCHROME1")
    assert pixels(data).tolist() == [[255, 191], [127, 0]]


@pytest.mark.parametrize(
    ("elements", "said"),
    [({"NumberOfFrames": 2}, "2 frames"), ({"Rows": 30_000, "Columns": 30_000}, "bomb")],
)
def test_dicom_that_is_no_single_image_is_refused(elements, said):
    with pytest.raises(images.ImageError, match=said):
        images.read_image(dicom_bytes(DICOM_VALUES, **elements))


# Size


def test_center_crop_keeps_the_middle_of_a_wide_scan():
    wide = np.zeros((64, 192), np.uint8)
    wide[:, 64:128] = 200
    square = images.resize(Image.fromarray(wide), 64, "center_crop")
    assert np.array_equal(np.asarray(square), np.full((64, 64), 200))
    assert images.share_lost(192, 64, "center_crop") == pytest.approx(2 / 3)


def test_pad_keeps_all_between_black_bars():
    square = np.asarray(images.resize(Image.new("RGB", (128, 64), "white"), 32, "pad"))
    assert square[8:24].min() == 255
    assert square[:8].max() == square[24:].max() == 0
    assert images.share_lost(128, 64, "pad") == 0


def test_stretch_keeps_all_and_fills_the_square():
    square = images.resize(Image.new("L", (128, 64), 255), 32, "stretch")
    assert np.asarray(square).min() == 255
    assert images.share_lost(128, 64, "stretch") == 0


def test_random_crop_follows_its_generator():
    image = Image.fromarray(noise(32, 96))
    crops = [
        images.resize(image, 32, "random_crop", rng=np.random.default_rng(seed)).tobytes()
        for seed in (0, 0, 1, 2, 3)
    ]
    assert crops[0] == crops[1]
    assert len(set(crops)) > 2
    windows = {noise(32, 96)[:, left : left + 32].tobytes() for left in range(65)}
    assert set(crops) <= windows


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
@pytest.mark.parametrize("size", [(1, 500), (500, 1), (7, 9), (64, 64), (333, 100)])
def test_every_mode_gives_a_square_of_any_size(mode, size):
    image = Image.new("L", size, 77)
    square = images.resize(image, 24, mode, rng=np.random.default_rng(0))
    assert square.size == (24, 24)
    assert np.asarray(square).max() == 77


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    small = np.asarray(images.resize(Image.fromarray(stripes), 16, "stretch"))
    assert abs(small.astype(int)[:, 2:-2] - 127).max() <= 2  # every other column would be 0 or 255


def test_an_unknown_mode_and_a_missing_generator_are_refused():
    image = Image.new("L", (8, 8))
    with pytest.raises(ValueError, match="fill"):
        images.resize(image, 8, "fill")
    with pytest.raises(ValueError, match="fill"):
        images.share_lost(8, 8, "fill")
    with pytest.raises(ValueError, match="rng"):
        images.resize(image, 8, "random_crop")


# Range


def test_tensor_and_back_keeps_every_value():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = images.to_tensor(Image.fromarray(values))
    assert tuple(tensor.shape) == (3, 16, 16)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    (back,) = images.to_uint8(tensor[None])
    assert np.array_equal(np.asarray(back), np.stack([values] * 3, axis=-1))


def test_out_of_range_tensors_are_clipped_not_wrapped():
    import torch

    (image,) = images.to_uint8(torch.tensor([-7.0, 7.0, 0.0]).view(1, 3, 1, 1))
    assert image.getpixel((0, 0)) == (0, 255, 128)


# Files written


def test_png_bytes_depend_on_pixels_and_text_only(tmp_path):
    image = Image.fromarray(noise())
    for name in ("a.png", "b.png"):
        images.save_png(
            image, tmp_path / "new" / name, text={"synthetic": "true", "prompt": "Ödem 中"}
        )
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert np.array_equal(pixels(tmp_path / "new" / "a.png"), noise())
    assert images.read_png_text(tmp_path / "new" / "a.png") == {
        "synthetic": "true",
        "prompt": "Ödem 中",
    }


def test_a_png_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="cannot write mode F"):
        images.save_png(Image.new("F", (8, 8)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_pixel_hash_sees_pixels_and_shape_only():
    grey = Image.fromarray(noise())
    assert images.pixel_hash(grey) == images.pixel_hash(grey.convert("RGB"))
    assert images.pixel_hash(grey) == images.pixel_hash(
        images.read_image(encoded(grey, "TIFF", compression="tiff_lzw"))
    )
    other = noise()
    other[0, 0] ^= 1
    assert images.pixel_hash(grey) != images.pixel_hash(Image.fromarray(other))
    assert images.pixel_hash(grey) != images.pixel_hash(Image.fromarray(noise().reshape(64, 48)))


def test_contact_sheet_places_tiles_in_rows():
    tiles = [Image.new("L", (32, 32), 50 * number) for number in range(1, 6)]
    sheet = np.asarray(images.contact_sheet(tiles, columns=2, tile_px=32))
    assert sheet.shape == (3 * 34, 2 * 34, 3)
    centres = [sheet[17 + 34 * row, 17 + 34 * column, 0] for row in range(3) for column in range(2)]
    assert centres == [50, 100, 150, 200, 250, 0]


def test_contact_sheet_writes_captions_below_and_cuts_long_ones():
    tile = Image.new("L", (64, 64))
    plain = images.contact_sheet([tile], columns=1, tile_px=64)
    captioned = images.contact_sheet([tile], columns=1, tile_px=64, captions=["drusen Ä " * 20])
    assert captioned.width == plain.width
    assert captioned.height > plain.height
    assert np.asarray(captioned)[:64].max() == 0
    assert np.asarray(captioned)[64:].max() > 200


def test_the_images_room_does_not_import_torch():
    code = "import sys, utils.images, utils.dataset; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
