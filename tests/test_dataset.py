"""The loader: every source, every problem at once with file and line; and what is written."""

import csv
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import dataset, dataset_pixels, workers
from utils.cli import UserError
from utils.dataset import DatasetError, load_dataset, write_dataset
from utils.dataset_split import assign_splits

ROOT = Path(__file__).parents[1]
REAL_OCT = Path(__file__).parents[2] / "shared" / "data" / "oct"
HEADER = "file_name,text,label,patient_id,split\n"


def png(seed=0, *, size=(24, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1]).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def folder_of(tmp_path, table, *, num_images=3):
    """A dataset folder with 0.png, 1.png, ... and this metadata.csv."""
    tmp_path.mkdir(exist_ok=True)
    for number in range(num_images):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    data = table if isinstance(table, bytes) else table.encode()
    (tmp_path / "metadata.csv").write_bytes(data)
    return tmp_path


def sound_folder(tmp_path):
    rows = "0.png,a cyst,DME,p1,train\n1.png,no finding,NORMAL,p2,val\n2.png,both,DME; DRUSEN,p3,\n"
    return folder_of(tmp_path, HEADER + rows)


def problems_of(source, **options):
    with pytest.raises(DatasetError) as caught:
        load_dataset(source, **options)
    return [(problem.where, problem.kind) for problem in caught.value.problems]


# Reading a dataset folder


def test_a_dataset_folder_is_read_as_written(tmp_path):
    data = load_dataset(sound_folder(tmp_path), require_text=True, require_label=True)
    assert len(data) == 3
    assert data.labels == ["DME", "DRUSEN", "NORMAL"]
    assert data.multi_label
    assert data.root == tmp_path
    first, _, last = data
    assert (first.file_name, first.text, first.labels) == ("0.png", "a cyst", ("DME",))
    assert (first.patient_id, first.split, first.where) == ("p1", "train", "metadata.csv:2")
    assert (last.labels, last.split) == (("DME", "DRUSEN"), None)
    assert first.path == tmp_path / "0.png"
    assert np.array_equal(np.asarray(first.image()), np.asarray(Image.open(io.BytesIO(png(0)))))


def test_a_split_is_taken_where_there_is_one(tmp_path):
    folder = sound_folder(tmp_path)
    assert [record.file_name for record in load_dataset(folder, split="val")] == ["1.png"]
    assert problems_of(folder, split="test") == [("metadata.csv", "no rows")]
    (folder / "metadata.csv").write_text("file_name\n0.png\n")
    assert len(load_dataset(folder, split="test")) == 1
    with pytest.raises(ValueError, match="'dev'"):
        load_dataset(folder, split="dev")


def test_columns_can_have_other_names(tmp_path):
    table = "scan,Finding,Dx,MRN,text\n0.png,a cyst,DME,7,old text\n"
    data = load_dataset(
        folder_of(tmp_path, table),
        image_column="scan",
        caption_column="Finding",
        label_column="Dx",
        patient_column="MRN",
    )
    assert data[0].row == {
        "file_name": "0.png",
        "text": "a cyst",
        "label": "DME",
        "patient_id": "7",
    }


def test_bom_quotes_newlines_blank_lines_and_spaces_are_understood(tmp_path):
    table = '﻿file_name,text\r\n"0.png","two\nlines, ""quoted"""\r\n\r\na b/1.png,Ödem\r\n'
    folder = folder_of(tmp_path, table)
    (folder / "a b").mkdir()
    (folder / "a b" / "1.png").write_bytes(png(9))
    data = load_dataset(folder)
    assert [record.text for record in data] == ['two\nlines, "quoted"', "Ödem"]
    assert [record.where for record in data] == ["metadata.csv:2", "metadata.csv:5"]
    assert data[1].image().size == (24, 16)


