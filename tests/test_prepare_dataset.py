"""prepare_dataset.py: its flags, its five commands, and what it leaves when it fails."""

import argparse
import csv
import io
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_dataset
from utils.cli import UserError
from utils.dataset import DatasetError, load_dataset

ROOT = Path(__file__).parents[1]
REAL_OCT = Path(__file__).parents[2] / "shared" / "data" / "oct"

FLAGS = {
    "simulate": "output_dir num_images modality resolution looks findings combination_prob seed "
    "num_workers",
    "import": "source image_column caption_column label_column patient_column output_dir caption "
    "patient_pattern source_name modality link image_format window max_side skip_invalid "
    "num_workers offline layout overwrite views report_sections central_n around reports "
    "reports_key pseudonym_key",
    "split": "data_dir val_share test_share by_image overwrite seed",
    "validate": "data_dir image_column caption_column label_column patient_column require "
    "skip_pixels output_dir num_workers offline",
    "stats": "data_dir image_column caption_column label_column patient_column output_dir "
    "tokenizer sheet_columns tile_px skip_invalid seed num_workers offline",
}


def commands():
    parser = prepare_dataset.build_parser()
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def scan(number, *, dtype=np.uint8):
    high = np.iinfo(dtype).max if dtype == np.uint8 else 4096
    return np.random.default_rng(number).integers(0, high, (24, 40)).astype(dtype)


def class_folders(folder, *, labels=("DME", "NORMAL"), each=4):
    for position, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            path = folder / label / f"{label}-{number // 2}-{number}.png"
            Image.fromarray(scan(position * each + number)).save(path)
    return folder


def table_of(folder):
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def run(*argv, status=0):
    assert prepare_dataset.main([str(word) for word in argv]) == status


# The command line


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_are_these(command):
    found = {word for word in commands()[command]._option_string_actions if word.startswith("--")}
    assert found == {f"--{name}" for name in FLAGS[command].split()} | {"--help"}


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_explained_and_the_help_has_an_example(command):
    parser = commands()[command]
    assert all(action.help for action in parser._actions)
    assert f"python prepare_dataset.py {command} --" in parser.description
    assert not parser.allow_abbrev


def documented_commands():
    texts = [(ROOT / "docs" / "data.md").read_text(encoding="utf-8"), prepare_dataset.__doc__]
    texts += [parser.description for parser in commands().values()]
    joined = "\n".join(texts).replace("\\\n", " ")
    return re.findall(r"^ *python prepare_dataset\.py ([a-z].+)$", joined, flags=re.MULTILINE)


