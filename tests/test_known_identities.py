"""What a text called a name or a number of a person goes from patients and file names as well."""

from pathlib import Path

from PIL import Image

import prepare_dataset
from utils.dataset import load_dataset, write_dataset


def cleaned(tmp_path: Path, rows: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """(file_name, patient_id) in the clean copy of a set of (file_name, patient_id, text)."""
    source, clean = tmp_path / "source", tmp_path / "clean"
    for number, (name, _, _) in enumerate(rows):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 9 * number).save(source / name)
    columns = ("file_name", "patient_id", "text")
    write_dataset(source, [dict(zip(columns, row, strict=True)) for row in rows])
    flags = ["--data_dir", str(source), "--output_dir", str(tmp_path / "out")]
    flags += ["--num_workers", "0", "--deidentify", str(clean)]
    assert prepare_dataset.main(["privacy", *flags]) == 0
    return [(record.file_name, record.patient_id) for record in load_dataset(clean)]


def test_a_number_that_a_text_calls_an_identity_is_replaced_in_patients_and_file_names(tmp_path):
    rows = [
        ("images/a.png", "1", "Drusen. MRN 4711832."),
        ("images/b.png", "4711832", "Drusen."),
        ("images/scan_4711832_1.png", "1", "Drusen."),
        ("images/c.png", "K4711832", "NHS number 943 476 5919, no fluid."),
        ("images/943-476-5919.png", "471183", "Drusen."),
        ("images/d.png", "47118321", "Drusen."),
    ]
    copy = cleaned(tmp_path, rows)
    assert not [value for pair in copy for value in pair if "4711832" in value.replace("21", "")]
    assert copy[1][1].startswith("P-")
    assert copy[3][1].startswith("P-")
    assert copy[2] == ("images/3.png", "1")
    assert copy[4] == ("images/5.png", "471183")
    assert copy[5] == ("images/d.png", "47118321")


def test_a_short_number_is_looked_for_as_the_whole_patient_alone(tmp_path):
    rows = [
        ("images/a.png", "12", "Case no. 12: drusen."),
        ("images/12_1.png", "B12", "Drusen."),
    ]
    copy = cleaned(tmp_path, rows)
    assert copy[0][1].startswith("P-")
    assert copy[1] == ("images/12_1.png", "B12")


def test_a_name_that_a_text_tells_is_replaced_in_patients_and_file_names(tmp_path):
    rows = [
        ("images/a.png", "1", "Seen by Dr. Quast, Retina Clinic."),
        ("images/QUAST_OD.png", "quast", "Drusen."),
        ("images/Retina_2.png", "Quast A", "Drusen."),
    ]
    copy = cleaned(tmp_path, rows)
    assert copy[1] == ("images/2.png", "quast")  # as with --names: a lone word needs a capital
    assert copy[2][0] == "images/Retina_2.png"
    assert copy[2][1].startswith("P-")


def test_a_surname_before_a_given_name_is_a_patients_name(tmp_path):
    rows = [
        ("images/a.png", "DOE JANE", "Drusen."),
        ("images/Doe_Jane.png", "1", "Drusen."),
        ("images/DOE_JANE_2.png", "Soft Drusen", "Drusen."),
    ]
    copy = cleaned(tmp_path, rows)
    assert copy[0][1].startswith("P-")
    assert [name for name, _ in copy] == ["images/a.png", "images/2.png", "images/3.png"]
    assert copy[2][1] == "Soft Drusen"