def test_metadata_jsonl_is_read(tmp_path):
    (tmp_path / "0.png").write_bytes(png())
    row = {"file_name": "0.png", "text": "a\u2028b", "label": ["DME", "DRUSEN"], "age": 70}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n")
    (record,) = load_dataset(tmp_path)
    assert (record.labels, record.row["age"], record.text) == (("DME", "DRUSEN"), "70", "a\u2028b")


def test_datasets_own_imagefolder_reads_the_same(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_dataset(folder_of(tmp_path / "d", ""), [{"file_name": "1.png", "text": "Ödem, links"}])
    (tmp_path / "d" / "0.png").unlink()
    (tmp_path / "d" / "2.png").unlink()
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "d"), split="train", cache_dir=str(tmp_path / "c")
    )
    (ours,) = load_dataset(tmp_path / "d")
    assert [row["text"] for row in theirs] == [ours.text]
    assert np.array_equal(np.asarray(theirs[0]["image"]), np.asarray(ours.image()))


# Problems of the table


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("text\na\n", [("metadata.csv:1", "missing column")]),
        ("", [("metadata.csv:1", "missing column")]),
        (HEADER, [("metadata.csv", "no rows")]),
        ("file_name,text,text\n0.png,a,b\n", [("metadata.csv:1", "repeated column")]),
        ("file_name,text\n0.png\n", [("metadata.csv:2", "broken row")]),
        ("file_name,text\n0.png,a,b\n", [("metadata.csv:2", "broken row")]),
        ('file_name,text\n0.png,a\n1.png,"b\n2.png,c\n', [("metadata.csv:3", "broken CSV")]),
        ("file_name,text\n,a\n", [("metadata.csv:2", "empty file name")]),
        ("file_name,text\n9.png,a\n", [("metadata.csv:2", "missing file")]),
        ("file_name,text\nsub/9.png,a\n", [("metadata.csv:2", "missing file")]),
        ("file_name,text\n0.PNG,a\n", [("metadata.csv:2", "missing file")]),
        ("file_name,text\n0.png,a\n0.png,b\n", [("metadata.csv:3", "duplicate row")]),
        ("file_name,text\n0.png,a\n./0.png,b\n", [("metadata.csv:3", "duplicate row")]),
        ("file_name,text\n../x/0.png,a\n", [("metadata.csv:2", "path outside the folder")]),
        ("file_name,text\n/etc/hosts,a\n", [("metadata.csv:2", "path outside the folder")]),
        ("file_name,text\nC:\\a\\0.png,a\n", [("metadata.csv:2", "path outside the folder")]),
        ("file_name,text\n0.png, \n", [("metadata.csv:2", "empty text")]),
        ("file_name,text,split\n0.png,a,dev\n", [("metadata.csv:2", "unknown split")]),
    ],
)
def test_a_tables_problem_is_found_with_its_line(table, found, tmp_path):
    assert problems_of(folder_of(tmp_path, table), require_text=True) == found


def test_a_missing_text_or_label_column_is_one_problem_only_where_it_is_needed(tmp_path):
    folder = folder_of(tmp_path, "file_name\n0.png\n1.png\n")
    assert len(load_dataset(folder)) == 2
    assert problems_of(folder, require_text=True, require_label=True) == [
        ("metadata.csv:1", "missing column"),
        ("metadata.csv:1", "missing column"),
    ]
    with pytest.raises(DatasetError, match="--caption_column"):
        load_dataset(folder, require_text=True)


def test_an_empty_label_is_a_problem_where_labels_are_needed(tmp_path):
    folder = folder_of(tmp_path, "file_name,label\n0.png, ; \n1.png,DME\n")
    assert problems_of(folder, require_label=True) == [("metadata.csv:2", "empty label")]
    assert len(load_dataset(folder)) == 2


def test_not_utf8_names_line_and_byte(tmp_path):
    table = HEADER.encode() + b"0.png,a,,,\n1.png,\xd6dem,,,\n"
    with pytest.raises(DatasetError, match=r"metadata.csv:3: not UTF-8: byte 0xd6 at position 7"):
        load_dataset(folder_of(tmp_path, table))


