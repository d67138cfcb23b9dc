"""What a run leaves on disk: complete files or none."""

import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from utils import run_folder

ROOT = Path(__file__).parents[1]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")

    def rows():
        yield {"a": 1}
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        run_folder.write_csv(path, rows(), ["a"])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from utils.run_folder import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    left = [file.name for file in tmp_path.iterdir() if file.name != "a.txt"]
    assert all(name.startswith(run_folder.TEMPORARY_PREFIX) for name in left)


def test_the_temporary_path_is_in_the_same_folder_and_keeps_the_suffix(tmp_path):
    path = tmp_path / "new" / ("x" * 250 + ".png")
    with run_folder.atomic_path(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".png")
        assert not temporary.exists()
        temporary.write_bytes(b"1")
    assert path.read_bytes() == b"1"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "data"
    with pytest.raises(RuntimeError), run_folder.atomic_folder(target) as folder:
        (folder / "images").mkdir()
        (folder / "images" / "a.png").write_bytes(b"1")
        raise RuntimeError("in the middle")
    assert list(tmp_path.iterdir()) == []
    with run_folder.atomic_folder(target) as folder:
        (folder / "a.png").write_bytes(b"1")
        assert not target.exists()
    assert [file.name for file in target.iterdir()] == ["a.png"]


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with (
        pytest.raises(FileExistsError, match="not an empty folder"),
        run_folder.atomic_folder(tmp_path / "data"),
    ):
        pass
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"


def test_json_has_no_nan_and_keeps_umlauts(tmp_path):
    @dataclass
    class Score:
        value: float
        path: Path

    value = {
        "nan": math.nan,
        "inf": np.float32("inf"),
        "array": np.array([[1, 2]]),
        "score": Score(0.5, Path("a/b")),
        "text": "Ödem",
        "set": {"b", "a"},
        1: True,
    }
    run_folder.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "nan": None,
        "inf": None,
        "array": [[1, 2]],
        "score": {"value": 0.5, "path": "a/b"},
        "text": "Ödem",
        "set": ["a", "b"],
        "1": True,
    }
    assert "Ödem" in text


def test_json_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(TypeError, match="object"):
        run_folder.write_json(tmp_path / "a.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_csv_that_was_written_reads_back_equal(tmp_path):
    rng = np.random.default_rng(0)
    alphabet = [*"ab ,;\"'\n\r\t\\é中", "\r\n", '""', " "]
    rows = [
        {name: "".join(rng.choice(alphabet, size=rng.integers(0, 9))) for name in ("a", "b c")}
        for _ in range(500)
    ]
    run_folder.write_csv(tmp_path / "a.csv", rows, ["a", "b c"])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as handle:
        assert list(csv.DictReader(handle, strict=True)) == rows


def test_csv_lines_end_with_lf_and_none_is_empty(tmp_path):
    run_folder.write_csv(tmp_path / "a.csv", [{"a": None}, {"b": 1}], ["a", "b"])
    assert (tmp_path / "a.csv").read_bytes() == b"a,b\n,\n,1\n"


def test_csv_refuses_an_unknown_column(tmp_path):
    with pytest.raises(ValueError, match="typo"):
        run_folder.write_csv(tmp_path / "a.csv", [{"typo": 1}], ["a"])


def test_options_tell_how_to_repeat_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/train.py", "--seed", "3"])
    args = argparse.Namespace(seed=3, data=Path("d"), run=print)
    path = run_folder.write_options(tmp_path / "new", args, data_hash="abc")
    options = json.loads(path.read_text())
    assert options["script"] == "train.py"
    assert options["argv"] == ["--seed", "3"]
    assert options["flags"] == {"data": "d", "seed": 3}
    assert options["data_hash"] == "abc"
    assert options["versions"]["numpy"] == np.__version__
    assert set(options) == {"script", "argv", "flags", "versions", "started", "data_hash"}


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert run_folder.sha256_file(tmp_path / "a") == known


def test_a_folders_hash_follows_names_and_contents_only(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "w.bin").write_bytes(b"1")
        (tmp_path / name / "c.json").write_bytes(b"2")
    first = run_folder.hash_folder(tmp_path / "one")
    (tmp_path / "two" / ".tmp-x").write_bytes(b"ignored")
    os.utime(tmp_path / "two" / "c.json", (0, 0))
    assert run_folder.hash_folder(tmp_path / "two") == first
    only_json = run_folder.hash_folder(tmp_path / "two", [".json"])
    (tmp_path / "two" / "sub" / "w.bin").write_bytes(b"3")
    assert run_folder.hash_folder(tmp_path / "two") != first
    assert run_folder.hash_folder(tmp_path / "two", [".json"]) == only_json
    (tmp_path / "two" / "sub" / "w.bin").rename(tmp_path / "two" / "sub" / "v.bin")
    (tmp_path / "two" / "sub" / "v.bin").write_bytes(b"1")
    assert run_folder.hash_folder(tmp_path / "two") != first


def test_result_goes_to_stdout_and_log_to_stderr(capsys):
    run_folder.get_logger("a test").info("a %s", "message")
    run_folder.get_logger("a test").info("again")
    run_folder.print_result({"fid": math.nan})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"fid": None}
    assert [line.split(" ", 1)[1] for line in err.splitlines()] == [
        "a test: a message",
        "a test: again",
    ]
