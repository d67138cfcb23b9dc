"""The import by layout: what it makes, what it refuses, and how it goes on after it was stopped."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest
import toy_layout
from PIL import Image
from toy_layout import pixels, some_rows, write_dicom, write_source

import prepare_dataset
from utils.cli import UserError
from utils.dataset import load_dataset
from utils.importers import image_transfer, layout_names, layouts, publishing, run
from utils.importers.journal import Journal
from utils.importers.layout import LayoutOptions
from utils.importers.listing import Listing, RowRules
from utils.importers.table_index import TableIndex
from utils.resumable_run import only_writer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def toy(monkeypatch):
    """The toy layout under the name of one whose sources name patients, and of one without."""
    monkeypatch.setattr(run, "find_layout", lambda name: toy_layout.LAYOUT)


def imported(source, out, *flags, layout="kermany"):
    command = ("import", "--source", source, "--output_dir", out, "--layout", layout, *flags)
    assert prepare_dataset.main([*map(str, command), "--num_workers", "0"]) == 0
    return table_of(out)


def table_of(folder, name="metadata.csv"):
    with (folder / name).open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def said(capsys):
    return json.loads(capsys.readouterr().out)


def contents(folder):
    """Every file's bytes; of options.json all but the time of the start."""
    found = {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
    options = json.loads(found.pop("options.json"))
    del options["started"]
    return found, options


def kermany_tree(folder, *, each, side=64):
    number = 0
    for split in ("train", "test"):
        for label in ("CNV", "DME", "DRUSEN", "NORMAL"):
            (folder / split / label).mkdir(parents=True)
            for _ in range(each):
                number += 1
                image = Image.fromarray(pixels(number, height=side, width=side))
                image.save(folder / split / label / f"{label}-{number}-1.jpeg")
    return folder


# What comes out


def test_a_source_becomes_a_dataset_folder(tmp_path, toy, capsys):
    source = write_source(tmp_path / "in", some_rows(6))
    rows = imported(source, tmp_path / "new" / "out")
    assert rows[1] == {
        "file_name": "scan-0001.png",
        "text": "finding 1",
        "label": "NORMAL",
        "patient_id": "p0",
        "split": "train",
        "modality": "OCT",
    }  # and not the columns that are empty everywhere
    for row in rows:
        copied, original = tmp_path / "new" / "out" / row["file_name"], source / row["file_name"]
        assert copied.read_bytes() == original.read_bytes()
        assert not copied.samefile(original)
    result = said(capsys)
    assert (result["rows"], result["skipped"], result["labels"]) == (6, 0, ["DME", "NORMAL"])
    assert len(load_dataset(tmp_path / "new" / "out", require_text=True)) == 6
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]


def test_links_share_the_file(tmp_path, toy):
    source = write_source(tmp_path / "in", some_rows(2))
    imported(source, tmp_path / "out", "--link")
    assert (tmp_path / "out" / "scan-0000.png").samefile(source / "scan-0000.png")