def test_a_patient_in_two_splits_is_named_with_both_lines(tmp_path):
    table = HEADER + "0.png,a,,p1,train\n1.png,b,,p2,test\n2.png,c,,p1,test\n"
    with pytest.raises(
        DatasetError, match=r":4: .*patient p1 is in test here and in train at .*:2"
    ):
        load_dataset(folder_of(tmp_path, table))


def test_a_folder_as_file_and_links_that_lead_out_are_found(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.png").write_bytes(png(7))
    names = "dir.png\nout.png\nlinked/x.png\nin.png\ngone.png\n"
    folder = folder_of(tmp_path / "d", "file_name\n" + names)
    (folder / "dir.png").mkdir()
    (folder / "out.png").symlink_to(tmp_path / "outside" / "x.png")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "in.png").symlink_to(folder / "0.png")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    assert problems_of(folder) == [
        ("metadata.csv:2", "folder"),
        ("metadata.csv:3", "path outside the folder"),
        ("metadata.csv:4", "path outside the folder"),
        ("metadata.csv:6", "missing file"),
    ]


def test_a_folder_reached_by_a_link_is_sound(tmp_path):
    sound_folder(tmp_path / "d")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    assert len(load_dataset(tmp_path / "link")) == 3


def test_two_tables_in_one_folder_are_refused(tmp_path):
    folder = sound_folder(tmp_path)
    (folder / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match="keep one"):
        load_dataset(folder)


# Problems of the pixels


def bomb():
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg():
    stream = io.BytesIO()
    Image.open(io.BytesIO(png(5))).save(stream, "JPEG")
    return stream.getvalue()


def test_every_problem_of_a_bad_folder_is_reported_at_once(tmp_path):
    broken = {
        "cut.jpg": jpeg()[:-80],
        "words.png": b"words",
        "zero.png": b"",
        "dot.png": png(6, size=(1, 1)),
        "bomb.png": bomb(),
        "twin.png": png(0),
    }
    rows = ["0.png,a,,p1,train", "1.png,,,p1,val", *(f"{name},a,,," for name in broken)]
    rows[2] = "cut.jpg,,,,"
    folder = folder_of(tmp_path, HEADER + "\n".join([*rows, "gone.png,a,,,dev"]) + "\n")
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    expected = [
        ("metadata.csv:3", "empty text"),
        ("metadata.csv:3", "patient in two splits"),
        ("metadata.csv:4", "empty text"),
        ("metadata.csv:4", "corrupt image"),
        ("metadata.csv:5", "not an image"),
        ("metadata.csv:6", "empty file"),
        ("metadata.csv:7", "too small"),
        ("metadata.csv:8", "decompression bomb"),
        ("metadata.csv:9", "duplicate pixels"),
        ("metadata.csv:10", "missing file"),
        ("metadata.csv:10", "unknown split"),
    ]
    assert problems_of(folder, require_text=True) == expected
    with pytest.raises(DatasetError) as caught:
        load_dataset(folder, require_text=True)
    for where, kind in expected:
        assert f"{where}: {kind}: " in str(caught.value)
    assert "--skip_invalid" in str(caught.value)


def test_skip_invalid_drops_what_is_wrong_and_counts_it(tmp_path, capsys):
    table = HEADER + "0.png,a,,,\n1.png,,,,\n9.png,,,,\n2.png\n2.png,c,,,\n"
    data = load_dataset(folder_of(tmp_path, table), require_text=True, skip_invalid=True)
    assert [record.file_name for record in data] == ["0.png", "2.png"]
    assert [problem.where for problem in data.skipped] == [
        "metadata.csv:5",
        "metadata.csv:3",
        "metadata.csv:4",
    ]
    assert "3 rows dropped" in capsys.readouterr().err


