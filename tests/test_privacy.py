"""`prepare_dataset.py privacy`: what it tells, what it hides, and the clean copy it writes."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, PngImagePlugin

import prepare_dataset
from utils.dataset import load_dataset, write_dataset
from utils.image_metadata import metadata_entries

SECRETS = ("Lindqvist", "4482913", "Smith", "Okafor", "Jenkins")


@pytest.fixture
def clinic(tmp_path) -> Path:
    """Five scans: a caption, a patient, a file name, pixels and metadata that give persons away."""
    folder = tmp_path / "clinic"
    (folder / "images").mkdir(parents=True)
    rows = []
    names = ("a.png", "b.png", "Sarah_Jenkins.png", "d.png", "e.jpg")
    for number, name in enumerate(names):
        image = Image.effect_noise((160, 120), 30 + number).convert("L")
        if name == "d.png":
            image.paste(0, (0, 0, 160, 18))
            ImageDraw.Draw(image).text((4, 3), "Okafor 1951", fill=250)
        text = PngImagePlugin.PngInfo()
        if name == "a.png":
            text.add_text("PatientName", "Okafor")
        exif = Image.Exif()
        exif[0x0131] = "Okafor's viewer"  # Software
        extra = {"exif": exif} if name == "e.jpg" else {"pnginfo": text}
        image.save(folder / "images" / name, **extra)
        rows.append(
            {
                "file_name": f"images/{name}",
                "text": "Soft drusen, no fluid.",
                "patient_id": f"P{number // 2}",
                "split": "train",
                "thickness": f"{100 + number}",
            }
        )
    rows[1]["text"] = "Dr. Lindqvist, MRN 4482913: a 94-year-old with drusen on 3.5.2021."
    rows[4]["patient_id"] = "Smith, John"
    write_dataset(folder, rows)
    return folder


def run(clinic: Path, tmp_path: Path, *flags: str) -> tuple[int, dict, list[dict]]:
    out = tmp_path / "out"
    status = prepare_dataset.main(
        ["privacy", "--data_dir", str(clinic), "--output_dir", str(out), "--num_workers", "0"]
        + [str(flag) for flag in flags]
    )
    with (out / "privacy.csv").open(encoding="utf-8") as handle:
        return status, json.loads((out / "privacy.json").read_text()), list(csv.DictReader(handle))


def test_every_kind_is_told_with_file_line_column_and_place(clinic, tmp_path):
    status, result, rows = run(clinic, tmp_path)
    assert status == 1
    assert result["findings"] == {
        "age": 1,
        "burnt-in text": 1,
        "date": 1,
        "id": 1,
        "metadata": 2,
        "name": 3,
    }
    text = "Dr. Lindqvist, MRN 4482913: a 94-year-old with drusen on 3.5.2021."
    places = {
        text[int(row["start"]) : int(row["end"])]
        for row in rows
        if row["column"] == "text" and row["line"] == "metadata.csv:3"
    }
    assert places == {"Lindqvist", "4482913", "94", "3.5.2021"}
    rules = {row["rule"] for row in rows if row["kind"] == "metadata"}
    assert rules == {"PNG PatientName", "EXIF Software"}


def test_outputs_hold_no_finding_unless_asked_for(clinic, tmp_path, capsys):
    run(clinic, tmp_path)
    page = (tmp_path / "out" / "report.html").read_text()
    told = page + (tmp_path / "out" / "privacy.json").read_text() + capsys.readouterr().out
    assert "█" in page
    for secret in SECRETS[:4]:
        assert secret not in told
    shown, _, rows = run(clinic, tmp_path, "--show_findings")
    page = (tmp_path / "out" / "report.html").read_text()
    assert shown == 1
    assert "Lindqvist" in page
    assert "data:image/png" in page
    assert "4482913" in {row["found"] for row in rows}


def test_the_clean_copy_holds_nothing_of_it_and_is_a_valid_data_set(clinic, tmp_path):
    clean = tmp_path / "clean"
    status, result, _ = run(clinic, tmp_path, "--deidentify", clean)
    assert status == 0
    assert result["clean_copy"]["remaining"]["findings"] == {}
    table = (clean / "metadata.csv").read_text()
    for secret in SECRETS:
        assert secret not in table
    dataset = load_dataset(clean)
    assert dataset[1].text == "Dr. [NAME], MRN [ID]: a over 89-year-old with drusen on [DATE]."
    assert [record.patient_id for record in dataset][:4] == ["P0", "P0", "P1", "P1"]
    assert all(record.file_name.endswith(".png") for record in dataset)
    assert [metadata_entries(record.source) for record in dataset] == [[]] * 5


def test_images_without_text_keep_their_pixels(clinic, tmp_path):
    clean = tmp_path / "clean"
    run(clinic, tmp_path, "--deidentify", clean)
    before = load_dataset(clinic)[1].image()
    assert load_dataset(clean)[1].image().tobytes() == before.tobytes()


def test_with_a_key_every_patient_gets_the_same_pseudonym_again(clinic, tmp_path):
    key = tmp_path / "pseudonym.key"
    key.write_bytes(bytes(range(32)))
    ids = []
    for name in ("one", "two"):
        run(clinic, tmp_path, "--deidentify", tmp_path / name, "--pseudonym_key", key)
        ids.append([record.patient_id for record in load_dataset(tmp_path / name)])
    assert ids[0] == ids[1]
    assert all(patient.startswith("P-") for patient in ids[0])
    assert len(set(ids[0])) == 3


def test_what_remains_in_the_copy_is_told_and_ends_with_status_1(clinic, tmp_path):
    margins = ("--mask_margins", "0", "0", "0", "0")
    status, result, _ = run(clinic, tmp_path, "--deidentify", tmp_path / "clean", *margins)
    assert status == 1
    assert result["clean_copy"]["remaining"]["findings"] == {"burnt-in text": 1}


def test_margins_are_cut_off_by_the_numbers_given(clinic, tmp_path):
    clean = tmp_path / "clean"
    margins = ("--mask_margins", "20", "1", "2", "3", "--margins_as", "crop")
    status, _, _ = run(clinic, tmp_path, "--deidentify", clean, *margins)
    assert status == 0
    assert {record.image().size for record in load_dataset(clean)} == {(156, 98)}


def test_margins_that_leave_nothing_are_refused_and_no_folder_is_left(clinic, tmp_path):
    margins = ("--mask_margins", "60", "0", "60", "0", "--margins_as", "crop")
    with pytest.raises(ValueError, match=r"nothing is left of metadata\.csv:2"):
        run(clinic, tmp_path, "--deidentify", tmp_path / "clean", *margins)
    assert not (tmp_path / "clean").exists()


def test_renamed_images_have_numbers_for_names(clinic, tmp_path):
    clean = tmp_path / "clean"
    run(clinic, tmp_path, "--deidentify", clean, "--rename_images")
    assert [r.file_name for r in load_dataset(clean)] == [f"images/{n}.png" for n in range(1, 6)]


def test_a_broken_image_ends_the_check_and_leaves_no_copy(clinic, tmp_path):
    (clinic / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"metadata\.csv:3"):
        run(clinic, tmp_path, "--deidentify", tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_broken_images_are_left_out_and_counted_if_asked_for(clinic, tmp_path):
    (clinic / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    clean = tmp_path / "clean"
    status, result, rows = run(clinic, tmp_path, "--skip_invalid", "--deidentify", clean)
    assert status == 0
    assert (result["skipped"], result["rows"], result["images"]) == (1, 4, 4)
    assert {row["line"] for row in rows} == {f"metadata.csv:{line}" for line in (2, 4, 5, 6)}
    names = [record.file_name for record in load_dataset(clean)]
    assert names == ["images/a.png", "images/2.png", "images/d.png", "images/e.png"]


def test_a_set_of_broken_images_alone_is_refused_though_they_may_be_left_out(clinic, tmp_path):
    for path in (clinic / "images").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match="nothing is left"):
        run(clinic, tmp_path, "--skip_invalid")


def test_names_of_a_list_are_found(clinic, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Drusen, Soft\n", encoding="utf-8")
    _, result, _ = run(clinic, tmp_path, "--names", names)
    assert result["by_rule"]["name: names"] == 4


def test_a_column_of_ones_own_is_read_with_its_name(clinic, tmp_path):
    rows = [dict(record.row) for record in load_dataset(clinic)]
    for row in rows:
        row["mrn"] = "4482913"
    write_dataset(clinic, rows)
    _, result, _ = run(clinic, tmp_path)
    assert result["by_column"]["mrn: id"] == 5


def test_dicom_identities_are_told_and_not_copied(tmp_path):
    dicom = pytest.importorskip("pydicom")
    source, clean = tmp_path / "dicom", tmp_path / "clean"
    source.mkdir()
    header = dicom.Dataset()
    header.PatientName, header.PatientBirthDate = "Okafor^Ngozi", "19510312"
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    header.Rows = header.Columns = 32
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.PixelData = bytes(range(256)) * 4
    header.file_meta = dicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = dicom.uid.ExplicitVRLittleEndian
    header.save_as(source / "a.dcm", enforce_file_format=True)
    write_dataset(source, [{"file_name": "a.dcm", "text": "Normal."}])
    status, _, rows = run(source, tmp_path, "--deidentify", clean)
    assert status == 0
    found = {row["rule"] for row in rows}
    assert {"DICOM PatientName", "DICOM PatientBirthDate"} <= found
    assert b"Okafor" not in (clean / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--mask_margins", "auto"), "--mask_margins needs --deidentify"),
        (("--deidentify", "X", "--mask_margins", "1", "2"), "four numbers"),
        (("--deidentify", "X", "--mask_margins", "1", "2", "3", "x"), "four numbers"),
        (("--deidentify", "X", "--skip_pixels"), "--skip_pixels"),
        (("--rename_images",), "--rename_images needs --deidentify"),
        (("--names", "none.txt"), "argument --names"),
    ],
)
def test_a_bad_flag_ends_with_status_2_and_its_name(clinic, tmp_path, capsys, flags, complaint):
    flags = [str(tmp_path / "clean") if flag == "X" else flag for flag in flags]
    with pytest.raises(SystemExit) as stop:
        run(clinic, tmp_path, *flags)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_copy_inside_the_data_set_is_refused(clinic, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(clinic, tmp_path, "--deidentify", clinic / "clean")
    assert "outside" in capsys.readouterr().err


@pytest.mark.parametrize("clean", ["out", "out/clean", "."])
def test_a_copy_inside_or_around_the_report_is_refused_before_any_work(
    clinic, tmp_path, capsys, clean
):
    source = clinic.rename(tmp_path.parent / f"{tmp_path.name}-clinic")
    with pytest.raises(SystemExit) as stop:
        run(source, tmp_path, "--deidentify", tmp_path / clean)
    assert stop.value.code == 2
    assert "--output_dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--rules", "klingon"), "one of de, en"),
        (("--skip_columns", "nothing"), "nothing is no column"),
    ],
)
def test_unknown_rules_and_columns_are_told(clinic, tmp_path, flags, complaint):
    with pytest.raises(ValueError, match=complaint):
        run(clinic, tmp_path, *flags)
