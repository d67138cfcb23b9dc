"""Volumes of every format: what is in them, which frames are taken, and how they are shown."""

import io
import logging
import sys

import numpy as np
import pytest
from device_files import (
    write_cirrus,
    write_e2e,
    write_mhd,
    write_optovue,
    write_topcon,
    write_vol,
)
from dicom_files import OPT, group, write_dicom
from volume_phantoms import draw_volume

from utils import fovea, volumes
from utils.frames import read_frame
from utils.image_files import ImageError

RNG = np.random.default_rng(1)
BYTES = RNG.integers(0, 256, (5, 20, 30)).astype(np.uint8)
DEEP = np.sort(RNG.integers(0, 60_000, 5 * 20 * 30)).reshape(5, 20, 30).astype(np.uint16)


def shown(path, count, **options):
    return np.stack([np.asarray(read_frame(path, frame, **options)) for frame in range(count)])


def windowed(values, low, high):
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


# Formats


def test_a_dicom_volume_is_read_frame_by_frame_with_one_window(tmp_path):
    elements = {"Modality": "OPT", "ManufacturerModelName": "CIRRUS HD-OCT", "PatientID": "77"}
    path = write_dicom(tmp_path / "a", DEEP, bits=16, sop_class=OPT, Laterality="L", **elements)
    info = volumes.inspect_volume(path)
    assert (info.num_frames, info.height, info.width) == (5, 20, 30)
    assert (info.modality, info.laterality, info.device) == ("OCT", "OS", "CIRRUS HD-OCT")
    # Frames get brighter from first to last, which a window for each would hide.
    expected = windowed(DEEP, DEEP.min(), DEEP.max())
    assert np.abs(shown(path, 5) - expected).max() <= 1
    assert np.abs(shown(path, 5, window=(0, 30_000)) - windowed(DEEP, 0, 30_000)).max() <= 1


def test_only_the_frame_asked_for_is_decoded(tmp_path, monkeypatch):
    import pydicom.pixels

    path = write_dicom(tmp_path / "a.dcm", BYTES, bits=8)
    sizes = []
    original = pydicom.pixels.pixel_array

    def counted(*args, **options):
        found = original(*args, **options)
        sizes.append(found.shape)
        return found

    monkeypatch.setattr(pydicom.pixels, "pixel_array", counted)
    assert np.array_equal(np.asarray(read_frame(path, 3)), BYTES[3])
    assert sizes == [(20, 30)]


def test_the_eye_stands_in_the_functional_groups_too(tmp_path):
    shared = [group(FrameAnatomySequence={"FrameLaterality": "R"})]
    elements = {"Modality": "OPT", "SharedFunctionalGroupsSequence": shared}
    path = write_dicom(tmp_path / "a.dcm", BYTES, bits=8, **elements)
    assert volumes.inspect_volume(path).laterality == "OD"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("values", [BYTES, DEEP, DEEP.astype(np.float32)], ids=["8", "16", "f"])
def test_meta_images_are_read_as_retouch_lays_them_out(tmp_path, values, compressed):
    path = write_mhd(tmp_path / "oct.mhd", values, compressed=compressed)
    info = volumes.inspect_volume(path)
    assert (info.num_frames, info.height, info.width) == (5, 20, 30)
    expected = values if values is BYTES else windowed(values, values.min(), values.max())
    assert np.abs(shown(path, 5) - expected).max() <= 1


def test_heidelbergs_vol_is_shown_as_the_device_shows_it(tmp_path):
    shares = RNG.uniform(0, 1, (3, 10, 12))
    shares[0, 0, 0] = np.finfo(np.float32).max  # not measured
    path = write_vol(tmp_path / "a.vol", shares, position="OS", patient="77")
    info = volumes.inspect_volume(path)
    assert (info.num_frames, info.height, info.width, info.laterality) == (3, 10, 12, "OS")
    assert info.patient == "77"
    frames = shown(path, 3)
    assert frames[0, 0, 0] == 0
    shares[0, 0, 0] = 0
    assert np.abs(frames - shares**0.25 * 255).max() <= 1


def test_zeiss_cubes_are_read_by_the_size_in_their_name(tmp_path):
    scans = RNG.integers(0, 256, (2, 1024, 10)).astype(np.uint8)
    path = write_cirrus(tmp_path / "P77_Macular Cube 10x2_1-2-2020_3-4-5_OD_sn1_cube.img", scans)
    info = volumes.inspect_volume(path)
    assert (info.num_frames, info.height, info.width, info.laterality) == (2, 1024, 10, "OD")
    assert info.patient == "P77"
    assert np.array_equal(shown(path, 2), scans)