def test_skip_invalid_cannot_cure_a_table_or_leave_nothing(tmp_path):
    folder = folder_of(tmp_path, "file_name\n0.png\n")
    assert problems_of(folder, require_text=True, skip_invalid=True) == [
        ("metadata.csv:1", "missing column")
    ]
    (folder / "metadata.csv").write_text("file_name\n9.png\n")
    assert problems_of(folder, skip_invalid=True) == [
        ("metadata.csv:2", "missing file"),
        ("metadata.csv", "no rows"),
    ]


def test_duplicate_pixels_say_where_the_first_is_and_whether_the_splits_differ(tmp_path):
    folder = folder_of(tmp_path, HEADER + "0.png,a,,p1,train\n1.png,b,,p2,test\n")
    Image.open(folder / "0.png").convert("RGB").save(folder / "1.png")
    with pytest.raises(DatasetError) as caught:
        load_dataset(folder)
    (problem,) = caught.value.problems
    assert (problem.where, problem.kind) == ("metadata.csv:3", "duplicate pixels")
    assert "0.png at metadata.csv:2, which is in split train, this in test" in problem.message


def test_the_pixel_check_can_be_left_out(tmp_path):
    folder = folder_of(tmp_path, "file_name\n0.png\n")
    (folder / "0.png").write_bytes(b"words")
    (record,) = load_dataset(folder, check_pixels=False)
    with pytest.raises(ValueError, match=r"0\.png: not an image"):
        record.image()


def test_sixteen_bits_are_no_problem_but_noted_with_their_window(tmp_path):
    folder = folder_of(tmp_path, "file_name\n0.png\n1.tif\n")
    deep = np.arange(300, 300 + 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(folder / "0.png")
    Image.fromarray(deep[::-1]).save(folder / "1.tif")
    data = load_dataset(folder)
    (note,) = data.notes
    assert "2 images are deeper than 8 bits" in note
    assert "0.png 300..555" in note
    assert np.array_equal(np.asarray(data[0].image()), np.arange(256).reshape(16, 16))


def test_processes_find_what_one_process_finds(tmp_path, monkeypatch):
    table = "file_name\n" + "".join(f"{number}.png\n" for number in range(40))
    folder = folder_of(tmp_path, table, num_images=40)
    (folder / "7.png").write_bytes(b"words")
    (folder / "33.png").write_bytes(png(3))
    alone = problems_of(folder, num_workers=0)
    monkeypatch.setattr(workers, "MIN_ITEMS_FOR_PROCESSES", 1)
    assert problems_of(folder, num_workers=2) == alone
    assert alone == [
        ("metadata.csv:9", "not an image"),
        ("metadata.csv:35", "duplicate pixels"),
    ]


def test_an_error_lists_fifty_and_counts_the_rest(tmp_path):
    table = "file_name\n" + "".join(f"gone{number}.png\n" for number in range(70))
    with pytest.raises(DatasetError) as caught:
        load_dataset(folder_of(tmp_path, table))
    text = str(caught.value)
    assert len(caught.value.problems) == 70
    assert "metadata.csv:51: missing file" in text
    assert "metadata.csv:52:" not in text
    assert "and 20 more" in text
    assert "70  missing file" in text


# Other sources


def test_class_folders_give_labels_in_a_fixed_order(tmp_path):
    for name in ("NORMAL/b.png", "DME/z.PNG", "DME/sub/a.png", "DME/.hidden.png", "DME/Thumbs.db"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))
    data = load_dataset(tmp_path, require_label=True)
    assert [(record.file_name, record.labels) for record in data] == [
        ("DME/sub/a.png", ("DME",)),
        ("DME/z.PNG", ("DME",)),
        ("NORMAL/b.png", ("NORMAL",)),
    ]
    assert "DME/Thumbs.db" in data.notes[0]
    assert [kind for _, kind in problems_of(tmp_path, require_text=True)] == ["missing column"]


