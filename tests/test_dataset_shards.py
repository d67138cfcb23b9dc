"""Shards: the index on disk, records built when asked for, and images read from open tars."""

import contextlib
import io
import json
import os
import pickle
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import workers
from utils.captioned_data import load_captioned
from utils.cli import UserError
from utils.dataset import DatasetError, examine_dataset, load_dataset
from utils.dataset_pixels import repeats
from utils.dataset_records import MAX_OPEN_TARS, Columns, Record
from utils.lazy_records import texts

FINDINGS = ("normal", "drusen", "macular edema")
SPLITS = ("train", "train", "val")


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(number, *, image=None):
    """Members of one sample; every third has no patient, every fifth a column of its own."""
    row = {"label": FINDINGS[number % 3], "split": SPLITS[number % 3]}
    row |= {"patient_id": number % 3} if number % 3 else {}
    row |= {"age": 40 + number} if number % 5 == 0 else {}
    return [
        (f"{number:04d}.png", image or png(number)),
        (f"{number:04d}.txt", f" scan {number}\n".encode()),
        (f"{number:04d}.json", json.dumps(row).encode()),
    ]


def write_shards(folder, sizes=(4, 0, 3, 5)):
    first = 0
    for shard, size in enumerate(sizes):
        numbers = range(first, first + size)
        write_tar(folder / f"{shard:03d}.tar", [m for n in numbers for m in sample(n)])
        first += size
    return folder


def indexes_of(folder):
    return sorted((folder / ".index").iterdir())


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def no_scan(monkeypatch):
    """Call it, and no tar can be scanned any more."""

    def forbid():
        def scan(*args):
            raise AssertionError("a tar was scanned")

        monkeypatch.setattr(tarfile, "open", scan)

    return forbid


# Records


def test_a_record_is_the_same_however_it_is_reached(tmp_path):
    data = load_dataset(write_shards(tmp_path))
    one_by_one = [data[index] for index in range(12)]
    assert one_by_one == list(data) == list(data.records[:]) == list(data.select(range(12)))
    assert one_by_one[2:9:3] == list(data.records[2:9:3])
    assert data[-1] == data[np.int64(11)] == one_by_one[11]
    assert [record.text for record in data] == [f"scan {number}" for number in range(12)]
    assert list(texts(data.records)) == [record.text for record in data]
    assert all(isinstance(record, Record) for record in data)
    for index in (12, -13):
        with pytest.raises(IndexError):
            data[index]


def test_a_row_has_the_columns_of_its_sample_only(tmp_path):
    data = load_dataset(write_shards(tmp_path))
    assert data[5].row == {
        "file_name": "002/0005.png",
        "text": " scan 5\n",
        "label": "macular edema",
        "split": "val",
        "patient_id": "2",
        "age": "45",
    }
    assert "patient_id" not in data[6].row
    assert "age" not in data[6].row
    assert data[6].patient_id is None