def test_pngs_are_windowed_and_shrunk(tmp_path, toy):
    source = write_source(tmp_path / "in", [{"file": "a.tif"}, {"file": "b.png"}])
    deep = np.linspace(0, 4000, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(deep).save(source / "a.tif")
    flags = ("--image_format", "png", "--window", "0", "2000", "--max_side", "50")
    names = [row["file_name"] for row in imported(source, tmp_path / "out", *flags)]
    assert names == ["a.png", "b.png"]
    shrunk, small = (Image.open(tmp_path / "out" / name) for name in names)
    grey = Image.fromarray(np.rint(np.clip(deep / 2000, 0, 1) * 255).astype(np.uint8))
    expected = grey.resize((50, 33), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(shrunk), np.asarray(expected))
    assert np.array_equal(np.asarray(small), pixels(1))  # 40 px wide: never made larger


def test_deep_images_that_are_kept_are_told(tmp_path, toy, capsys):
    source = write_source(tmp_path / "in", [{"file": "a.tif"}])
    Image.fromarray(np.arange(640, dtype=np.uint16).reshape(20, 32)).save(source / "a.tif")
    imported(source, tmp_path / "out")
    (note,) = said(capsys)["notes"]
    assert note.startswith("1 images are deeper than 8 bits")
    assert "a.tif 0..639" in note


def test_flags_fill_and_replace_columns(tmp_path, toy):
    source = write_source(tmp_path / "in", [{"file": "ab-7.png", "label": "DME; ERM", "eye": "OD"}])
    (row,) = imported(
        *(source, tmp_path / "out", "--caption", "OCT of {eye} in {file_name}, {label}"),
        *(r"--patient_pattern=-(\d)", "--source_name", "clinic", "--modality", "OPT"),
    )
    assert row["text"] == "OCT of OD in ab-7.png, DME, ERM"
    assert (row["patient_id"], row["source"], row["modality"]) == ("7", "clinic", "OPT")


def test_two_images_never_get_one_name(tmp_path, toy):
    files = ["a.png", "a.tif", "A_tif.png", "b.dcm", "b.png"]
    source = write_source(tmp_path / "in", [{"file": name} for name in files])
    rows = imported(source, tmp_path / "out", "--image_format", "png")
    names = [row["file_name"] for row in rows]
    assert names == ["a.png", "a_tif.png", "A_tif_png.png", "b.png", "b_png.png"]
    for number, name in enumerate(names):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), pixels(number))


def test_the_options_hold_the_flags_and_counts_and_nothing_of_the_source(tmp_path, toy):
    source = write_source(tmp_path / "in", [*some_rows(2), {"file": "gone/x.png"}])
    imported(source, tmp_path / "out", "--skip_invalid")
    options = json.loads((tmp_path / "out" / "options.json").read_text())
    assert options["flags"]["source"] == str(source)
    assert (options["rows"], options["skipped_kinds"]) == (2, {"missing file": 1})
    assert "x.png" not in json.dumps(options)


# DICOM files


