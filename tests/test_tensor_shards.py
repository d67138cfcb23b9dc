import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.cli import UserError
from utils.tensor_shards import (
    DamagedShardError,
    Space,
    check_shard,
    find_damaged,
    scan,
    write_shard,
)
from utils.tensor_table import KeyIndex, TensorTable


def make_space(root, **changes):
    options = {"facts": {"of": "a test"}, "entry_shape": (2, 3), "dtype": torch.float32}
    return Space(root, "things", **(options | {"key_bytes": 5} | changes))


def keys_of(count, *, width=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, width), dtype=np.uint8)


def filled(root, count=4):
    space = make_space(root)
    values = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))
    return space, write_shard(space, keys_of(count), values), values


def table_of(space, keys):
    found = scan(space)
    return TensorTable(found.paths, *found.index.find(keys))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_what_is_written_is_read_by_key(tmp_path, dtype):
    space = make_space(tmp_path, dtype=dtype)
    values = (torch.rand(6, 2, 3) * 100).to(dtype)
    write_shard(space, keys_of(6)[:4], values[:4])
    write_shard(space, keys_of(6)[4:], values[4:])
    table = table_of(space, keys_of(6)[::-1].reshape(3, 2, 5))
    read = torch.stack([table[place] for place in np.ndindex(3, 2)])
    assert torch.equal(read, values.flip(0))
    assert read.dtype == dtype
    assert len(table) == 3


def test_keys_are_compared_byte_by_byte_zeros_at_the_end_included():
    keys = np.array([[0, 0], [0, 1], [1, 0], [255, 0], [128, 255]], np.uint8)
    index = KeyIndex([keys[:2], keys[2:4]], 2)
    shards, rows = index.find(keys)
    assert shards.tolist() == [0, 0, 1, 1, -1]
    assert rows.tolist() == [0, 1, 0, 1, -1]
    assert KeyIndex([], 2).find(keys)[0].tolist() == [-1] * 5


def test_the_same_entries_written_twice_are_one_file(tmp_path):
    space, path, values = filled(tmp_path)
    assert write_shard(space, keys_of(4), values) == path
    assert len(list(space.folder.iterdir())) == 1


@pytest.mark.parametrize(
    "change", [{"facts": {"of": "another"}}, {"entry_shape": (3, 2)}, {"dtype": torch.float16}]
)
def test_entries_of_another_origin_lie_elsewhere(tmp_path, change):
    one, other = make_space(tmp_path), make_space(tmp_path, **change)
    assert one.folder != other.folder
    other.folder.mkdir()
    path = write_shard(one, keys_of(4), torch.zeros(4, 2, 3))
    moved = other.folder / path.name
    path.replace(moved)
    assert list(scan(other).damaged) == [moved.name]


def test_a_change_of_any_byte_that_counts_is_found(tmp_path):
    space, path, _ = filled(tmp_path)
    whole = path.read_bytes()
    check_shard(path, space)
    text = int.from_bytes(whole[:8], "little") + 8
    harmless = {place for place in range(8, text) if whole[place : place + 1].isspace()}
    for place in sorted(set(range(len(whole))) - harmless):
        for bit in (1, 2):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.raises(DamagedShardError):
                check_shard(path, space)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_shard_cut_short_is_found_without_hashing(tmp_path, cut):
    space, path, _ = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    found = scan(space)
    assert list(found.damaged) == [path.name]
    assert found.paths == []


def test_damaged_and_missing_shards_are_told_apart_from_sound_ones(tmp_path):
    space, path, values = filled(tmp_path)
    bad = write_shard(space, keys_of(4, seed=1), values)
    bad.write_bytes(bad.read_bytes()[:-1] + b"!")
    gone = space.folder / f"{'0' * 32}.safetensors"
    reasons = find_damaged([path, bad, gone], space, num_threads=2)
    assert set(reasons) == {bad.name, gone.name}
    assert reasons[gone.name] == "gone"


def test_files_of_others_are_left_alone(tmp_path):
    space, path, _ = filled(tmp_path)
    (space.folder / "notes.txt").write_text("mine")
    (space.folder / "model.safetensors").write_text("mine")
    found = scan(space)
    assert found.foreign == ["model.safetensors", "notes.txt"]
    assert found.paths == [path]


def test_temporary_files_go_when_their_writer_must_be_dead(tmp_path):
    space, _, _ = filled(tmp_path)
    young, old = space.folder / ".tmp-a.safetensors", space.folder / ".tmp-b.safetensors"
    for path in (young, old):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    scan(space)
    assert young.exists()
    assert not old.exists()


def test_a_table_outlives_its_files_but_a_pickled_copy_needs_them(tmp_path):
    space = make_space(tmp_path, entry_shape=(64, 64))
    values = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    path = write_shard(space, keys_of(4), values)
    table = table_of(space, keys_of(4))
    pickled = pickle.dumps(table)
    assert len(pickled) < values.nbytes / 10  # places, not values
    assert torch.equal(pickle.loads(pickled)[2], values[2])
    path.unlink()
    assert torch.equal(table[3], values[3])
    with pytest.raises(UserError, match="start again"):
        pickle.loads(pickled)


def resident_anonymous_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_values_are_mapped_not_read_into_memory(tmp_path):
    space = make_space(tmp_path, entry_shape=(1024, 1024))
    write_shard(space, keys_of(16), torch.ones(16, 1024, 1024))  # 64 MiB
    before = resident_anonymous_kib()
    table = table_of(space, keys_of(16))
    total = sum(table[row].sum().item() for row in range(16))
    assert total == 16 * 1024**2
    assert resident_anonymous_kib() - before < 16 * 1024