@pytest.mark.parametrize("line", documented_commands())
def test_every_command_in_the_documents_is_taken(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = ("OCT2017/train", "data/oct", "data/raw", "data/chests", "tiff16", "scans", "exports")
    folders += (
        "export/dicom",
        "mimic-cxr-jpg/2.1.0",
        "CheXpert-v1.0-small",
        "stable-diffusion-v1-4/tokenizer",
    )
    folders += tuple(f"downloads/{name}" for name in ("kermany", "octdl", "retouch"))
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    for name in ("export.csv", "reports.csv", "export/reports.csv"):
        (tmp_path / name).touch()
    (tmp_path / "pseudonym.key").write_bytes(bytes(range(32)))
    words = shlex.split(line)
    if words[0] in ("import", "simulate"):
        for name in ("oct", "raw", "chests"):
            (tmp_path / "data" / name).rmdir()
    assert prepare_dataset.parse_args(words).command == words[0]


def test_the_documents_name_every_kind_of_problem():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_A-Z0-9 -]+)`", text))
    sources = "".join(path.read_text() for path in (ROOT / "utils").glob("dataset*.py"))
    sources += (ROOT / "utils" / "image_files.py").read_text()
    kinds = set(re.findall(r'(?:Problem|ImageError)\(\s*[^,"]+,\s*"([^"]+)"', sources))
    assert len(kinds) > 10
    assert kinds - named == {"window", "not a PNG"}  # of a flag, and of no data set


@pytest.mark.parametrize("argv", [["--help"], *[[name, "--help"] for name in FLAGS], ["split"]])
def test_help_and_bad_flags_answer_at_once(argv):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "prepare_dataset.py", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU seconds, not the clock: other work on the machine must not fail the test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
    assert (done.returncode, "usage: prepare_dataset.py" in done.stdout + done.stderr) == (
        0 if "--help" in argv else 2,
        True,
    )


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "COMMAND"),
        ("import --output_dir out", "--source"),
        ("import --source /nowhere/x --output_dir out", "--source"),
        ("import --source in", "--output_dir"),
        ("import --source in --output_dir in", "--output_dir"),
        ("import --source in --output_dir o --caption {", "--caption"),
        ("import --source in --output_dir o --caption {a.b}", "--caption"),
        ("import --source in --output_dir o --window 0 9", "--window"),
        ("import --source in --output_dir o --image_format png --window 9 9", "--window"),
        ("import --source in --output_dir o --image_format png --link", "--link"),
        ("import --source in --output_dir o --patient_pattern [", "--patient_pattern"),
        ("import --source in --output_dir o --patient_pattern abc", "--patient_pattern"),
        ("split --data_dir in --val_share 0.5 --test_share 0.5", "--val_share"),
        ("split --data_dir in --val_share 2", "--val_share"),
        ("split --data_dir nowhere", "--data_dir"),
        ("validate --data_dir in --require diagnosis", "--require"),
        ("validate --data_dir in --output_dir in", "--output_dir"),
        ("stats --data_dir in --output_dir o --tokenizer none", "--tokenizer"),
        ("simulate --output_dir o --num_images 0", "--num_images"),
        ("simulate --output_dir o --num_images 2 --looks zeiss", "--looks"),
        ("simulate --output_dir o --num_images 2 --findings gout", "--findings"),
        ("simulate --output_dir o --num_images 2 --resolution 100", "--resolution"),
    ],
)
def test_a_bad_flag_ends_with_2_and_its_name(line, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    with pytest.raises(SystemExit) as stop:
        prepare_dataset.main(line.split())
    assert stop.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


# import


def test_class_folders_become_a_dataset_folder(tmp_path, capsys):
    source = class_folders(tmp_path / "in")
    template = "retinal OCT B-scan, {label}"
    out = tmp_path / "new" / "oct"
    run(
        *("import", "--source", source, "--output_dir", out, "--caption", template),
        *("--modality", "OCT", "--source_name", "clinic", r"--patient_pattern=-(\d+)-"),
    )
    rows = table_of(out)
    assert len(rows) == 8
    assert rows[0] == {
        "file_name": "DME/DME-0-0.png",
        "text": "retinal OCT B-scan, DME",
        "label": "DME",
        "patient_id": "0",
        "source": "clinic",
        "modality": "OCT",
    }
    for row in rows:
        copied, original = out / row["file_name"], source / row["file_name"]
        assert copied.read_bytes() == original.read_bytes()
        assert not copied.samefile(original)
    options = json.loads((out / "options.json").read_text())
    assert options["flags"]["caption"] == template
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["labels"]) == (8, ["DME", "NORMAL"])
    assert len(load_dataset(out, require_text=True, require_label=True)) == 8


def test_links_share_the_file(tmp_path):
    source = class_folders(tmp_path / "in")
    run("import", "--source", source, "--output_dir", tmp_path / "out", "--link")
    for row in table_of(tmp_path / "out"):
        assert (tmp_path / "out" / row["file_name"]).samefile(source / row["file_name"])


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        ("Text,ImagePath", []),
        ("path,Text,modality", []),
        ("Bild,Befund", ["--image_column", "Bild", "--caption_column", "Befund"]),
    ],
)
def test_a_csv_becomes_a_dataset_folder(header, flags, tmp_path):
    source = class_folders(tmp_path / "my scans")
    cells = {"Text": "a cyst, left", "Befund": "a cyst, left", "modality": "OCT"}
    with (tmp_path / "t.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header.split(","))
        for path in sorted(source.rglob("*.png")):
            # the first release wrote absolute paths
            name = path if header.startswith("Text") else path.relative_to(tmp_path)
            writer.writerow([cells.get(column, name) for column in header.split(",")])
    run("import", "--source", tmp_path / "t.csv", "--output_dir", tmp_path / "out", *flags)
    rows = table_of(tmp_path / "out")
    assert [row["text"] for row in rows] == ["a cyst, left"] * 8
    # of absolute paths what they do not share is kept
    top = "" if header.startswith("Text") else "my scans/"
    assert rows[0]["file_name"] == f"{top}DME/DME-0-0.png"
    assert len(load_dataset(tmp_path / "out", require_text=True)) == 8


def test_given_columns_are_kept_and_renamed_ones_take_their_place(tmp_path):
    source = class_folders(tmp_path / "in", labels=("DME",), each=1)
    header = "file_name,Dx,label_text,patient_id,split,source,licence\n"
    row = "DME/DME-0-0.png,edema,a cyst,p7,val,heidelberg,CC BY\n"
    (source / "metadata.csv").write_text(header + row)
    run(
        *("import", "--source", source, "--output_dir", tmp_path / "out"),
        *("--caption_column", "label_text", "--label_column", "Dx", "--source_name", "other"),
    )
    (row,) = table_of(tmp_path / "out")
    assert list(row.items()) == [
        ("file_name", "DME/DME-0-0.png"),
        ("text", "a cyst"),
        ("label", "edema"),
        ("patient_id", "p7"),
        ("split", "val"),
        ("source", "heidelberg"),
        ("licence", "CC BY"),
    ]


def test_a_caption_template_takes_any_column_and_joins_labels(tmp_path):
    source = class_folders(tmp_path / "in", labels=("DME",), each=1)
    (source / "metadata.csv").write_text(
        "file_name,label,Eye Side\nDME/DME-0-0.png,DME; DRUSEN,left\n"
    )
    template = "{{OCT}} of the {Eye Side} eye: {label}"
    run("import", "--source", source, "--output_dir", tmp_path / "out", "--caption", template)
    assert table_of(tmp_path / "out")[0]["text"] == "{OCT} of the left eye: DME, DRUSEN"


def test_a_template_with_an_empty_or_unknown_column_names_the_rows(tmp_path):
    source = class_folders(tmp_path / "in", labels=("DME",), each=2)
    (source / "metadata.csv").write_text("file_name,label\nDME/DME-0-0.png,DME\nDME/DME-0-1.png,\n")
    for template, said in (
        ("OCT, {label}", "empty in 1 rows: metadata.csv:3"),
        ("OCT, {side}", r"no row has \{side\} \(columns: file_name, label\)"),
    ):
        with pytest.raises(UserError, match=said):
            run("import", "--source", source, "--output_dir", tmp_path / "o", "--caption", template)
    assert not (tmp_path / "o").exists()


def test_a_patient_pattern_that_does_not_fit_names_the_files(tmp_path):
    source = class_folders(tmp_path / "in", each=1)
    with pytest.raises(UserError, match=r"fit 1 names: NORMAL/NORMAL-0-0\.png"):
        run(
            *("import", "--source", source, "--output_dir", tmp_path / "o"),
            *("--patient_pattern", "DME-([0-9])"),
        )


def test_sixteen_bit_images_become_png_by_the_window_asked_for(tmp_path):
    (tmp_path / "in").mkdir()
    deep = scan(0, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "in" / "a.tif")
    Image.fromarray(scan(1)).save(tmp_path / "in" / "a.png")
    Image.fromarray(scan(2)).convert("CMYK").save(tmp_path / "in" / "a.jpg")
    run(
        *("import", "--source", tmp_path / "in", "--output_dir", tmp_path / "out"),
        *("--image_format", "png", "--window", "0", "2040"),
    )
    names = [row["file_name"] for row in table_of(tmp_path / "out")]
    assert sorted(names) == ["a.png", "a_png.png", "a_tif.png"]
    read = {name: Image.open(tmp_path / "out" / name) for name in names}
    assert {image.mode for image in read.values()} == {"L", "RGB"}
    expected = np.rint(np.clip(deep / 2040, 0, 1) * 255)
    assert np.array_equal(np.asarray(read["a_tif.png"]), expected)
    assert np.array_equal(np.asarray(read["a_png.png"]), scan(1))


def test_shards_become_files(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(scan(0)).save(stream, "PNG")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in (("k/1.png", stream.getvalue()), ("k/1.txt", b"a cyst")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    run("import", "--source", tmp_path / "s.tar", "--output_dir", tmp_path / "out")
    (row,) = table_of(tmp_path / "out")
    assert row == {"file_name": "s/k/1.png", "text": "a cyst"}
    assert (tmp_path / "out" / "s" / "k" / "1.png").read_bytes() == stream.getvalue()


def test_a_bad_source_writes_nothing(tmp_path):
    source = class_folders(tmp_path / "in")
    (source / "DME" / "zero.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"zero\.png: empty file"):
        run("import", "--source", source, "--output_dir", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_skip_invalid_imports_the_rest_and_counts(tmp_path, capsys):
    source = class_folders(tmp_path / "in")
    (source / "DME" / "zero.png").write_bytes(b"")
    run("import", "--source", source, "--output_dir", tmp_path / "out", "--skip_invalid")
    assert json.loads(capsys.readouterr().out)["skipped"] == 1
    assert len(table_of(tmp_path / "out")) == 8
    assert not (tmp_path / "out" / "DME" / "zero.png").exists()
    options = json.loads((tmp_path / "out" / "options.json").read_text())
    assert "zero.png" in options["skipped_rows"][0]


def test_an_import_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    source = class_folders(tmp_path / "in")
    copied = []
    real = shutil.copyfile

    def full_disk(*names):
        if len(copied) == 3:
            raise OSError(28, "No space left on device")
        copied.append(real(*names))

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run("import", "--source", source, "--output_dir", tmp_path / "out")
    assert len(copied) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# split


def split_folder(tmp_path, *, num_patients=40):
    source = class_folders(tmp_path / "in", each=2 * num_patients)
    run(
        *("import", "--source", source, "--output_dir", tmp_path / "data"),
        *("--patient_pattern", r"([A-Z]+-\d+)-", "--link"),
    )
    return tmp_path / "data"


def test_split_writes_the_column_by_patient_and_label(tmp_path, capsys):
    folder = split_folder(tmp_path)
    before = table_of(folder)
    capsys.readouterr()
    run("split", "--data_dir", folder, "--val_share", "0.1", "--test_share", "0.2", "--seed", "3")
    rows = table_of(folder)
    assert [{**row, "split": None} for row in rows] == [{**row, "split": None} for row in before]
    splits_of = {}
    for row in rows:
        assert splits_of.setdefault(row["patient_id"], row["split"]) == row["split"]
    for label in ("DME", "NORMAL"):
        counts = Counter(row["split"] for row in rows if row["label"] == label)
        assert counts == {"train": 56, "val": 8, "test": 16}
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": 112, "val": 16, "test": 32}
    first = (folder / "metadata.csv").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        run("split", "--data_dir", folder)
    run("split", "--data_dir", folder, "--seed", "3", "--overwrite")
    assert (folder / "metadata.csv").read_bytes() == first


def test_split_repairs_a_patient_in_two_splits_when_asked(tmp_path):
    folder = class_folders(tmp_path / "in", labels=("DME",), each=4)
    names = sorted(f"DME/{path.name}" for path in (folder / "DME").iterdir())
    lines = [f"{name},p{number // 2},{number}" for number, name in enumerate(names)]
    (folder / "metadata.csv").write_text("file_name,patient_id,split\n" + "\n".join(lines) + "\n")
    run(
        *("split", "--data_dir", folder, "--overwrite"),
        *("--val_share", "0.5", "--test_share", "0"),
    )
    assert sorted(row["split"] for row in table_of(folder)) == ["train", "train", "val", "val"]


def test_split_gives_class_folders_a_table(tmp_path):
    folder = class_folders(tmp_path / "in", each=10)
    with pytest.raises(UserError, match="--by_image"):
        run("split", "--data_dir", folder)
    assert not (folder / "metadata.csv").exists()
    run("split", "--data_dir", folder, "--by_image")
    counts = Counter(row["split"] for row in table_of(folder))
    assert counts == {"train": 14, "val": 2, "test": 4}


def test_split_of_a_broken_table_changes_nothing(tmp_path):
    folder = class_folders(tmp_path / "in", each=1)
    (folder / "metadata.csv").write_text("file_name,patient_id\ngone.png,1\n")
    with pytest.raises(DatasetError, match="missing file"):
        run("split", "--data_dir", folder)
    assert (folder / "metadata.csv").read_text() == "file_name,patient_id\ngone.png,1\n"


# validate


def test_validate_lists_every_problem_and_exits_with_1(tmp_path, capsys):
    folder = class_folders(tmp_path / "in", labels=("DME",), each=2)
    (folder / "words.png").write_text("words")
    (folder / "metadata.csv").write_text(
        "file_name,text,split\nDME/DME-0-0.png,,train\nwords.png,a,dev\ngone.png,b,test\n"
    )
    run("validate", "--data_dir", folder, "--output_dir", tmp_path / "report", status=1)
    out, err = capsys.readouterr()
    expected = [
        ("metadata.csv:2", "empty text"),
        ("metadata.csv:3", "unknown split"),
        ("metadata.csv:3", "not an image"),
        ("metadata.csv:4", "missing file"),
    ]
    result = json.loads(out)
    assert [(problem["where"], problem["kind"]) for problem in result["problems"]] == expected
    assert not result["valid"]
    for where, kind in expected:
        assert f"{where}: {kind}: " in err
    with (tmp_path / "report" / "problems.csv").open() as handle:
        assert [(row["where"], row["kind"]) for row in csv.DictReader(handle)] == expected
    assert json.loads((tmp_path / "report" / "validation.json").read_text()) == result


def test_validate_exits_with_0_on_a_sound_set_and_requires_what_it_is_told(tmp_path, capsys):
    folder = class_folders(tmp_path / "in")
    run("validate", "--data_dir", folder)
    result = json.loads(capsys.readouterr().out)
    assert (result["valid"], result["rows"], result["pixels_checked"]) == (True, 8, 8)
    run("validate", "--data_dir", folder, "--require", "label", "split", "text", status=1)
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem["message"].split()[0] for problem in problems] == ["split", "text"]


def test_validate_can_leave_the_pixels_out(tmp_path, capsys):
    folder = class_folders(tmp_path / "in")
    (folder / "DME" / "words.png").write_text("words")
    run("validate", "--data_dir", folder, "--skip_pixels")
    assert json.loads(capsys.readouterr().out)["pixels_checked"] == 0


def test_the_script_reports_a_bad_set_without_a_traceback(tmp_path):
    (tmp_path / "in").mkdir()
    line = f"stats --data_dir {tmp_path}/in --output_dir {tmp_path}/out"
    done = subprocess.run(
        [sys.executable, "prepare_dataset.py", *line.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
    assert done.stderr.splitlines()[-2:] == [
        f"error: {tmp_path}/in: 1 problem",
        "  in: no rows: the table has no image",
    ]


# stats


def test_stats_counts_what_is_there(tmp_path, tiny_pipeline, capsys):
    folder = class_folders(tmp_path / "in", each=3)
    Image.fromarray(scan(9, dtype=np.uint16)).save(folder / "deep.tif")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.[pt][ni][gf]"))
    rows = [
        f"{name},{'cyst ' * 40 * (n == 0)}cyst,{name[:3]},p{n // 2}" for n, name in enumerate(names)
    ]
    (folder / "metadata.csv").write_text("file_name,text,label,patient_id\n" + "\n".join(rows))
    run(
        *("stats", "--data_dir", folder, "--output_dir", tmp_path / "out"),
        *("--tokenizer", tiny_pipeline / "tokenizer", "--sheet_columns", "2", "--tile_px", "64"),
    )
    result = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["rows"] == 7
    assert result["labels"] == {"DME": 3, "NOR": 3, "dee": 1}
    assert result["patients"]["count"] == 4
    assert result["patients"]["images_each"]["max"] == 2
    assert result["pixels"]["bit_depths"] == {"16": 1, "8": 6}
    assert result["pixels"]["width_px"] == {"min": 40, "median": 40, "p95": 40, "max": 40}
    assert result["tokens"]["limit"] == 77
    assert result["tokens"]["over_limit"] == 1
    assert result["tokens"]["over_limit_rows"] == ["metadata.csv:2"]
    assert "1 images are deeper than 8 bits" in result["notes"][0]
    sheet = Image.open(tmp_path / "out" / "contact_sheet.png")
    assert sheet.width == 2 * 66
    assert np.asarray(sheet)[:64].max() > 100


def test_stats_draws_a_sheet_without_labels(tmp_path, capsys):
    source = class_folders(tmp_path / "in" / "x", labels=("DME",), each=3)
    run("stats", "--data_dir", source / "DME", "--output_dir", tmp_path / "out")
    assert json.loads(capsys.readouterr().out)["labels"] == {"none": 3}
    assert (tmp_path / "out" / "contact_sheet.png").is_file()


def test_stats_of_a_folder_without_tokenizer_is_an_error(tmp_path):
    folder = class_folders(tmp_path / "in", each=1)
    with pytest.raises(UserError, match="holds no tokenizer"):
        run(
            *("stats", "--data_dir", folder, "--output_dir", tmp_path / "out"),
            *("--tokenizer", tmp_path / "in"),
        )
    assert not (tmp_path / "out" / "stats.json").exists()


# simulate


def test_simulate_writes_a_sound_dataset_folder(tmp_path, capsys):
    for name in ("a", "b"):
        run(
            *("simulate", "--output_dir", tmp_path / name, "--num_images", "4", "--seed", "5"),
            *("--resolution", "64", "--findings", "normal", "drusen", "--num_workers", "1"),
        )
    capsys.readouterr()
    run("validate", "--data_dir", tmp_path / "a", "--require", "text", "label", "patient_id")
    data = load_dataset(tmp_path / "a")
    assert data.labels == ["drusen", "normal"]
    assert data[0].image().size == (64, 64)
    first, second = (tmp_path / "a" / "metadata.csv", tmp_path / "b" / "metadata.csv")
    assert first.read_bytes() == second.read_bytes()
    images = [(tmp_path / name / data[0].file_name).read_bytes() for name in ("a", "b")]
    assert images[0] == images[1]


# The real thing


@pytest.mark.skipif(not REAL_OCT.is_dir(), reason=f"the real scans are not at {REAL_OCT}")
def test_real_scans_are_imported(tmp_path):
    run(
        *("import", "--source", REAL_OCT, "--caption_column", "label_text"),
        *("--output_dir", tmp_path / "oct", "--num_workers", "0"),
    )
    rows = table_of(tmp_path / "oct")
    assert len(rows) == 730
    assert list(rows[0])[:6] == ["file_name", "text", "label", "patient_id", "split", "source"]
    assert rows[0]["text"].startswith("retinal OCT B-scan, ")
    assert (tmp_path / "oct" / rows[0]["file_name"]).stat().st_size > 0
