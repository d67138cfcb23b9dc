"""Imports of hospitals' DICOM trees and of devices' files: what comes along, and who does not."""

import csv
import errno
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from device_files import write_e2e, write_topcon, write_vol
from dicom_files import OPT, as_bytes, dicom_dataset, write_dicom
from pydicom.datadict import DicomDictionary
from pydicom.uid import DigitalXRayImageStorageForPresentation as DX
from pydicom.uid import EncapsulatedPDFStorage, MediaStorageDirectoryStorage
from volume_phantoms import draw_volume

import prepare_dataset

RNG = np.random.default_rng(2)
NAME = "Zzidentity"
TEXT_KINDS = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "AE"}
CODES = ("ViewPosition", "BodyPartExamined", "Laterality", "PatientSex", "PatientOrientation")
KEPT = {"ManufacturerModelName", "PixelDataProviderURL"}


def scans(count=3, size=20):
    return RNG.integers(0, 4096, (count, size, size))


def run(folder, output, *flags, layout="dicom"):
    argv = ["--source", str(folder), "--layout", layout, "--output_dir", str(output), *flags]
    assert prepare_dataset.main(["import", *argv, "--num_workers", "0"]) == 0
    assert prepare_dataset.main(["validate", "--data_dir", str(output), "--require"]) == 0
    with (output / "metadata.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_structured_report(path, modality="SR", **elements):
    file = dicom_dataset([[0]], **elements)
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
        del file[name]
    file.Modality = modality
    path.write_bytes(as_bytes(file))


def test_a_tree_of_dicom_files_is_known_by_content(tmp_path, caplog):
    tree = tmp_path / "export"
    volume = {"Modality": "OPT", "Laterality": "R", "ManufacturerModelName": "CIRRUS"}
    chest = {"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    write_dicom(tree / "P1/IM000001", scans(), sop_class=OPT, PatientID="1", **volume)
    write_dicom(tree / "P1/b.dcm", scans()[0], sop_class=DX, PatientID="1", **chest)
    write_dicom(tree / "P2/c.dicom", scans()[0], PatientID="2", Modality="US")
    write_structured_report(tree / "P2/SR1", PatientID="2")
    (tree / "README.txt").write_text("no scan")
    rows = run(tree, tmp_path / "new")
    assert [row["modality"] for row in rows] == ["OCT", "OCT", "OCT", "CXR", "US"]
    assert [row["frame"] for row in rows] == ["0", "1", "2", "", ""]
    assert [row["laterality"] for row in rows] == ["OD"] * 3 + ["", ""]
    assert [row["view"] for row in rows] == [""] * 3 + ["PA", ""]
    patients = [row["patient_id"] for row in rows]
    assert len(set(patients)) == 2 and len(set(patients[:4])) == 1
    assert all(row["file_name"].startswith(row["patient_id"] + "/") for row in rows)
    assert all(row["file_name"].endswith(".png") for row in rows)


def test_what_is_left_out_is_counted(tmp_path, capsys):
    write_dicom(tmp_path / "export/a", scans()[0], Modality="OP")
    write_structured_report(tmp_path / "export/b")
    (tmp_path / "export/c.txt").write_text("no scan")
    run(tmp_path / "export", tmp_path / "new")
    said = capsys.readouterr().err
    assert "2 files are left out: 1 no DICOM, 1 without a picture (SR)" in said
    assert "1 files name no patient" in said


def plant(file):
    """Put a name into every attribute that can hold one; returns what must not be found."""
    planted = [NAME, "Zzcode", "19010203", "9.8.7.6.5"]
    for tag, (kind, _, _, retired, keyword) in DicomDictionary.items():
        if not keyword or keyword in KEPT or retired or tag < 0x00080000:
            continue
        if kind in TEXT_KINDS:
            value = NAME if kind != "PN" else f"{NAME}^Jane"
            setattr(file, keyword, value)
        elif kind == "DA":
            setattr(file, keyword, "19010203")
    for keyword in CODES:
        setattr(file, keyword, "ZZCODE")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(file, keyword, "9.8.7.6.5.1")
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = "9.8.7.6.5.2"
    return planted


@pytest.mark.parametrize("flags", [(), ("--central_n", "2"), ("--skip_invalid",)])
def test_no_identity_leaves_the_source(tmp_path, capsys, flags):
    file = dicom_dataset(scans(), sop_class=OPT, Modality="OPT")
    planted = plant(file)
    assert len(file) > 500
    file.private_block(0x0011, "Zzidentity private", create=True).add_new(1, "LO", NAME)
    file.ManufacturerModelName = f"Scanner of {NAME}"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "IM1").write_bytes(as_bytes(file))
    if "--skip_invalid" in flags:
        broken = as_bytes(file)
        (tree / "IM2").write_bytes(broken[:-200])
    rows = run(tree, tmp_path / "new", *flags)
    assert rows
    said = capsys.readouterr()
    found = [said.out, said.err]
    for path in (tmp_path / "new").rglob("*"):
        found.append(str(path.relative_to(tmp_path)))
        if path.is_file():
            found.append(path.read_bytes().decode("latin-1"))
    for word in planted:
        assert word.lower() not in "\n".join(found).lower()
    assert word.encode() in (tree / "IM1").read_bytes()  # it was there to be found


def test_patients_have_the_same_name_with_the_same_key_only(tmp_path):
    write_dicom(tmp_path / "a/1", scans()[0], PatientID="77", Modality="OPT")
    write_dicom(tmp_path / "b/2", scans()[1], PatientID="77", Modality="OPT")
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    names = [
        run(tmp_path / source, tmp_path / f"new{number}", *flags)[0]["patient_id"]
        for number, (source, flags) in enumerate(
            [
                ("a", ("--pseudonym_key", str(key))),
                ("b", ("--pseudonym_key", str(key))),
                ("b", ()),
            ]
        )
    ]
    assert names[0] == names[1] != names[2]


def write_reports(path, rows, key="AccessionNumber"):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([(key, "text", "label"), *rows])
    return str(path)


def test_reports_join_by_their_key(tmp_path, capsys):
    for number in (1, 2):
        write_dicom(tmp_path / f"x/{number}", scans()[0], AccessionNumber=f"ACC{number}")
    rows = [
        ("ACC1", "Left effusion.", "effusion"),
        ("ACC2", "Clear\nlungs.", ""),
        ("ACC9", "x", ""),
    ]
    reports = write_reports(tmp_path / "reports.csv", rows)
    found = run(tmp_path / "x", tmp_path / "new", "--reports", reports)
    assert [row["text"] for row in found] == ["Left effusion.", "Clear lungs."]
    assert [row["label"] for row in found] == ["effusion", ""]
    assert "1 reports have no image" in capsys.readouterr().err
    assert "ACC" not in (tmp_path / "new/metadata.csv").read_text()


def test_all_problems_with_reports_are_told_at_once_without_the_keys(tmp_path):
    for number in range(1, 5):
        write_dicom(tmp_path / f"x/{number}", scans()[0], AccessionNumber=f"ACC{number}")
    write_dicom(tmp_path / "x/5", scans()[0])
    rows = [("ACC1", "a", ""), ("ACC2", "a", ""), ("ACC2", "b", ""), ("ACC3", " ", "")]
    reports = write_reports(tmp_path / "reports.csv", rows)
    with pytest.raises(ValueError) as caught:
        run(tmp_path / "x", tmp_path / "new", "--reports", reports)
    said = str(caught.value)
    for place, words in (("2", "has 2 reports"), ("3", "is empty"), ("4", "has 0 reports")):
        assert any(
            line.strip().startswith(f"{place}:") and words in line for line in said.splitlines()
        )
    assert "the file has no AccessionNumber" in said
    assert "ACC2" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--reports_key", "AccessionNo"], "no keyword of a DICOM attribute"),
        (["--reports_key", "StudyInstanceUID"], "no column StudyInstanceUID"),
    ],
)
def test_a_key_that_cannot_be_joined_is_told_before_anything_is_read(tmp_path, flags, said):
    write_dicom(tmp_path / "x/1", scans()[0])
    reports = write_reports(tmp_path / "reports.csv", [])
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "x", tmp_path / "new", "--reports", reports, *flags)


