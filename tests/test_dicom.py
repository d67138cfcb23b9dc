"""DICOM files against pydicom's own pipeline, and against what the standard says."""

import io

import numpy as np
import pydicom
import pytest
from dicom_files import as_bytes, dicom_bytes, dicom_dataset, group, table
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from utils import dicom, image_files
from utils.dataset_records import Columns
from utils.dataset_sources import read_source

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 2**16, (60, 70))
SIGNED = RNG.integers(-(2**15), 2**15, (60, 70))

VOI = {
    "no window, rescaled": {},
    "linear": {"WindowCenter": 3000, "WindowWidth": 9001},
    "linear, said so": {"WindowCenter": 9000.5, "WindowWidth": 1, "VOILUTFunction": "LINEAR"},
    "linear exact": {
        "WindowCenter": 8000,
        "WindowWidth": 20_000,
        "VOILUTFunction": "LINEAR_EXACT",
    },
    "sigmoid": {"WindowCenter": 25_000, "WindowWidth": 15_000, "VOILUTFunction": "SIGMOID"},
    "several windows": {"WindowCenter": [20_000, 5], "WindowWidth": [30_000, 10]},
}


def by_pydicom(data, *, scale=None):
    """The pipeline of pydicom: modality, VOI, to 0..255, inverted; (H, W) float."""
    file = pydicom.dcmread(io.BytesIO(data))
    values = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file).astype(float)
    low, high = scale or (values.min(), values.max())
    grey = (values - low) / (high - low) * 255
    return 255 - grey if file.PhotometricInterpretation == "MONOCHROME1" else grey


def ours(data, **options):
    return np.asarray(image_files.read_image(data, **options)).astype(float)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": -1000}])
@pytest.mark.parametrize("voi", VOI)
@pytest.mark.parametrize("values", [VALUES, SIGNED], ids=["unsigned", "signed"])
def test_sixteen_bits_are_shown_as_pydicom_shows_them(photometric, rescale, voi, values):
    data = dicom_bytes(values, photometric=photometric, bits=16, **VOI[voi], **rescale)
    low, high = (-(2**15), 2**15 - 1) if values is SIGNED else (0, 2**16 - 1)
    slope, intercept = rescale.get("RescaleSlope", 1), rescale.get("RescaleIntercept", 0)
    full_range = (low * slope + intercept, high * slope + intercept)
    expected = by_pydicom(data, scale=full_range if VOI[voi] else None)
    assert np.abs(ours(data) - expected).max() <= 1
    assert len(np.unique(expected.round())) > 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("bits", "entries", "first"), [(16, 4096, 0), (12, 2000, 500), (10, 60, 0)]
)
def test_a_voi_table_is_applied_as_pydicom_applies_it(photometric, bits, entries, first):
    curve = (np.linspace(0, 1, entries) ** 0.4 * (2**bits - 1)).astype(int)
    data = dicom_bytes(
        VALUES % 4096,
        photometric=photometric,
        VOILUTSequence=[table(curve, first=first, bits=bits)],
    )
    expected = by_pydicom(data, scale=(0, 2**bits - 1))
    assert np.abs(ours(data) - expected).max() <= 1
    linear = ours(dicom_bytes(VALUES % 4096, photometric=photometric))
    assert np.abs(ours(data) - linear).max() > 20


def test_a_table_of_eight_bits_with_many_entries_is_not_cut():
    curve = np.arange(4096) // 16
    data = dicom_bytes(np.arange(4096).reshape(64, 64), VOILUTSequence=[table(curve, bits=8)])
    assert np.array_equal(ours(data).ravel(), curve)


def test_a_modality_table_comes_before_the_window():
    curve = np.arange(4096)[::-1]
    elements = {"WindowCenter": 2048, "WindowWidth": 1000}
    sequence = [table(curve, bits=16)]
    data = dicom_bytes(VALUES % 4096, ModalityLUTSequence=sequence, **elements)
    expected = by_pydicom(data, scale=(0, 2**16 - 1))
    assert np.abs(ours(data) - expected).max() <= 1
    assert np.abs(ours(data) - ours(dicom_bytes(VALUES % 4096, **elements))).max() == 255