@pytest.mark.parametrize("suffix", [".fds", ".fda"])
def test_topcons_files_are_read(tmp_path, suffix):
    path = write_topcon(tmp_path / f"a{suffix}", DEEP, eye=1)
    info = volumes.inspect_volume(path)
    assert (info.num_frames, info.laterality, info.patient) == (5, "OS", "12345")
    assert np.abs(shown(path, 5) - windowed(DEEP, DEEP.min(), DEEP.max())).max() <= 1


def test_optovues_files_are_read_with_their_text(tmp_path):
    path = write_optovue(tmp_path / "a.OCT", DEEP.astype(np.float32), eye="OS")
    info = volumes.inspect_volume(path)
    assert (info.num_frames, info.height, info.width, info.laterality) == (5, 20, 30, "OS")
    assert np.abs(shown(path, 5) - windowed(DEEP, DEEP.min(), DEEP.max())).max() <= 1


def test_an_e2e_file_of_two_volumes_numbers_its_frames_through(tmp_path):
    # The device's float: exponent 58 is 2^-5, 62 is 2^-1; grey by (ln(v + 2.44e-4) + 8.3) / 8.285.
    dark, bright = np.full((8, 9), 58 << 10), np.full((8, 9), 62 << 10)
    path = write_e2e(tmp_path / "a.E2E", [[dark] * 3, [bright] * 2])
    infos = volumes.inspect_volumes(path)
    assert [(info.num_frames, info.first) for info in infos] == [(3, 0), (2, 3)]
    assert {info.patient for info in infos} == {"12345"}
    grey = [(np.log(2.0**-power + 2.44e-4) + 8.3) / 8.285 * 255 for power in (5, 1)]
    means = [frame.mean() for frame in shown(path, 5)]
    assert means == pytest.approx([grey[0]] * 3 + [grey[1]] * 2, abs=1)
    assert volumes.choose_frames(path, central_n=1, around="middle") == [1, 4]
    with pytest.raises(ImageError, match="2 in one file"):
        volumes.inspect_volume(path)


# Broken files


def _cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("suffix", [".e2e", ".fda", ".fds", ".img", ".OCT", ".vol", ".mhd", ".dcm"])
@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"FOCTFDS\1\0\0\0\1\0\0\0", b"\xff" * 5000])
def test_junk_is_an_image_error_that_names_the_file(tmp_path, suffix, content):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"scan\{suffix}: "):
        volumes.inspect_volumes(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: write_topcon(folder / "a.fds", DEEP),
        lambda folder: write_topcon(folder / "a.fda", DEEP),
        lambda folder: write_vol(folder / "a.vol", BYTES / 255),
        lambda folder: write_cirrus(folder / "a 3x2.img", np.zeros((2, 1024, 3), np.uint8)),
        lambda folder: write_e2e(folder / "a.e2e", [[np.full((40, 50), 60 << 10)] * 2]),
        lambda folder: write_optovue(folder / "a.OCT", DEEP.astype(np.float32)),
        lambda folder: write_mhd(folder / "a.mhd", DEEP).with_suffix(".raw"),
        lambda folder: write_dicom(folder / "a.dcm", DEEP, bits=16),
    ],
    ids=["fds", "fda", "vol", "img", "e2e", "OCT", "raw", "dicom"],
)
def test_a_volume_that_is_cut_off_is_an_image_error(tmp_path, make):
    path = _cut(make(tmp_path))
    path = path.with_suffix(".mhd") if path.suffix == ".raw" else path
    with pytest.raises(ImageError, match=path.name):
        read_frame(path, sum(info.num_frames for info in volumes.inspect_volumes(path)) - 1)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
def test_an_e2e_file_loses_no_scan_in_silence(tmp_path, share):
    path = _cut(write_e2e(tmp_path / "a.e2e", [[np.full((40, 50), 60 << 10)] * 8]), share)
    with pytest.raises(ImageError, match=path.name):
        volumes.inspect_volumes(path)


def test_directories_in_circles_do_not_hang(tmp_path):
    path = write_e2e(tmp_path / "a.e2e", [[np.full((4, 4), 60 << 10)]], circular=True)
    with pytest.raises(ImageError, match="circles"):
        volumes.inspect_volumes(path)


def test_a_meta_image_may_not_name_values_elsewhere(tmp_path):
    (tmp_path / "other").mkdir()
    path = write_mhd(tmp_path / "a.mhd", BYTES)
    path.write_text(path.read_text().replace("a.raw", "../a.raw"))
    with pytest.raises(ImageError, match="not one file beside"):
        volumes.inspect_volume(path)
    path.write_text(path.read_text().replace("../a.raw", "b.raw"))
    with pytest.raises(ImageError, match=r"b\.raw beside it"):
        volumes.inspect_volume(path)


def test_a_header_of_an_enormous_volume_is_refused(tmp_path):
    path = write_mhd(tmp_path / "a.mhd", BYTES)
    path.write_text(path.read_text().replace("DimSize = 30 20 5", "DimSize = 30000 20000 500"))
    with pytest.raises(ImageError, match="bomb"):
        volumes.inspect_volume(path)