@pytest.mark.parametrize(
    ("layout", "said"),
    [("dicom", "no DICOM file"), ("device-files", r"no file of a device.*\.e2e")],
)
def test_a_tree_of_something_else_says_what_is_missing(tmp_path, layout, said):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "x", tmp_path / "new", layout=layout)


def test_a_broken_file_is_a_problem_and_the_others_are_taken(tmp_path):
    write_dicom(tmp_path / "x/1", scans()[0])
    broken = write_dicom(tmp_path / "x/2", scans()[1])
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(ValueError, match="corrupt image"):
        run(tmp_path / "x", tmp_path / "new")
    assert len(run(tmp_path / "x", tmp_path / "new", "--skip_invalid")) == 1


@pytest.mark.parametrize("layout", ["dicom", "device-files"])
def test_what_cannot_be_read_is_a_problem_and_never_left_out_in_silence(
    tmp_path, monkeypatch, layout
):
    tree = tmp_path / "x"
    write_dicom(tree / "1", scans()[0])
    write_vol(tree / "b.vol", RNG.uniform(0, 1, (3, 20, 30)), patient="MRN777")
    (tree / "closed").mkdir()
    said = ["closed: cannot be read: Permission denied"]
    if layout == "dicom":
        (tree / "2").symlink_to(tree / "2")
        said.append("2: cannot be read: Too many levels of symbolic links")
    scandir = os.scandir

    def refuse(path):  # the tests may run as root, whom no permissions stop
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError) as caught:
        run(tree, tmp_path / "new", layout=layout)
    for line in said:
        assert line in str(caught.value)
    monkeypatch.undo()
    (tree / "2").unlink(missing_ok=True)
    assert run(tree, tmp_path / "new", layout=layout)