def test_dicom_becomes_png_without_its_tags(tmp_path, toy):
    source = write_source(tmp_path / "in", [{"file": "a.dcm"}, {"file": "b.png"}])
    names = [row["file_name"] for row in imported(source, tmp_path / "out")]
    assert names == ["a.png", "b.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), pixels(0))
    assert not any(b"MRN-4711" in path.read_bytes() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("flags", [["--link"], ["--image_format", "keep"]])
def test_dicom_is_not_kept(tmp_path, toy, flags):
    source = write_source(tmp_path / "in", [{"file": "b.png"}, {"file": "a.dcm"}])
    with pytest.raises(UserError, match=r"images\.csv:3: DICOM files and volumes are written as"):
        imported(source, tmp_path / "out", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # other flags are free to come


def test_dicom_under_another_name_is_found(tmp_path, toy):
    source = write_source(tmp_path / "in", [{"file": "b.png"}])
    write_dicom(source / "b.png", pixels(0))
    with pytest.raises(UserError, match=r"images\.csv:2: DICOM: b\.png: DICOM under the name"):
        imported(source, tmp_path / "out")
    shutil.rmtree(tmp_path / "out.partial")
    imported(source, tmp_path / "out", "--image_format", "png")


def test_dicom_of_any_other_source_becomes_png_too(tmp_path):
    (tmp_path / "in").mkdir()
    write_dicom(tmp_path / "in" / "a.dcm", pixels(0))
    Image.fromarray(pixels(1)).save(tmp_path / "in" / "a.png")
    command = ["import", "--source", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    for flags in (["--link"], ["--image_format", "keep"]):
        with pytest.raises(UserError, match=r"1 DICOM files are written as PNG only.*a\.dcm"):
            prepare_dataset.main([*command, *flags])
    prepare_dataset.main(command)
    names = sorted(row["file_name"] for row in table_of(tmp_path / "out"))
    assert names == ["a.png", "a_png.png"]
    assert not any(b"MRN-4711" in path.read_bytes() for path in (tmp_path / "out").iterdir())
    kept = (tmp_path / "out" / "a_png.png").read_bytes()
    assert kept == (tmp_path / "in" / "a.png").read_bytes()


# Pseudonyms


def test_a_random_key_is_thrown_away(tmp_path, toy):
    source = write_source(tmp_path / "in", some_rows(3))
    found = [imported(source, tmp_path / name, layout="dicom") for name in ("a", "b")]
    names = [[row["patient_id"] for row in rows] for rows in found]
    assert all(re.fullmatch("P-[0-9a-f]{12}", name) for name in names[0])
    assert names[0][0] == names[0][1] != names[0][2]
    assert names[0] != names[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "in"]


def test_the_random_key_is_gone_before_the_folder_is_there(tmp_path, toy, monkeypatch):
    source = write_source(tmp_path / "in", some_rows(3))
    monkeypatch.setattr(publishing, "discard", lambda *_: pytest.fail("killed here"))
    with pytest.raises(pytest.fail.Exception):
        imported(source, tmp_path / "out", layout="dicom")
    assert (tmp_path / "out" / "metadata.csv").exists()
    left = [path.name for path in (tmp_path / "out.partial").iterdir()]
    assert sorted(left) == ["options.json", "result.json"]


def test_a_key_of_ones_own_gives_the_same_names_again(tmp_path, toy):
    source = write_source(tmp_path / "in", some_rows(3))
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    flags = ("--pseudonym_key", tmp_path / "key")
    found = [imported(source, tmp_path / name, *flags, layout="dicom") for name in ("a", "b")]
    assert found[0] == found[1]
    assert "0123456789abcdef" not in (tmp_path / "a" / "options.json").read_text()


def test_the_random_key_survives_a_stop(tmp_path, toy, monkeypatch):
    source = write_source(tmp_path / "in", some_rows(70))
    with monkeypatch.context() as patch:
        patch.setattr(image_transfer, "pixel_hash", stops_after(66))
        with pytest.raises(KeyboardInterrupt):
            imported(source, tmp_path / "out", "--image_format", "png", layout="dicom")
    with Journal(tmp_path / "out.partial" / "journal.sqlite") as journal:
        key = journal.setting("pseudonym_key", b"")
    rows = imported(source, tmp_path / "out", "--image_format", "png", layout="dicom")
    assert rows[0]["patient_id"] == run.Pseudonyms(key).of("p0")


def test_another_key_does_not_go_on(tmp_path, toy):
    source = write_source(tmp_path / "in", [*some_rows(2), {"file": "gone/x.png"}])
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    flags = ("--pseudonym_key", tmp_path / "key")
    with pytest.raises(UserError, match="1 problem"):
        imported(source, tmp_path / "out", *flags, layout="dicom")
    (tmp_path / "key").write_bytes(b"another key, 23 bytes..")
    with pytest.raises(UserError, match="not the key this import was started with"):
        imported(source, tmp_path / "out", *flags, layout="dicom")


def test_skipped_rows_of_patients_with_names_are_counted_not_listed(tmp_path, toy):
    source = write_source(tmp_path / "in", [*some_rows(2), {"file": "gone/x.png"}])
    imported(source, tmp_path / "a", "--skip_invalid", layout="dicom")
    imported(source, tmp_path / "b", "--skip_invalid", layout="kermany")
    assert not (tmp_path / "a" / "skipped.csv").exists()
    assert table_of(tmp_path / "b", "skipped.csv")[0]["where"] == "images.csv:4"


# Problems


BAD_ROWS = [
    {"file": "../outside.png"},
    {"file": "gone/x.png"},
    {"file": "SCAN-0001.png"},
    {"file": "broken.png", "label": "BROKEN"},
    {"file": "split.png", "patient_id": "p0", "split": "test"},
    {"file": "fold.png", "split": "fold1"},
    {"file": "cut.jpg"},
    {"file": "empty.png"},
    {"file": "small.png"},
    {"file": "sub/twin.png", "split": "val"},
]
BAD_KINDS = {
    4: "path outside the folder",
    5: "missing file",
    6: "duplicate row",
    7: "broken row",
    8: "patient in two splits",
    9: "unknown split",
    10: "corrupt image",
    11: "empty file",
    12: "too small",
    13: "duplicate pixels",
}


def bad_source(folder):
    source = write_source(folder, [*some_rows(2), *BAD_ROWS])
    Image.fromarray(pixels(50)).save(source / "cut.jpg", quality=95)
    (source / "cut.jpg").write_bytes((source / "cut.jpg").read_bytes()[:600])
    (source / "empty.png").write_bytes(b"")
    Image.fromarray(pixels(51, height=7)).save(source / "small.png")
    (source / "sub").mkdir()
    shutil.copyfile(source / "scan-0000.png", source / "sub" / "twin.png")
    return source


def test_all_problems_are_told_at_once(tmp_path, toy):
    with pytest.raises(UserError) as stop:
        imported(bad_source(tmp_path / "in"), tmp_path / "out")
    found = re.findall(r"images\.csv:(\d+): ([\w ]+): ", str(stop.value))
    assert {int(line): kind for line, kind in found} == BAD_KINDS
    assert "10 problems" in str(stop.value)
    assert "patient p0 is in test here and in train at images.csv:2" in str(stop.value)
    assert "which is in split train, this in val" in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_skip_invalid_goes_on_where_the_problems_were_told(tmp_path, toy, capsys):
    source = bad_source(tmp_path / "in")
    with pytest.raises(UserError):
        imported(source, tmp_path / "out")
    written = (tmp_path / "out.partial" / "dataset" / "scan-0001.png").stat()
    rows = imported(source, tmp_path / "out", "--skip_invalid")
    assert [row["file_name"] for row in rows] == ["scan-0000.png", "scan-0001.png"]
    again = (tmp_path / "out" / "scan-0001.png").stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    skipped = table_of(tmp_path / "out", "skipped.csv")
    assert [(int(row["where"][11:]), row["kind"]) for row in skipped] == list(BAD_KINDS.items())
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["metadata.csv", "options.json", *["scan-0000.png", "scan-0001.png"],
                     "skipped.csv"]  # fmt: skip
    result = said(capsys)
    assert (result["rows"], result["skipped"]) == (2, 10)
    assert result["skipped_kinds"] == dict.fromkeys(sorted(BAD_KINDS.values()), 1)


def test_a_repaired_source_goes_on(tmp_path, toy):
    source = write_source(tmp_path / "in", some_rows(3))
    (source / "scan-0001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"images\.csv:3: empty file"):
        imported(source, tmp_path / "out")
    written = (tmp_path / "out.partial" / "dataset" / "scan-0000.png").stat().st_ino
    Image.fromarray(pixels(1)).save(source / "scan-0001.png")
    Image.fromarray(pixels(9)).save(source / "scan-0002.png")  # was sound; is another now
    rows = some_rows(3)
    rows[0]["text"] = "another text"
    write_source(source, rows)
    found = imported(source, tmp_path / "out")
    assert [row["text"] for row in found] == ["another text", "finding 1", "finding 2"]
    assert (tmp_path / "out" / "scan-0000.png").stat().st_ino == written
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "scan-0002.png")), pixels(9))


def test_a_link_to_a_file_that_was_replaced_is_made_anew(tmp_path, toy):
    source = write_source(tmp_path / "in", [*some_rows(2), {"file": "gone/x.png"}])
    with pytest.raises(UserError, match="1 problem"):
        imported(source, tmp_path / "out", "--link")
    (source / "scan-0000.png").unlink()
    Image.fromarray(pixels(9)).save(source / "scan-0000.png")
    imported(source, tmp_path / "out", "--link", "--skip_invalid")
    assert (tmp_path / "out" / "scan-0000.png").samefile(source / "scan-0000.png")


def test_a_name_that_goes_to_another_file_is_done_again(tmp_path, toy):
    source = write_source(tmp_path / "in", [{"file": "a.tif"}, {"file": "gone/x.png"}])
    with pytest.raises(UserError, match="1 problem"):
        imported(source, tmp_path / "out", "--image_format", "png")
    Image.fromarray(pixels(9)).save(source / "a.png")
    write_source(source, [{"file": "a.png"}, {"file": "a.tif"}])
    imported(source, tmp_path / "out", "--image_format", "png")
    for name, number in (("a.png", 9), ("a_tif.png", 0)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), pixels(number))


def test_a_broken_row_of_a_table_does_not_end_the_import_of_the_others(tmp_path, toy, capsys):
    source = write_source(tmp_path / "in", some_rows(3))
    lines = (source / "images.csv").read_text().splitlines()
    lines[2] += ",one,too,many"
    (source / "images.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"1 problem\n  images\.csv:3: broken row: 10 fields"):
        imported(source, tmp_path / "out")
    rows = imported(source, tmp_path / "out", "--skip_invalid")
    assert [row["file_name"] for row in rows] == ["scan-0000.png", "scan-0002.png"]
    (skipped,) = table_of(tmp_path / "out", "skipped.csv")
    assert (skipped["where"], skipped["kind"]) == ("images.csv:3", "broken row")


def test_of_two_equal_images_the_one_without_another_problem_is_kept(tmp_path, toy):
    spoiled = {"file": "a.png", "patient_id": "p1", "split": "nowhere"}
    source = write_source(tmp_path / "in", [spoiled, {"file": "b.png", "patient_id": "p2"}])
    shutil.copyfile(source / "a.png", source / "b.png")
    with pytest.raises(UserError, match="duplicate pixels"):
        imported(source, tmp_path / "out")
    rows = imported(source, tmp_path / "out", "--skip_invalid")
    assert [row["file_name"] for row in rows] == ["b.png"]


def test_a_patients_split_is_that_of_the_first_image_without_another_problem(tmp_path, toy):
    cells = {"patient_id": "p1", "text": "x"}
    rows = [{"file": "a.png", "split": "train"}, {"file": "b.png", "split": "test"}]
    source = write_source(tmp_path / "in", [cells | row for row in rows])
    (source / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="patient in two splits"):
        imported(source, tmp_path / "out")
    rows = imported(source, tmp_path / "out", "--skip_invalid")
    assert [(row["file_name"], row["split"]) for row in rows] == [("b.png", "test")]


def test_nothing_left_is_an_error_even_with_skip_invalid(tmp_path, toy):
    source = write_source(tmp_path / "in", [{"file": "gone/x.png"}])
    with pytest.raises(UserError, match="Nothing is left"):
        imported(source, tmp_path / "out", "--skip_invalid")


def test_a_source_without_an_image_is_an_error(tmp_path, toy):
    with pytest.raises(UserError, match="finds no image in it"):
        imported(write_source(tmp_path / "in", []), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_missing_parts_are_all_named_with_the_expected_tree(tmp_path, toy):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError) as stop:
        imported(tmp_path / "in", tmp_path / "out")
    for part in ("images.csv: the table", "notes.txt: what is known", "SOURCE/*.png"):
        assert part in str(stop.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_caption_names_its_empty_and_unknown_columns(tmp_path, toy):
    source = write_source(tmp_path / "in", [{"file": "a.png", "eye": "OS"}, {"file": "b.png"}])
    with pytest.raises(UserError, match="toy has no column side"):
        imported(source, tmp_path / "out", "--caption", "{side}")
    with pytest.raises(UserError, match=r"images\.csv:3: empty eye: b\.png"):
        imported(source, tmp_path / "out", "--caption", "{eye} eye")


def test_a_patient_pattern_that_does_not_fit_names_the_row(tmp_path, toy):
    source = write_source(tmp_path / "in", [{"file": "a-1.png"}, {"file": "b.png"}])
    with pytest.raises(UserError, match=r"images\.csv:3: no patient: .* does not fit b\.png"):
        imported(source, tmp_path / "out", r"--patient_pattern=-(\d)")


# Stopped and resumed


def stops_after(count):
    real, calls = image_transfer.pixel_hash, []

    def counting(image):
        calls.append(image)
        if len(calls) > count:
            raise KeyboardInterrupt
        return real(image)

    return counting


def command_line(source, out, *flags):
    return [
        *(sys.executable, str(ROOT / "prepare_dataset.py"), "import", "--source", str(source)),
        *("--layout", "kermany", "--output_dir", str(out), "--image_format", "png", *flags),
    ]


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_killed_and_resumed_is_as_uninterrupted(tmp_path, num_workers):
    source = kermany_tree(tmp_path / "in", each=40, side=256)  # 320 images
    flags = ("--num_workers", num_workers, "--max_side", "200")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    command = command_line(source, "out", *flags)
    subprocess.run(command, cwd=tmp_path / "whole", check=True, capture_output=True)
    partial = tmp_path / "killed" / "out.partial"
    process = subprocess.Popen(command, cwd=tmp_path / "killed", stderr=subprocess.DEVNULL)
    while not (done := num_done(partial)) and process.poll() is None:
        time.sleep(0.01)
    helpers = psutil.Process(process.pid).children(recursive=True)
    assert bool(helpers) == (num_workers == "2")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert psutil.wait_procs(helpers, timeout=30)[1] == []  # none outlives it
    assert 0 < done < 320
    before = {path: path.stat().st_ino for path in (partial / "dataset").rglob("*.png")}
    subprocess.run(command, cwd=tmp_path / "killed", check=True, capture_output=True)
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["out"]
    kept = sum(
        inode == (tmp_path / "killed" / "out" / path.relative_to(partial / "dataset")).stat().st_ino
        for path, inode in before.items()
    )
    assert kept >= done


def num_done(partial):
    try:
        with sqlite3.connect(f"file:{partial}/journal.sqlite?mode=ro", uri=True) as journal:
            return journal.execute("SELECT COUNT(*) FROM results").fetchone()[0]
    except sqlite3.OperationalError:  # not there yet, or being written
        return 0


def test_ctrl_c_keeps_what_is_done_and_says_where(tmp_path):
    source = kermany_tree(tmp_path / "in", each=40, side=256)
    command = command_line(source, tmp_path / "out", "--num_workers", "0")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not num_done(tmp_path / "out.partial") and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"what is done stays in {tmp_path / 'out.partial'}; the same command goes" in stderr
    assert "Traceback" not in stderr
    subprocess.run(command, check=True, capture_output=True)
    assert len(load_dataset(tmp_path / "out")) == 320


def test_a_full_disk_keeps_what_is_done(tmp_path, toy, monkeypatch, capsys):
    source = write_source(tmp_path / "in", some_rows(8))
    real, written = Path.write_bytes, []

    def full_disk(path, data):
        if path.name.startswith("scan") and len(written) == 5:
            real(path, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space left"):
            imported(source, tmp_path / "out")
    assert "the same command goes on" in capsys.readouterr().err
    assert num_done(tmp_path / "out.partial") == len(written) - 1  # one was options.json
    imported(source, tmp_path / "out")
    assert len(load_dataset(tmp_path / "out")) == 8


def test_other_flags_do_not_go_on_and_are_named(tmp_path, toy):
    source = write_source(tmp_path / "in", [*some_rows(2), {"file": "gone/x.png"}])
    with pytest.raises(UserError, match="1 problem"):
        imported(source, tmp_path / "out", "--image_format", "png", "--max_side", "20")
    with pytest.raises(UserError, match="--max_side: 20 before, 30 now"):
        imported(source, tmp_path / "out", "--image_format", "png", "--max_side", "30")
    flags = ("--image_format", "png", "--max_side", "30", "--skip_invalid", "--overwrite")
    imported(source, tmp_path / "out", *flags)
    assert Image.open(tmp_path / "out" / "scan-0000.png").size == (30, 18)


def test_a_finished_import_only_needs_its_place(tmp_path, toy, monkeypatch):
    source = write_source(tmp_path / "in", some_rows(3))
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "put_in_place", lambda *_: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            imported(source, tmp_path / "out")
    shutil.rmtree(source)
    source.mkdir()
    (source / "images.csv").write_text("never read again")
    (source / "notes.txt").touch()
    assert len(imported(source, tmp_path / "out")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_damaged_journal_is_told_and_can_be_thrown_away(tmp_path, toy):
    source = write_source(tmp_path / "in", [*some_rows(2), {"file": "gone/x.png"}])
    with pytest.raises(UserError, match="1 problem"):
        imported(source, tmp_path / "out")
    (tmp_path / "out.partial" / "journal.sqlite").write_bytes(b"damaged " * 100)
    with pytest.raises(UserError, match=r"journal\.sqlite: damaged .*--overwrite"):
        imported(source, tmp_path / "out", "--skip_invalid")
    assert len(imported(source, tmp_path / "out", "--skip_invalid", "--overwrite")) == 2


def test_two_imports_into_one_folder_do_not_mix(tmp_path, toy):
    source = write_source(tmp_path / "in", some_rows(2))
    (tmp_path / "out.partial").mkdir()
    with (
        only_writer(tmp_path / "out.partial"),
        pytest.raises(UserError, match="another run is writing to it"),
    ):
        imported(source, tmp_path / "out")


def test_a_folder_of_another_origin_is_left_alone(tmp_path, toy):
    source = write_source(tmp_path / "in", some_rows(2))
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.doc").write_text("mine")
    for flags in ((), ("--overwrite",)):
        with pytest.raises(UserError, match=r"first: thesis\.doc"):
            imported(source, tmp_path / "out", *flags)
    assert (tmp_path / "out.partial" / "thesis.doc").read_text() == "mine"


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_finished_data_set_is_never_taken_for_an_unfinished_one(tmp_path, toy, flags):
    source = write_source(tmp_path / "in", some_rows(2))
    imported(source, tmp_path / "cxr.partial")
    (tmp_path / "cxr.partial" / "my_notes.txt").write_text("kept")
    before = contents(tmp_path / "cxr.partial")
    with pytest.raises(UserError, match="of a run of another script; name another --output_dir"):
        imported(source, tmp_path / "cxr", *flags)
    assert contents(tmp_path / "cxr.partial") == before
    assert not (tmp_path / "cxr").exists()


def test_what_others_put_beside_an_unfinished_import_is_never_deleted(tmp_path, toy, capsys):
    source = write_source(tmp_path / "in", [*some_rows(2), {"file": "gone/x.png"}])
    with pytest.raises(UserError, match="missing file"):
        imported(source, tmp_path / "out")
    notes = tmp_path / "out.partial" / "my_notes.txt"
    notes.write_text("kept")
    with pytest.raises(UserError, match=r"not of a run of this script, first: my_notes\.txt"):
        imported(source, tmp_path / "out", "--overwrite")
    imported(source, tmp_path / "out", "--skip_invalid")
    assert [path.name for path in notes.parent.iterdir()] == ["my_notes.txt"]
    assert "out.partial stays" in capsys.readouterr().err


def test_the_unfinished_folder_is_its_users_alone_whoever_made_it(tmp_path, toy):
    source = write_source(tmp_path / "in", [*some_rows(2), {"file": "gone/x.png"}])
    (tmp_path / "out.partial").mkdir(mode=0o755)
    with pytest.raises(UserError, match="missing file"):
        imported(source, tmp_path / "out")
    assert (tmp_path / "out.partial").stat().st_mode & 0o777 == 0o700


def test_a_link_as_output_dir_stays_a_link(tmp_path, toy):
    source = write_source(tmp_path / "in", some_rows(2))
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "data")
    assert len(imported(source, tmp_path / "out")) == 2
    assert (tmp_path / "out").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["data"]


def test_a_mount_point_is_refused_before_anything_is_done(tmp_path, toy, monkeypatch):
    source = write_source(tmp_path / "in", some_rows(2))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    with pytest.raises(UserError, match=r"a mount point.*out/dataset"):
        imported(source, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("name", ["taken", "n" * 250])
def test_a_place_for_the_unfinished_import_that_cannot_be_made_is_told(tmp_path, toy, name):
    source = write_source(tmp_path / "in", some_rows(2))
    (tmp_path / "taken.partial").write_text("a file")
    with pytest.raises(UserError, match=r"--output_dir .* cannot be a folder \((File|Name|Not)"):
        imported(source, tmp_path / name)
    assert (tmp_path / "taken.partial").read_text() == "a file"


def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for count in (500, 4000):
        source = tmp_path / str(count)
        source.mkdir()
        rows = "".join(f"{number}.png,{'x' * 400}\n" for number in range(count))
        (source / "images.csv").write_text("file,text\n" + rows)
        with Journal(source / "j") as journal, TableIndex(source / "t") as index:
            tracemalloc.start()
            listing = Listing(journal, toy_layout.LAYOUT, RowRules(caption="{text}"))
            with journal.transaction():
                told = toy_layout.images(source, LayoutOptions(), index)
                for number, item in enumerate(told):
                    listing.add(number, item)
            assert sum(1 for _ in journal.pending()) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]  # pages of 1,000 rows; the rows themselves are 8 times as many


# The command line


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--layout nosuch", "--layout"),
        ("--layout kermany --image_column File", "--image_column"),
        ("--layout kermany --patient_column Id", "--patient_column"),
        ("--layout kermany --views all", "--views"),
        ("--layout mimic-cxr --central_n 5", "--central_n"),
        ("--layout retouch --pseudonym_key in/k", "--pseudonym_key"),
        ("--layout retouch --around middle", "--around"),
        ("--layout dicom --reports_key StudyID", "--reports_key"),
        ("--layout kermany --max_side 9", "--max_side"),
        ("--layout kermany --max_side 0", "--max_side"),
        ("--layout kermany --source in/k", "--source"),
        ("--layout kermany --output_dir in/out", "--output_dir"),
        ("--views all", "--views"),
        ("--overwrite", "--overwrite"),
        ("--report_sections", "--report_sections"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "k").write_bytes(b"0123456789abcdef")
    with pytest.raises(SystemExit) as stop:
        prepare_dataset.main(["import", "--source", "in", "--output_dir", "out", *flags.split()])
    assert stop.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", layout_names.LAYOUT_NAMES)
def test_every_name_has_its_layout(name):
    layout = layouts.find_layout(name)
    assert layout.name == name
    assert layout.tree.strip()


@pytest.mark.parametrize("name", layout_names.LAYOUT_NAMES)
def test_a_layout_heeds_no_flag_that_the_command_line_refuses(name):
    path = ROOT / "utils" / "importers" / f"{layouts._MODULES[name]}.py"
    fields = LayoutOptions.__dataclass_fields__.keys() - {"pseudonyms"}
    used = set(re.findall(r"options\.(\w+)", path.read_text())) & fields
    heeded = {
        flag
        for other, module in layouts._MODULES.items()
        if module == layouts._MODULES[name]
        for flag in layout_names.LAYOUT_FLAGS[other]
    }
    assert used <= heeded