def test_shards_are_consumed_like_the_same_data_in_a_folder(tmp_path):
    data = load_dataset(write_shards(tmp_path / "shards"))
    rows = [{**record.row, "file_name": f"{n}.png"} for n, record in enumerate(data)]
    (tmp_path / "folder").mkdir()
    for number, record in enumerate(data):
        (tmp_path / "folder" / f"{number}.png").write_bytes(record.source.open().read())
    (tmp_path / "folder" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = load_dataset(tmp_path / "folder")

    def told(data):
        return [
            (r.text, r.labels, r.patient_id, r.split, np.asarray(r.image()).sum()) for r in data
        ]

    assert told(data) == told(plain)
    assert (data.labels, data.multi_label) == (plain.labels, plain.multi_label)
    assert told(data.select([7, 0, 11, 7])) == told(plain.select([7, 0, 11, 7]))
    again = data.select(range(1, 12, 2)).select([4, 0])
    assert told(again) == told([plain[9], plain[1]])
    for split in ("train", "val"):
        both = [load_dataset(tmp_path / name, split=split) for name in ("shards", "folder")]
        assert told(both[0]) == told(both[1])


def test_captions_can_be_made_of_labels(tmp_path):
    data = load_captioned(
        write_shards(tmp_path),
        columns=Columns(),
        split="val",
        template="OCT, {label}, {split}",
        check_pixels=True,
        skip_invalid=False,
        offline=True,
    )
    assert {record.text for record in data} == {"OCT, macular edema, val"}
    assert len(data) == 4
    with pytest.raises(UserError, match=r"\{age\} is empty in 3 rows: .*000\.tar:0002"):
        load_captioned(
            tmp_path,
            columns=Columns(),
            split="val",
            template="{age} years",
            check_pixels=False,
            skip_invalid=False,
            offline=True,
        )


def test_a_captions_blanks_and_a_split_of_nothing_are_problems(tmp_path):
    write_tar(tmp_path / "a.tar", [*sample(0), ("0001.png", png(1)), ("0001.txt", b" \n")])
    with pytest.raises(DatasetError) as caught:
        load_dataset(tmp_path, require_text=True)
    assert [(p.where, p.kind) for p in caught.value.problems] == [("a.tar:0001", "empty text")]
    with pytest.raises(DatasetError, match="none in split test"):
        load_dataset(tmp_path, split="test")


def test_rows_with_problems_are_dropped_if_asked_for(tmp_path):
    write_shards(tmp_path, sizes=(4,))
    write_tar(
        tmp_path / "001.tar",
        [
            *sample(20, image=b"words"),
            *sample(21),
            *sample(23, image=png(1)),  # the pixels of sample 1, in another shard
            *sample(21),
            ("../0024.png", png(24)),
        ],
    )
    with pytest.raises(DatasetError) as caught:
        load_dataset(tmp_path)
    assert [(problem.where, problem.kind) for problem in caught.value.problems] == [
        ("001.tar:0020", "not an image"),
        ("001.tar:0023", "duplicate pixels"),
        ("001.tar:0021", "duplicate row"),
        ("001.tar:../0024", "path outside the folder"),
    ]
    assert "000.tar:0001, which is in split train" in str(caught.value)
    data = load_dataset(tmp_path, skip_invalid=True)
    assert [record.where for record in data][-2:] == ["000.tar:0003", "001.tar:0021"]
    assert len(data.skipped) == 4


def test_shards_of_one_name_in_two_folders_are_told_apart(tmp_path):
    write_tar(tmp_path / "a" / "s.tar", [*sample(0), *sample(1)])
    write_tar(tmp_path / "b" / "s.tar", [*sample(1, image=png(7))])
    with pytest.raises(DatasetError) as caught:
        load_dataset(f"{tmp_path}/*/s.tar")
    assert [problem.kind for problem in caught.value.problems] == ["duplicate row"]


def test_the_fingerprint_tells_rows_and_selection(tmp_path):
    data = load_dataset(write_shards(tmp_path))
    again = load_dataset(tmp_path)
    assert data.fingerprint == again.fingerprint
    parts = [data.select([0, 1]), data.select([1, 0]), data.select([0])]
    assert len({data.fingerprint, *(part.fingerprint for part in parts)}) == 4
    assert data.select(range(12)).fingerprint == data.fingerprint
    write_tar(tmp_path / "000.tar", [m for n in (0, 1, 2, 99) for m in sample(n)])
    assert load_dataset(tmp_path).fingerprint != data.fingerprint


def test_blocks_are_the_runs_within_a_shard(tmp_path):
    data = load_dataset(write_shards(tmp_path))
    assert data.blocks == (4, 3, 5)
    assert data.select([0, 1, 3, 6, 5, 7, 2]).blocks == (3, 2, 1, 1)
    assert load_dataset(tmp_path, split="train").blocks == (3, 2, 3)


def test_memory_does_not_grow_with_the_records(tmp_path):
    num_rows = 20_000
    members = [
        member
        for number in range(num_rows)
        for member in ((f"{number}.png", b"x"), (f"{number}.txt", b"x" * 50))
    ]
    write_tar(tmp_path / "s.tar", members)
    load_dataset(tmp_path, check_pixels=False)
    tracemalloc.start()
    data = load_dataset(tmp_path, check_pixels=False, require_text=True)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) == num_rows
    assert kept / num_rows < 20  # bytes a record; as objects they take some 700
    assert len(pickle.dumps(data)) < 10_000