def test_a_frame_that_is_not_there_is_told(tmp_path):
    path = write_mhd(tmp_path / "a.mhd", BYTES)
    for frame in (-1, 5):
        with pytest.raises(ImageError, match="it has 5"):
            read_frame(path, frame)


@pytest.mark.parametrize(
    ("module", "suffix", "said"),
    [
        ("oct_converter.readers", ".fds", "pip install -r requirements-formats.txt"),
        ("SimpleITK", ".mhd", "pip install SimpleITK"),
    ],
)
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, module, suffix, said):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"x" * 200)
    with pytest.raises(ValueError, match=said):
        volumes.inspect_volumes(path)


def test_a_reader_prints_nothing_of_its_own(tmp_path, capsys):
    path = write_topcon(tmp_path / "a.fds", DEEP)  # without PARAM_SCAN, on which it remarks
    volumes.inspect_volumes(path)
    assert capsys.readouterr().out == ""


def test_a_changed_file_is_read_anew(tmp_path):
    import os

    path = write_mhd(tmp_path / "a.mhd", BYTES)
    assert read_frame(path, 0).size == (30, 20)
    write_mhd(path, BYTES[:, :10])
    os.utime(path, ns=(1, 1))
    assert read_frame(path, 0).size == (30, 10)


@pytest.mark.parametrize("suffix", [".mhd", ".OCT"])
def test_a_volume_is_read_anew_if_the_file_beside_it_changes(tmp_path, suffix):
    import os

    if suffix == ".mhd":
        path = write_mhd(tmp_path / "a.mhd", BYTES)
        beside = path.with_suffix(".raw")
        expected, data = 255 - BYTES[0], (255 - BYTES).tobytes()
    else:
        path = tmp_path / "a.OCT"
        write_optovue(path, DEEP.astype(np.float32))
        beside = path.with_suffix(".txt")
        data = beside.read_bytes()
    before = volumes.state_of(path)
    opened = volumes.open_volumes(path)
    assert volumes.open_volumes(path) is opened
    beside.write_bytes(data)
    os.utime(beside, ns=(1, 1))
    assert volumes.state_of(path) != before
    assert volumes.open_volumes(path) is not opened
    if suffix == ".mhd":
        assert np.array_equal(np.asarray(read_frame(path, 0)), expected)


# Choice of frames


@pytest.mark.parametrize(
    ("central_n", "frames"),
    [(None, range(10)), (1, [5]), (2, [4, 5]), (3, [4, 5, 6]), (10, range(10)), (99, range(10))],
)
def test_the_middle_frames_are_taken(tmp_path, central_n, frames):
    path = write_mhd(tmp_path / "a.mhd", np.zeros((10, 8, 8), np.uint8))
    assert volumes.choose_frames(path, central_n=central_n, around="middle") == list(frames)


@pytest.mark.parametrize("look", ["spectral", "cirrus", "swept", "portable"])
def test_the_fovea_is_found_within_two_scans_in_noise(look):
    near = []
    for seed in range(5):
        frames, at = draw_volume(seed, num_frames=25, look=look)
        noise = np.random.default_rng(seed).normal(0, 25, frames.shape)
        noisy = np.clip(frames + noise, 0, 255).astype(np.uint8)
        found = fovea.guess_fovea(noisy.__getitem__, len(noisy))
        near.append(found is not None and abs(found - at) <= 2)
    assert sum(near) >= 4


def test_no_fovea_is_found_where_there_is_no_pit():
    for seed in range(3):
        frames, _ = draw_volume(seed, num_frames=25, pit=False)
        assert fovea.guess_fovea(frames.__getitem__, len(frames)) is None
    empty = np.zeros((25, 40, 40), np.uint8)
    assert fovea.guess_fovea(empty.__getitem__, 25) is None


def test_frames_around_the_fovea_are_taken_and_the_middle_if_there_is_none(tmp_path):
    frames, at = draw_volume(3, num_frames=25)
    path = write_mhd(tmp_path / "pit.mhd", frames)
    (choice,) = volumes.choose(path, central_n=5, around="fovea")
    assert (choice.around, len(choice.frames)) == ("fovea", 5)
    assert abs(choice.frames[2] - at) <= 2
    assert abs(choice.frames[2] - 12) > 0  # or the middle would pass
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    flat, _ = draw_volume(3, num_frames=25, pit=False)
    path = write_mhd(tmp_path / "flat.mhd", flat)
    logger = volumes.get_logger("volumes")
    logger.addHandler(handler)
    (choice,) = volumes.choose(path, central_n=5, around="fovea")
    logger.removeHandler(handler)
    assert (choice.around, choice.frames) == ("middle", (10, 11, 12, 13, 14))
    assert "its middle is taken" in stream.getvalue()