def test_class_folders_below_splits_give_both(tmp_path):
    for number, name in enumerate(("train/DME/a.png", "validation/DME/b.png", "test/CNV/c.png")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(png(number))
    data = load_dataset(tmp_path)
    assert {(record.split, record.labels[0]) for record in data} == {
        ("train", "DME"),
        ("val", "DME"),
        ("test", "CNV"),
    }


def test_a_flat_folder_has_no_labels_and_an_empty_one_no_rows(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (record,) = load_dataset(tmp_path)
    assert (record.labels, record.text) == ((), "")
    (tmp_path / "empty").mkdir()
    assert problems_of(tmp_path / "empty") == [("empty", "no rows")]


def test_a_table_further_down_is_not_passed_over(tmp_path):
    sound_folder(tmp_path / "train")
    with pytest.raises(UserError, match=r"but train/metadata\.csv; give that folder"):
        load_dataset(tmp_path)


def test_links_in_a_circle_do_not_hang_the_walk(tmp_path):
    (tmp_path / "DME").mkdir()
    (tmp_path / "DME" / "a.png").write_bytes(png())
    (tmp_path / "DME" / "again").symlink_to(tmp_path)
    assert len(load_dataset(tmp_path)) == 1


@pytest.mark.parametrize(
    "header", ["Text,ImagePath", "path,Text,modality", "file_name,text", "image,text"]
)
def test_a_csv_of_an_older_project_is_read(header, tmp_path):
    (tmp_path / "my images").mkdir()
    (tmp_path / "my images" / "a 1.png").write_bytes(png())
    cells = {"Text": "a cyst", "text": "a cyst", "modality": "OCT"}
    row = ",".join(cells.get(name, "my images/a 1.png") for name in header.split(","))
    (tmp_path / "table.csv").write_text(f"{header}\n{row}\n")
    (record,) = load_dataset(tmp_path / "table.csv", require_text=True)
    assert (record.text, record.file_name) == ("a cyst", "my images/a 1.png")
    assert record.row.get("modality", "OCT") == "OCT"
    assert record.image().size == (24, 16)


def test_only_a_csv_of_the_users_own_may_name_absolute_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "t").mkdir()
    for name in ("own.csv", "metadata.csv"):
        (tmp_path / "t" / name).write_text(f"file_name,text\n{tmp_path}/a.png,x\n")
    assert load_dataset(tmp_path / "t" / "own.csv")[0].path == tmp_path / "a.png"
    expected = [("metadata.csv:2", "path outside the folder")]
    assert problems_of(tmp_path / "t" / "metadata.csv") == expected
    assert problems_of(tmp_path / "t") == expected


@pytest.mark.parametrize("name", ["nowhere/at/all", "../nothing", "README.md"])
def test_a_source_that_is_not_there_is_a_users_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(UserError, match=name):
        load_dataset(name)


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_shards_are_read_by_key_without_keeping_pixels(tmp_path):
    row = json.dumps({"label": ["DME", "DRUSEN"], "patient_id": 7, "split": "train"}).encode()
    for number in range(3):
        samples = [
            (f"a/{number}0.png", png(number)),
            (f"a/{number}0.txt", "Ödem".encode()),
            (f"a/{number}0.json", row),
            (f"a/{number}1.png", png(10 + number)),
            (f"a/{number}1.cls", b"NORMAL\n"),
        ]
        shard(tmp_path / f"s-{number:03d}.tar", samples)
    for source in (tmp_path, f"{tmp_path}/s-*.tar", f"{tmp_path}/s-{{000..002}}.tar"):
        data = load_dataset(source)
        assert len(data) == 6
        assert (data[0].text, data[0].labels, data[0].patient_id) == (
            "Ödem",
            ("DME", "DRUSEN"),
            "7",
        )
        assert (data[5].file_name, data[5].labels) == ("s-002/a/21.png", ("NORMAL",))
        assert data[5].where == "s-002.tar:a/21"
        assert data[5].path is None
        expected = np.asarray(Image.open(io.BytesIO(png(12))))
        assert np.array_equal(np.asarray(data[5].image()), expected)
    assert len(load_dataset(tmp_path / "s-001.tar")) == 2


def test_a_missing_shard_of_a_range_is_an_error(tmp_path):
    shard(tmp_path / "s-0.tar", [("0.png", png())])
    with pytest.raises(UserError, match=r"s-1\.tar, .*s-2\.tar"):
        load_dataset(f"{tmp_path}/s-{{0..2}}.tar")
    with pytest.raises(UserError, match="no such shard"):
        load_dataset(f"{tmp_path}/t-*.tar")


def test_broken_shards_are_problems(tmp_path):
    whole = shard(tmp_path / "a.tar", [("0.png", png()), ("1.png", png(1))])
    whole.write_bytes(whole.read_bytes()[:1600])
    assert [kind for _, kind in problems_of(whole)] == ["broken tar"]
    packed = tmp_path / "b.tar"
    with tarfile.open(packed, "w:gz"):
        pass
    assert [kind for _, kind in problems_of(packed)] == ["broken tar"]
    odd = shard(
        tmp_path / "c.tar",
        [
            ("0.txt", b"alone"),
            ("1.png", png(1)),
            ("1.jpg", png(2)),
            ("2.png", png(3)),
            ("2.json", b"[1]"),
            ("3.png", b"words"),
            ("4.png", png(4)),
            ("4.txt", b"\xff"),
        ],
    )
    assert problems_of(odd) == [
        ("c.tar:0", "broken row"),
        ("c.tar:1", "broken row"),
        ("c.tar:2", "broken row"),
        ("c.tar:3", "not an image"),
        ("c.tar:4.txt:1", "broken row"),
    ]


def test_a_table_of_the_datasets_library_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"scan": [png(0), png(1)], "text": ["a", "b"], "label": [1, 0]}
    table = (
        datasets.Dataset.from_dict(columns)
        .cast_column("scan", datasets.Image())
        .cast_column("label", datasets.ClassLabel(names=["NORMAL", "DME"]))
    )
    other = table.map(lambda row: {"text": row["text"] + "!"}).select([1])
    parts = datasets.DatasetDict(train=table.select([0]), validation=other)
    parts.save_to_disk(str(tmp_path / "saved"))
    data = load_dataset(tmp_path / "saved", require_text=True)
    assert [(r.file_name, r.text, r.labels, r.split) for r in data] == [
        ("train/000000", "a", ("DME",), "train"),
        ("validation/000000", "b!", ("NORMAL",), "val"),
    ]
    assert np.array_equal(np.asarray(data[1].image()), np.asarray(Image.open(io.BytesIO(png(1)))))
    assert problems_of(tmp_path / "saved", image_column="picture")[0][1] == "missing column"


