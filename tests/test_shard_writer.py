"""Shards written: read like the folder they are made of, the same bytes whatever happens."""

import os
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from utils.cli import UserError
from utils.dataset import load_dataset, write_dataset
from utils.manifest import DATASET_FIELDS
from utils.shard_writer import pack_shards, packed_names

TEXTS = (
    " blanks before, 120 µm",
    'quotes ", commas; and / slashes \\',
    "emoji 👁️ and 視網膜",
    "two\nlines",
    "a long report " * 715,  # 10,010 characters
)
LABELS = ("macular edema", "drusen;epiretinal membrane", "")


def row_of(index):
    row = {name: f"{name} of {index}" for name in DATASET_FIELDS}
    text = f"{TEXTS[index % len(TEXTS)]} {index}"
    row |= {"file_name": f"images/{index:06d}.png", "text": text, "prompt": text}
    return row | {"label": LABELS[index % len(LABELS)], "score": "", "seed": str(2**63 + index)}


def pixels_of(index):
    return np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)


def fill(folder, indices):
    """Draw pictures whose pixels tell the index."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in indices:
        Image.fromarray(pixels_of(index)).save(folder / f"images/{index:06d}.png")
    return [row_of(index) for index in indices]


def pack(folder, rows, per_shard):
    return pack_shards(folder, iter(rows), per_shard=per_shard, num_images=len(rows))


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def records_of(source):
    """All that is known of each image but its name, and its pixels."""
    return [
        (
            record.text,
            record.labels,
            {key: value for key, value in record.row.items() if key != "file_name"},
            np.asarray(record.image()).tolist(),
        )
        for record in load_dataset(source)
    ]


@pytest.fixture(autouse=True)
def _user_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


INDICES = (0, 2, 3, 5, 6, 7, 11, 12, 13, 20)  # the others failed


def test_shards_are_read_like_the_folder_they_are_made_of(tmp_path):
    rows = fill(tmp_path, INDICES)
    table = write_dataset(tmp_path, rows)
    before = records_of(tmp_path)
    table.unlink()
    shards = pack(tmp_path, rows, 4)
    assert shards == [tmp_path / name for name in ("00000.tar", "00001.tar", "00002.tar")]
    assert len(before) == len(INDICES)
    assert records_of(tmp_path) == before
    assert records_of(f"{tmp_path}/{{00000..00002}}.tar") == before
    assert load_dataset(shards[1])[0].file_name == "00001/000006.png"


def test_tarfile_finds_one_picture_after_another_without_time_or_owner(tmp_path):
    rows = fill(tmp_path, INDICES)
    pngs = [(tmp_path / row["file_name"]).read_bytes() for row in rows]
    found = []
    for shard in pack(tmp_path, rows, 4):
        with tarfile.open(shard) as tar:
            for info in tar:
                found.append(info.name)
                facts = (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode)
                assert facts == (0, 0, 0, "", "", 0o644)
                if info.name.endswith(".png"):
                    assert tar.extractfile(info).read() == pngs[INDICES.index(int(info.name[:-4]))]
    assert found == [f"{i:06d}{suffix}" for i in INDICES for suffix in (".json", ".png", ".txt")]


def test_datasets_reads_the_shards(tmp_path):
    import datasets

    rows = fill(tmp_path, INDICES)
    shards = pack(tmp_path, rows, 4)
    table = datasets.load_dataset(
        "webdataset",
        data_files=[str(shard) for shard in shards],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert table["__key__"] == [f"{index:06d}" for index in INDICES]
    assert table["txt"] == [row["text"] for row in rows]
    assert [sample["seed"] for sample in table["json"]] == [row["seed"] for row in rows]
    assert np.array_equal(table[9]["png"], pixels_of(20))


def test_bytes_depend_on_pictures_and_rows_only(tmp_path):
    for name in ("a", "b"):
        rows = fill(tmp_path / name, INDICES if name == "a" else INDICES[::-1])
        rows.sort(key=lambda row: row["file_name"])
        for number, row in enumerate(rows):
            os.utime(tmp_path / name / row["file_name"], (number, number + (name == "b")))
        pack(tmp_path / name, rows, 4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == ["00000.tar", "00001.tar", "00002.tar"]
    assert not (tmp_path / "a/images").exists()


def test_another_file_in_the_images_folder_stays(tmp_path):
    rows = fill(tmp_path, INDICES)
    (tmp_path / "images/notes.txt").write_text("mine")
    pack(tmp_path, rows, 4)
    assert (tmp_path / "images/notes.txt").read_text() == "mine"


def test_packed_pictures_are_found_with_their_sizes(tmp_path):
    rows = fill(tmp_path, INDICES)
    sizes = {row["file_name"]: (tmp_path / row["file_name"]).stat().st_size for row in rows}
    assert packed_names(tmp_path) == {}
    pack(tmp_path, rows, 4)
    assert packed_names(tmp_path) == sizes


def test_two_thousand_images_at_most_one_shard_twice(tmp_path, monkeypatch):
    rows = fill(tmp_path, range(2000))
    real_replace, loose = os.replace, []

    def counting_replace(source, target):
        real_replace(source, target)
        loose.append(len(list(tmp_path.glob("images/*"))))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counting_replace)
        pack(tmp_path, rows, 150)
    assert loose == [2000 - 150 * number for number in range(14)]
    assert len(packed_names(tmp_path)) == 2000
    texts = [record.text for record in load_dataset(tmp_path, num_workers=0)]
    assert texts == [row["text"].strip() for row in rows]


def test_memory_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for num_images in (50, 200, 1000):  # the first one warms up
        folder = tmp_path / str(num_images)
        fill(folder, range(num_images))
        tracemalloc.start()
        pack_shards(folder, map(row_of, range(num_images)), per_shard=50, num_images=num_images)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


# Interruptions


class Killed(BaseException):
    pass


def kill_at(monkeypatch, step, *, done):
    """From the step-th call that changes the disk on, none does anything; or that one still does.

    Returns the calls' names.
    """
    calls = []

    def dying(name, real):
        def call(*args, **options):
            calls.append(name)
            if len(calls) >= step:
                if len(calls) == step and done:
                    real(*args, **options)
                raise Killed
            return real(*args, **options)

        return call

    for name in ("fsync", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, dying(name, getattr(os, name)))
    return calls


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_run_killed_at_any_point_goes_on_to_the_same_bytes(tmp_path, monkeypatch, done):
    rows = fill(tmp_path / "whole", INDICES[:5])
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 1000, done=done)
        pack(tmp_path / "whole", rows, 2)
    # Each shard: its bytes, its name, the folder's list of names; then its pictures.
    shard = ["fsync", "replace", "fsync"]
    assert calls == [*shard, *["unlink"] * 2] * 2 + [*shard, "unlink", "rmdir"]
    for step in range(1, len(calls) + 1):
        folder = tmp_path / f"{step}"
        fill(folder, INDICES[:5])
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, step, done=done)
            pack(folder, rows, 2)
        there = packed_names(folder).keys() | {
            f"images/{path.name}" for path in folder.glob("images/*.png")
        }
        assert there == {row["file_name"] for row in rows}
        for path in folder.rglob(".tmp-*"):
            path.unlink()  # as `open_run` does
        pack(folder, rows, 2)
        assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("step", range(1, 12))
def test_a_full_disk_leaves_all_pictures_and_no_rest(tmp_path, monkeypatch, step):
    rows = fill(tmp_path, INDICES[:5])
    real_fsync, calls = os.fsync, []

    def fsync_of_a_small_disk(descriptor):
        calls.append(descriptor)
        if len(calls) == step:
            raise OSError(28, "No space left on device")
        real_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync_of_a_small_disk)
        if step > 6:  # two a shard
            pack(tmp_path, rows, 2)
        else:
            with pytest.raises(OSError, match="No space left"):
                pack(tmp_path, rows, 2)
    assert not list(tmp_path.rglob(".tmp-*"))
    pack(tmp_path, rows, 2)
    assert packed_names(tmp_path).keys() == {row["file_name"] for row in rows}


def test_a_shard_found_is_on_the_disk_before_its_pictures_go(tmp_path, monkeypatch):
    rows = fill(tmp_path, INDICES[:2])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3, done=False)  # renamed, but the folder's list of names not written
        pack(tmp_path, rows, 2)
    calls = kill_at(monkeypatch, 1000, done=False)
    pack(tmp_path, rows, 2)
    assert calls == ["fsync", "fsync", "unlink", "unlink", "rmdir"]


def test_a_finished_set_is_left_as_it_is(tmp_path):
    rows = fill(tmp_path, INDICES)
    shards = pack(tmp_path, rows, 4)
    times = [shard.stat().st_mtime_ns for shard in shards]
    assert pack(tmp_path, rows, 4) == shards
    assert [shard.stat().st_mtime_ns for shard in shards] == times


# Damage


DAMAGES = {
    "empty": lambda data: b"",
    "cut in a header": lambda data: data[:1800],
    "cut in a picture": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-10240],
    "cut in its end": lambda data: data[:-512],
    "more after the end": lambda data: data + bytes(10240),
    "a broken header": lambda data: data[:1024] + b"x" * 512 + data[1536:],
    "words": lambda data: b"no tar at all " * 100,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_shard_counts_as_not_there_and_is_made_anew(tmp_path, damage):
    rows = fill(tmp_path, INDICES)
    shards = pack(tmp_path, rows, 4)
    before = contents(tmp_path)
    shards[1].write_bytes(damage(before["00001.tar"]))
    names = packed_names(tmp_path)
    assert sorted(names) == [row["file_name"] for row in rows[:4] + rows[8:]]
    fill(tmp_path, [index for index in INDICES if f"images/{index:06d}.png" not in names])
    pack(tmp_path, rows, 4)
    assert contents(tmp_path) == before


def test_a_shard_of_other_images_is_refused_and_nothing_is_deleted(tmp_path):
    rows = fill(tmp_path, INDICES)
    pack(tmp_path, rows, 4)
    more = sorted([*rows, *fill(tmp_path, [1])], key=lambda row: row["file_name"])
    with pytest.raises(UserError, match=r"00000\.tar: holds other images.*--overwrite"):
        pack(tmp_path, more, 4)
    assert (tmp_path / "images/000001.png").exists()


def test_a_shard_too_many_is_refused(tmp_path):
    rows = fill(tmp_path, INDICES)
    pack(tmp_path, rows, 4)
    with pytest.raises(UserError, match=r"00002\.tar: holds other images"):
        pack(tmp_path, rows[:8], 4)


def test_a_picture_that_is_nowhere_is_named(tmp_path):
    rows = fill(tmp_path, INDICES)
    (tmp_path / rows[5]["file_name"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"000007\.png"):
        pack(tmp_path, rows, 4)
    assert len(packed_names(tmp_path)) == 4
    assert sum(1 for _ in tmp_path.glob("images/*.png")) == 5
    assert not (tmp_path / "00001.tar").exists()


def test_shards_are_told_from_the_users_own_tars(tmp_path):
    (tmp_path / "backup.tar").write_bytes(b"mine")
    rows = fill(tmp_path, INDICES)
    pack(tmp_path, rows, 4)
    assert len(packed_names(tmp_path)) == len(rows)
    assert (tmp_path / "backup.tar").read_bytes() == b"mine"