def test_a_file_cut_off_before_its_size_is_a_problem_and_not_left_out(tmp_path):
    write_dicom(tmp_path / "x/1", scans()[0], Modality="OPT")
    whole = write_dicom(tmp_path / "x/2", scans()[0], sop_class=OPT, Modality="OPT").read_bytes()
    rows_at = whole.index(b"\x28\x00\x10\x00US")  # the tag (0028,0010), Rows
    (tmp_path / "x/2").write_bytes(whole[:rows_at])
    with pytest.raises(ValueError, match="2: no image: without rows and columns"):
        run(tmp_path / "x", tmp_path / "new")


def test_what_never_holds_a_picture_is_left_out_by_what_is_stored(tmp_path, capsys):
    write_dicom(tmp_path / "x/1", scans()[0], Modality="OPT", PatientID="1")
    pdf = {"sop_class": EncapsulatedPDFStorage, "Modality": "OPT"}
    write_structured_report(tmp_path / "x/2", modality="OPT", **pdf)
    write_structured_report(tmp_path / "x/3", modality="", sop_class=MediaStorageDirectoryStorage)
    write_structured_report(tmp_path / "x/4", modality="PR")
    assert len(run(tmp_path / "x", tmp_path / "new")) == 1
    said = capsys.readouterr().err
    for what in ("a directory", "a document", "PR"):
        assert f"1 without a picture ({what})" in said


def test_a_broken_value_is_not_quoted_in_messages(tmp_path):
    file = dicom_dataset(scans()[0], Modality="OPT")
    file.WindowCenter, file.WindowWidth = "40", "400"
    data = as_bytes(file)
    at = data.index(b"\x28\x00\x50\x10DS") + 6
    assert data[at : at + 4] == b"\x02\x0040"
    (tmp_path / "x").mkdir()
    (tmp_path / "x/1").write_bytes(data[: at + 2] + b"Zz" + data[at + 4 :])
    with pytest.raises(ValueError, match="corrupt image") as caught:
        run(tmp_path / "x", tmp_path / "new")
    assert "Zz" not in str(caught.value)