def test_a_hub_name_offline_ends_at_once_with_both_readings(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no_one/nothing: no such file or folder; .*--offline"):
        load_dataset("no_one/nothing", offline=True)


# Writing


def test_what_was_written_reads_back_equal(tmp_path):
    rng = np.random.default_rng(0)
    alphabet = [*"abc ,;\"'\n\r\t\\é中", "\r\n", '""']
    folder = folder_of(tmp_path, "", num_images=20)
    rows = [
        {
            "zeta": "".join(rng.choice(alphabet, size=5)),
            "file_name": f"{number}.png",
            "text": "".join(rng.choice(alphabet, size=rng.integers(0, 30))),
            "label": ["DME", "DRUSEN"][: rng.integers(0, 3)],
            "patient_id": None,
            "split": "train",
        }
        for number in range(20)
    ]
    write_dataset(folder, rows)
    data = load_dataset(folder)
    for row, record in zip(rows, data, strict=True):
        assert record.row["text"] == row["text"]
        assert record.row["zeta"] == row["zeta"]
        assert record.labels == tuple(row["label"])
        assert record.patient_id is None


def test_columns_are_written_in_the_contracts_order(tmp_path):
    rows = [{"seed": 1, "modality": "OCT", "label": "a"}, {"text": "b", "score": 0.5}]
    rows = [{**row, "file_name": f"{number}.png"} for number, row in enumerate(rows)]
    path = write_dataset(tmp_path, rows, fieldnames=["split"])
    with path.open(encoding="utf-8", newline="") as handle:
        header = next(csv.reader(handle))
    assert header == ["file_name", "text", "label", "split", "modality", "seed", "score"]


@pytest.mark.parametrize("name", ["", "/etc/hosts", "../a.png", None])
def test_a_name_outside_the_folder_is_not_written(name, tmp_path):
    with pytest.raises(UserError, match="row 2"):
        write_dataset(tmp_path, [{"file_name": "a.png"}, {"file_name": name}])
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_follows_the_table(tmp_path):
    folder = sound_folder(tmp_path)
    first = load_dataset(folder).fingerprint
    assert load_dataset(folder).fingerprint == first
    assert load_dataset(folder).select([1, 0, 2]).fingerprint != first
    table = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(table.replace("a cyst", "two cysts"))
    assert load_dataset(folder).fingerprint != first


def test_select_takes_records_in_the_order_asked(tmp_path):
    data = load_dataset(sound_folder(tmp_path))
    assert [record.file_name for record in data.select([2, 0])] == ["2.png", "0.png"]


# Splitting


def cohort(*, num_patients=300, seed=0):
    """Records of patients with one to four images of one of three labels, 70 : 25 : 5."""
    rng = np.random.default_rng(seed)
    records = []
    for patient in range(num_patients):
        label = rng.choice(["NORMAL", "DME", "RAO"], p=[0.7, 0.25, 0.05])
        for image in range(rng.integers(1, 5)):
            row = {
                "file_name": f"{patient}_{image}.png",
                "label": label,
                "patient_id": str(patient),
            }
            records.append(
                dataset.Record(row["file_name"], "", (label,), str(patient), None, row, "", "")
            )
    return records


def test_a_split_is_by_patient_and_shares_every_label_out():
    records = cohort()
    splits = assign_splits(records, val_share=0.1, test_share=0.2, seed=0, by_image=False)
    of_patient = {}
    for record, split in zip(records, splits):
        assert of_patient.setdefault(record.patient_id, split) == split
    for label in ("NORMAL", "DME", "RAO"):
        counts = Counter(s for r, s in zip(records, splits) if label in r.labels)
        total = sum(counts.values())
        for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            assert abs(counts[split] - share * total) <= 4  # one patient's images


def test_a_rare_finding_beside_a_common_one_is_shared_out_too():
    records = []
    for patient in range(200):
        labels = ("COMMON", "RARE") if patient < 20 else ("COMMON",)
        records.append(dataset.Record(f"{patient}.png", "", labels, str(patient), None, {}, "", ""))
    splits = assign_splits(records, val_share=0.1, test_share=0.2, seed=0, by_image=False)
    assert Counter(splits) == {"train": 140, "val": 20, "test": 40}
    assert Counter(splits[:20]) == {"train": 14, "val": 2, "test": 4}


def test_a_split_depends_on_the_seed_not_on_the_order_of_rows():
    records = cohort(num_patients=60)
    shares = {"val_share": 0.2, "test_share": 0.2, "by_image": False}
    first = dict(zip((r.file_name for r in records), assign_splits(records, seed=1, **shares)))
    turned = records[::-1]
    again = dict(zip((r.file_name for r in turned), assign_splits(turned, seed=1, **shares)))
    other = dict(zip((r.file_name for r in records), assign_splits(records, seed=2, **shares)))
    assert first == again
    assert first != other


def test_a_split_without_patients_must_be_asked_for(tmp_path):
    folder = folder_of(tmp_path, "file_name\n0.png\n1.png\n2.png\n")
    records = load_dataset(folder).records
    with pytest.raises(UserError, match=r"3 of 3 rows have no patient_id, first: metadata.csv:2"):
        assign_splits(records, val_share=0.3, test_share=0.3, seed=0, by_image=False)
    splits = assign_splits(records, val_share=0.34, test_share=0.33, seed=0, by_image=True)
    assert sorted(splits) == ["test", "train", "val"]


def test_too_few_patients_for_a_split_are_an_error(tmp_path):
    folder = folder_of(tmp_path, "file_name,patient_id\n0.png,a\n1.png,a\n2.png,b\n")
    with pytest.raises(UserError, match="2 patients are too few"):
        assign_splits(
            load_dataset(folder).records, val_share=0.2, test_share=0.2, seed=0, by_image=False
        )


# Scale and the real thing


def test_a_table_of_many_rows_is_checked_without_asking_for_each_file(tmp_path, monkeypatch):
    num_rows = 3000
    (tmp_path / "images").mkdir()
    for number in range(num_rows):
        (tmp_path / "images" / f"{number}.png").touch()
    rows = [{"file_name": f"images/{number}.png", "text": "x" * 50} for number in range(num_rows)]
    write_dataset(tmp_path, rows)
    calls = Counter()
    for name in ("stat", "lstat", "scandir"):
        real = getattr(os, name)

        def counted(*args, _name=name, _real=real, **kwargs):
            calls[_name] += 1
            return _real(*args, **kwargs)

        monkeypatch.setattr(os, name, counted)
    tracemalloc.start()
    data = load_dataset(tmp_path, check_pixels=False, require_text=True)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) == num_rows
    assert calls["scandir"] <= 3
    assert sum(calls.values()) < 100
    assert kept / num_rows < 2000  # bytes a record