def test_the_pixel_check_keeps_no_reports_unless_asked_to(tmp_path):
    write_shards(tmp_path)
    assert examine_dataset(tmp_path, keep_pixels=False).pixels == {}
    assert sorted(examine_dataset(tmp_path).pixels) == list(range(12))


# The index


def test_a_second_start_reads_the_index_alone(tmp_path, no_scan):
    data = load_dataset(write_shards(tmp_path))
    before = list(data)
    assert data.notes == ()
    assert len(indexes_of(tmp_path)) == 4
    no_scan()
    for source in (tmp_path, f"{tmp_path}/*.tar", f"{tmp_path}/{{000..003}}.tar"):
        assert list(load_dataset(source)) == before


def test_problems_are_kept_in_the_index(tmp_path, no_scan):
    write_tar(tmp_path / "a.tar", [*sample(0), ("0001.txt", b"alone"), ("0002.png", png(2))])
    tar = write_tar(tmp_path / "b.tar", sample(3))
    tar.write_bytes(tar.read_bytes()[:1300])
    found = []
    for _ in range(2):
        with pytest.raises(DatasetError) as caught:
            load_dataset(tmp_path)
        found.append(caught.value.problems)
        no_scan()
    assert found[0] == found[1]
    assert [problem.kind for problem in found[0]] == ["broken row", "broken tar"]


def test_only_a_changed_shard_is_scanned_anew(tmp_path):
    load_dataset(write_shards(tmp_path))
    made = {path: path.stat().st_mtime_ns for path in indexes_of(tmp_path)}
    write_tar(tmp_path / "002.tar", [*sample(50), *sample(51)])
    data = load_dataset(tmp_path)
    assert [record.text for record in data][4:6] == ["scan 50", "scan 51"]
    assert len(data) == 11
    changed = [path.name[:7] for path in made if path.stat().st_mtime_ns != made[path]]
    assert changed == ["002.tar"]
    assert set(made) == set(indexes_of(tmp_path))


def test_a_shard_of_the_same_size_is_known_by_its_time(tmp_path):
    tar = write_tar(tmp_path / "a.tar", sample(1))
    load_dataset(tmp_path)
    later = tar.stat().st_mtime_ns + 1_000_000_000
    tar.write_bytes(tar.read_bytes().replace(b" scan 1\n", b" scan 2\n"))
    os.utime(tar, ns=(later, later))
    assert load_dataset(tmp_path)[0].text == "scan 2"


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", None])
def test_a_damaged_or_older_index_is_made_anew(tmp_path, damage, monkeypatch):
    load_dataset(write_shards(tmp_path, sizes=(4,)))
    (path,) = indexes_of(tmp_path)
    whole = path.read_bytes()
    if damage is None:
        monkeypatch.setattr("utils.shard_index._VERSION", 2)
    else:
        path.unlink()  # a file that is mapped must not shrink
        path.write_bytes(damage(whole))
    assert len(load_dataset(tmp_path)) == 4
    assert path.read_bytes() != (whole if damage is None else damage(whole))


def test_names_of_columns_have_indexes_of_their_own(tmp_path, no_scan):
    row = json.dumps({"finding": "a cyst", "note": "a hole"}).encode()
    write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.json", row)])
    no_scans = [False, True]
    for forbidden in no_scans:
        if forbidden:
            no_scan()
        for column, text in (("finding", "a cyst"), ("note", "a hole")):
            (record,) = load_dataset(tmp_path, caption_column=column)
            assert record.text == text
    assert len(indexes_of(tmp_path)) == 2