def test_a_window_of_the_users_own_takes_the_files_place():
    elements = {"WindowCenter": 500, "WindowWidth": 100, "VOILUTFunction": "SIGMOID"}
    data = dicom_bytes([[0, 1000], [2000, 4000]], **elements)
    assert ours(data, window=(0, 4000)).tolist() == [[0, 64], [128, 255]]
    assert ours(data).tolist() == [[0, 255], [255, 255]]


@pytest.mark.parametrize(
    "elements",
    [{"WindowWidth": 0}, {"WindowWidth": -5, "VOILUTFunction": "SIGMOID"}, {"VOILUTFunction": "X"}],
)
def test_a_window_that_is_none_is_told_and_can_be_given(elements):
    data = dicom_bytes([[0, 1], [2, 3]], **{"WindowCenter": 2, "WindowWidth": 3, **elements})
    with pytest.raises(image_files.ImageError, match="--window LOW HIGH"):
        image_files.read_image(data)
    assert ours(data, window=(0, 3)).tolist() == [[0, 85], [170, 255]]


@pytest.mark.parametrize(
    ("photometric", "row"), [("MONOCHROME2", [0, 0, 255]), ("MONOCHROME1", [0, 255, 0])]
)
def test_padding_is_black_and_no_part_of_the_window(photometric, row):
    data = dicom_bytes([[4095, 100, 200]], photometric=photometric, PixelPaddingValue=4095)
    assert ours(data).tolist() == [row]


def test_a_range_of_padding_is_black():
    data = dicom_bytes([[7, 9, 100, 200]], PixelPaddingValue=5, PixelPaddingRangeLimit=10)
    assert ours(data).tolist() == [[0, 0, 0, 255]]


def test_eight_bits_without_a_window_are_taken_as_they_are():
    values = [[10, 20], [30, 40]]
    assert ours(dicom_bytes(values, bits=8)).tolist() == values
    inverted = dicom_bytes(values, bits=8, photometric="MONOCHROME1")
    assert ours(inverted).tolist() == [[245, 235], [225, 215]]


def test_colour_is_read_as_rgb_whatever_it_is_stored_as():
    rgb = RNG.integers(0, 256, (8, 10, 3))
    assert np.array_equal(ours(dicom_bytes(rgb, bits=8, photometric="RGB")), rgb)
    ybr = np.asarray(Image.fromarray(rgb.astype(np.uint8)).convert("YCbCr"))
    seen = ours(dicom_bytes(ybr, bits=8, photometric="YBR_FULL"))
    assert np.abs(seen - rgb).max() <= 3
    deep = dicom_bytes(rgb * 257, bits=16, photometric="RGB")
    assert np.array_equal(ours(deep), rgb)


def test_a_palette_is_read_as_the_colours_it_names():
    elements = {}
    for number, name in enumerate(("Red", "Green", "Blue")):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        entries = bytes((value + number) % 256 for value in (0, 50, 100, 200))
        elements[f"{name}PaletteColorLookupTableData"] = entries
    data = dicom_bytes([[0, 1], [2, 3]], bits=8, photometric="PALETTE COLOR", **elements)
    assert ours(data)[1, 1].tolist() == [200, 201, 202]
    assert image_files.inspect_image(data).mode == "RGB"


def test_each_frame_has_the_window_of_its_functional_group():
    frames = np.stack([np.full((4, 4), 100), np.full((4, 4), 100)])
    file = dicom_dataset(frames)
    file.SharedFunctionalGroupsSequence = [
        group(PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": 0})
    ]
    windows = [
        {"WindowCenter": 200.5, "WindowWidth": 401},
        {"WindowCenter": 1000, "WindowWidth": 9},
    ]
    file.PerFrameFunctionalGroupsSequence = [group(FrameVOILUTSequence=item) for item in windows]
    stream = io.BytesIO(as_bytes(file))
    header = dicom.read_header(stream)
    images = [dicom.decode_frame(stream, header, frame) for frame in (0, 1)]
    assert [np.asarray(image)[0, 0] for image in images] == [200, 200]  # rescaled
    assert [np.asarray(image_files.to_8bit(image))[0, 0] for image in images] == [128, 0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGBaseline8Bit])