def test_ctrl_c_ends_a_parallel_check_and_leaves_no_worker(tmp_path):
    table = "file_name\n" + "".join(f"{number}.png\n" for number in range(40))
    folder_of(tmp_path, table, num_images=40)
    code = (
        "import os, signal, sys, threading\n"
        "from utils import workers\n"
        "from utils.cli import main_guard\n"
        "from utils.dataset import load_dataset\n"
        "workers.MIN_ITEMS_FOR_PROCESSES = 1\n"
        "def main():\n"
        "    def progress(results, **rest):\n"
        "        next(results)  # the worker has started\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "        yield from results\n"
        "    workers.tqdm = progress\n"
        "    load_dataset(sys.argv[1], num_workers=1)\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job with & ignores it\n"
        "    main_guard(main)\n"
    )
    (tmp_path / "run.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "interrupted\n"


@pytest.mark.skipif(not REAL_OCT.is_dir(), reason=f"the real scans are not at {REAL_OCT}")
def test_the_real_scans_are_sound():
    data = load_dataset(
        REAL_OCT, caption_column="label_text", require_text=True, require_label=True, num_workers=0
    )
    assert len(data) == 730
    assert len(data.labels) == 9
    assert Counter(record.split for record in data) == {"train": 594, "val": 75, "test": 61}


def test_a_second_check_decodes_only_what_changed_and_finds_the_same(tmp_path, monkeypatch):
    folder = sound_folder(tmp_path / "d")
    names = sorted(folder.glob("*.png"))
    memory = tmp_path / "memory"
    monkeypatch.setattr("utils.pixel_digests.SETTLED_NS", -(10**18))  # no wait for the clock
    first = load_dataset(folder, digest_dir=memory, num_workers=0)
    decoded = []
    original = dataset_pixels.report_pixels
    monkeypatch.setattr(
        dataset_pixels, "report_pixels", lambda source: decoded.append(source) or original(source)
    )
    again = load_dataset(folder, digest_dir=memory, num_workers=0)
    assert decoded == [] and list(again) == list(first)
    names[0].write_bytes(names[0].read_bytes()[:-40])
    with pytest.raises(DatasetError, match="corrupt image"):
        load_dataset(folder, digest_dir=memory, num_workers=0)
    assert decoded == [str(names[0])]
    names[0].write_bytes(names[1].read_bytes())
    with pytest.raises(DatasetError, match="duplicate pixels"):
        load_dataset(folder, digest_dir=memory, num_workers=0)