def test_a_folder_that_takes_no_index_is_left_alone(tmp_path, user_cache, no_scan):
    write_shards(tmp_path / "d")
    (tmp_path / "d" / ".index").write_text("")  # so that no folder can be made, even by root
    before = sorted((tmp_path / "d").iterdir())
    records = list(load_dataset(tmp_path / "d"))
    assert sorted((tmp_path / "d").iterdir()) == before
    made = list(user_cache.rglob("*.arrow"))
    assert len(made) == 4
    assert made[0].parent.stat().st_mode & 0o777 == 0o700  # captions of patients are in it
    no_scan()
    again = load_dataset(tmp_path / "d")
    assert list(again) == records
    assert str(made[0].parent) in again.notes[0]


def test_nowhere_to_write_is_told_with_the_way_out(tmp_path, monkeypatch):
    write_shards(tmp_path / "d", sizes=(2,))
    (tmp_path / "d" / ".index").write_text("")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"000\.tar: its index.*XDG_CACHE_HOME"):
        load_dataset(tmp_path / "d")


def test_processes_index_what_one_process_indexes(tmp_path, monkeypatch):
    alone = list(load_dataset(write_shards(tmp_path / "a")))
    monkeypatch.setattr("utils.dataset_shards._MIN_BYTES_FOR_PROCESSES", 0)
    shared = list(load_dataset(write_shards(tmp_path / "b")))
    assert [record.row for record in shared] == [record.row for record in alone]


def cut(data):
    return data[:1300]  # in the second header


def scramble(data):
    return data[:1024] + b"x" * 512 + data[1536:]


def lose_the_end(data):
    return data[: 512 * 6]  # after the last member; a tar ends with blocks of zeros


@pytest.mark.parametrize("damage", [cut, scramble, lose_the_end])
def test_what_tarfile_takes_for_an_end_is_a_broken_tar(tmp_path, damage):
    tar = write_tar(tmp_path / "a.tar", sample(1))
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(DatasetError) as caught:
        load_dataset(tar)
    assert [problem.kind for problem in caught.value.problems] == ["broken tar"]


# Images


def test_many_shards_keep_few_files_open(tmp_path):
    num_shards = MAX_OPEN_TARS + 20
    write_shards(tmp_path, sizes=[1] * num_shards)
    data = load_dataset(tmp_path, num_workers=0)
    for record in data:
        assert np.array_equal(record.image(), Image.open(io.BytesIO(png(int(record.text[5:])))))
    if not sys.platform.startswith("linux"):
        pytest.skip("open files are counted by /proc")
    names = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the listing itself, or of a thread
            names.append(os.fspath(link.readlink()))
    num_tars = sum(name.startswith(f"{tmp_path}/") and name.endswith(".tar") for name in names)
    assert 0 < num_tars <= MAX_OPEN_TARS


def test_a_shard_that_changes_under_a_run_is_not_read_on(tmp_path):
    data = load_dataset(write_shards(tmp_path, sizes=(2, 2)), check_pixels=False)
    data[0].image()
    write_tar(tmp_path / "001.tar", [*sample(9), *sample(8)])
    data[1].image()
    with pytest.raises(UserError, match=r"001\.tar: the shard has changed"):
        data[2].image()


# Work in processes


def test_items_are_taken_only_a_little_ahead_of_the_results(monkeypatch):
    monkeypatch.setattr(workers, "MIN_ITEMS_FOR_PROCESSES", 1)
    taken = 0

    def items():
        nonlocal taken
        for number in range(2000):
            taken += 1
            yield number - 1000

    results = workers.iterate_in_processes(
        abs, items(), total=2000, description="", num_workers=1, quiet=True
    )
    assert next(results) == 1000
    assert taken <= 16 * 5
    assert list(results) == [abs(number - 1000) for number in range(1, 2000)]


def test_repeated_digests_are_found_with_the_first():
    distinct = [bytes([1] * 15 + [0]), bytes(16), bytes([1] * 16), bytes([0] * 15 + [1])]
    digests = [distinct[number] for number in np.random.default_rng(0).integers(0, 4, 2000)]
    expected = [(place, digests.index(digest)) for place, digest in enumerate(digests)]
    assert repeats(b"".join(digests)) == [pair for pair in expected if pair[0] != pair[1]]
    assert repeats(b"") == []