@pytest.mark.parametrize("value", [b"Zz^Janey", b"ZZJANEY ", b"1\\Zz^Jane"])
def test_no_attribute_can_be_broken_so_that_a_message_quotes_it_or_the_import_crashes(
    tmp_path, value, capsys
):
    shown = {"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "LINEAR"}
    scaled = {"RescaleSlope": "1", "RescaleIntercept": "0", "PixelPaddingValue": 0}
    file = dicom_dataset(scans(), sop_class=OPT, Modality="OPT", Laterality="R", **shown, **scaled)
    data = as_bytes(file)
    broken = [element for element in file if element.VR in ("CS", "DS", "IS", "UI", "US")]
    assert len(broken) > 15
    (tmp_path / "x").mkdir()
    for element in broken:
        at = data.index(struct.pack("<HH", element.tag.group, element.tag.element)) + 6
        (size,) = struct.unpack_from("<H", data, at)
        changed = data[:at] + struct.pack("<H", len(value)) + value + data[at + 2 + size :]
        (tmp_path / "x" / element.keyword).write_bytes(changed)
    write_dicom(tmp_path / "x/sound", scans()[0], Modality="OPT")
    with pytest.raises(ValueError) as caught:
        run(tmp_path / "x", tmp_path / "new")
    assert run(tmp_path / "x", tmp_path / "new", "--skip_invalid")
    said = [str(caught.value), *capsys.readouterr()]
    assert "corrupt image" in said[0]
    assert not any(word in "\n".join(said).lower() for word in ("zz", "jane"))


def test_of_reports_only_the_named_columns_are_kept(tmp_path, monkeypatch):
    write_dicom(tmp_path / "x/1", scans()[0], AccessionNumber="ACC1")
    (tmp_path / "reports.csv").write_text("AccessionNumber,name,text\nACC1,Zzidentity,Clear.\n")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # the scratch file stays
    (row,) = run(tmp_path / "x", tmp_path / "new", "--reports", str(tmp_path / "reports.csv"))
    assert row["text"] == "Clear."
    (scratch,) = tmp_path.rglob("tables.sqlite")
    assert b"Clear." in scratch.read_bytes()
    assert b"Zzidentity" not in scratch.read_bytes()


def test_the_fovea_is_guessed_though_the_files_own_window_is_none(tmp_path):
    frames, at = draw_volume(3, num_frames=25)
    window = {"WindowCenter": "0", "WindowWidth": "0"}
    options = {"sop_class": OPT, "Modality": "OPT", "PatientID": "1"}
    write_dicom(tmp_path / "x/1", frames.astype(int) * 16, **window, **options)
    flags = ("--central_n", "3", "--image_format", "png", "--window", "0", "4000")
    rows = run(tmp_path / "x", tmp_path / "new", *flags)
    assert {row["around"] for row in rows} == {"fovea"}
    assert abs(int(rows[1]["frame"]) - at) <= 2


def test_scans_around_the_fovea_are_taken_of_a_dicom_volume(tmp_path):
    frames, at = draw_volume(3, num_frames=25)
    write_dicom(tmp_path / "x/1", frames, bits=8, sop_class=OPT, Modality="OPT")
    rows = run(tmp_path / "x", tmp_path / "new", "--central_n", "3")
    assert len(rows) == 3
    assert {row["around"] for row in rows} == {"fovea"}
    assert abs(int(rows[1]["frame"]) - at) <= 2
    written = pydicom.dcmread(io.BytesIO((tmp_path / "x/1").read_bytes())).pixel_array
    from PIL import Image

    first = np.asarray(Image.open(tmp_path / "new" / rows[0]["file_name"]))
    assert np.array_equal(first, written[int(rows[0]["frame"])])


def test_devices_files_become_data_sets_without_their_patients(tmp_path, capsys):
    tree = tmp_path / "x"
    tree.mkdir()
    deep = RNG.integers(0, 60_000, (4, 20, 30))
    write_topcon(tree / "a.fds", deep, patient="MRN555", first="Zzidentity", last="Doe")
    write_vol(tree / "b.vol", RNG.uniform(0, 1, (3, 20, 30)), patient="MRN777")
    volumes = [RNG.integers(55, 62, (2, 20, 30)) << 10 for _ in range(2)]
    write_e2e(tree / "c.e2e", volumes, patient="MRN555", first="Zzidentity")
    rows = run(tree, tmp_path / "new", layout="device-files")
    sources = [row["source"] for row in rows]
    assert sources == ["Topcon"] * 4 + ["Heidelberg Spectralis"] * 7
    assert len({row["volume"] for row in rows}) == 4
    assert len({row["patient_id"] for row in rows}) == 2  # MRN555 came to two devices
    found = capsys.readouterr()
    texts = [found.out, found.err]
    texts += [path.read_bytes().decode("latin-1") for path in (tmp_path / "new").rglob("*.*")]
    for word in ("MRN555", "MRN777", "Zzidentity"):
        assert word not in "\n".join(texts)
    options = json.loads((tmp_path / "new/options.json").read_text())
    assert options["layout"] == "device-files"