def test_compressed_frames_are_decoded(syntax):
    frames = np.stack([np.full((16, 16), value) for value in (10, 130, 250)]).astype(np.uint8)
    file = dicom_dataset(frames, bits=8)
    if syntax == RLELossless:
        file.compress(RLELossless)
    else:
        jpegs = []
        for frame in frames:
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, "JPEG", quality=95)
            jpegs.append(stream.getvalue())
        file.PixelData = pydicom.encaps.encapsulate(jpegs)
        file["PixelData"].is_undefined_length = True
        file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    stream = io.BytesIO(as_bytes(file))
    header = dicom.read_header(stream)
    values = [np.asarray(dicom.decode_frame(stream, header, k)).mean() for k in (2, 0, 1)]
    assert values == pytest.approx([250, 10, 130], abs=2)


def compressed(pixels, stream, syntax, **options):
    file = dicom_dataset(pixels, **options)
    file.PixelData = pydicom.encaps.encapsulate([stream])
    file["PixelData"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = syntax
    return as_bytes(file)


def test_sixteen_bits_of_jpeg_2000_keep_every_value():
    stream = io.BytesIO()
    Image.fromarray(VALUES.astype(np.uint16)).save(stream, "JPEG2000", no_jp2=True)
    data = compressed(VALUES, stream.getvalue(), JPEG2000Lossless, bits=16)
    assert np.array_equal(np.asarray(image_files.decode(data)[0]), VALUES)


def test_twelve_bits_of_jpeg_name_the_package():
    stream = io.BytesIO()
    Image.fromarray((VALUES % 256).astype(np.uint8)).save(stream, "JPEG")
    data = compressed(VALUES % 4096, stream.getvalue(), JPEGExtended12Bit)
    with pytest.raises(image_files.ImageError, match="pip install pylibjpeg pylibjpeg-libjpeg"):
        image_files.read_image(data)


def test_a_decoder_that_is_not_installed_is_named():
    data = compressed(VALUES % 256, b"\xff\xd8\xff\xd9", JPEGLosslessSV1, bits=8)
    with pytest.raises(image_files.ImageError, match="pip install pylibjpeg pylibjpeg-libjpeg"):
        image_files.read_image(data)


@pytest.mark.parametrize(
    ("elements", "kind"),
    [
        ({"NumberOfFrames": 2}, "several frames"),
        ({"NumberOfFrames": 1_000_000}, "decompression bomb"),
        ({"Rows": 30_000, "Columns": 30_000}, "decompression bomb"),
        ({"Rows": 3000}, "corrupt image"),
        ({"Rows": 0}, "no image"),
        ({"BitsAllocated": 7}, "corrupt image"),
    ],
)
def test_a_file_that_is_no_sound_image_says_what_is_wrong(elements, kind):
    data = dicom_bytes(VALUES % 4096)
    file = pydicom.dcmread(io.BytesIO(data))
    for name, value in elements.items():
        setattr(file, name, value)
    with pytest.raises(image_files.ImageError) as caught:
        image_files.read_image(as_bytes(file))
    assert caught.value.kind == kind


def test_a_file_that_is_cut_off_anywhere_is_an_image_error():
    data = dicom_bytes(VALUES % 4096, PatientName="Doe^Jane")
    for length in (133, 200, 300, 400, 500, len(data) - 1):
        with pytest.raises(image_files.ImageError):
            image_files.read_image(data[:length])


def test_a_deflated_file_is_refused_before_it_is_inflated():
    file = dicom_dataset(VALUES % 256, bits=8, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    with pytest.raises(image_files.ImageError, match="dcmconv"):
        image_files.read_image(as_bytes(file))


def test_a_header_is_read_without_decoding():
    file = dicom_dataset(VALUES % 4096)
    del file.PixelData  # of a file that cannot be decoded the header still tells
    info = image_files.inspect_image(as_bytes(file))
    assert info == (70, 60, "F", 12, "DICOM")


def test_class_folders_leave_out_files_without_a_suffix_and_name_the_layout(tmp_path):
    (tmp_path / "DME").mkdir()
    for name in ("a.dcm", "b.dicom", "IM000001"):
        (tmp_path / "DME" / name).write_bytes(dicom_bytes(VALUES % 4096))
    table = read_source(tmp_path, Columns(), offline=True)
    assert [record.file_name for record in table.records] == ["DME/a.dcm", "DME/b.dicom"]
    assert "import --layout dicom" in " ".join(table.notes)
