"""The shared command line: flag types, shared flags, exits."""

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import cli

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (cli.positive_int, "1", 1),
        (cli.non_negative_int, "0", 0),
        (cli.positive_float, "1e-5", 1e-5),
        (cli.non_negative_float, "0", 0.0),
        (cli.probability, "0", 0.0),
        (cli.probability, "1", 1.0),
        (cli.resolution, "128", 128),
    ],
)
def test_flag_type_takes_its_border_value(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (cli.positive_int, "0"),
        (cli.positive_int, "1.5"),
        (cli.positive_int, "many"),
        (cli.non_negative_int, "-1"),
        (cli.positive_float, "0"),
        (cli.positive_float, "nan"),
        (cli.positive_float, "inf"),
        (cli.non_negative_float, "-0.1"),
        (cli.probability, "1.0001"),
        (cli.probability, "-0.1"),
        (cli.resolution, "0"),
        (cli.resolution, "100"),
        (cli.resolution, "-8"),
    ],
)
def test_flag_type_refuses_and_names_the_value(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
        kind(text)


def test_path_types_tell_files_from_folders(tmp_path):
    file = tmp_path / "a b.txt"
    file.write_text("x")
    assert cli.existing_file(str(file)) == file
    assert cli.existing_dir(str(tmp_path)) == tmp_path
    for kind, text in (
        (cli.existing_dir, str(file)),
        (cli.existing_file, str(tmp_path)),
        (cli.existing_path, str(tmp_path / "none")),
        (cli.existing_path, ""),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


def test_text_of_a_flag_stands_on_one_line():
    assert cli.one_line("  edema;\n drusen\u2028 ") == "edema; drusen"
    assert cli.one_line(" ") == ""
    assert cli.one_line("Ödem 👁️ \U0001f468\u200d⚕️") == "Ödem 👁️ \U0001f468\u200d⚕️"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bad  \x07bell", "control character: U+0007 at character 5"),
        ("nul\x00", "control character: U+0000 at character 4"),
        ("half \ud83d", "half of a character: U+D83D at character 6"),
        ("x" * 100_001, "100001 characters"),
    ],
)
@pytest.mark.parametrize("flag", ["--prompt", "--modality"])
def test_text_that_no_table_can_hold_is_refused_with_its_place(flag, text, said, capsys):
    parser = cli.make_parser("Doc.")
    parser.add_argument(flag, type=cli.one_line)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([flag, text])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {flag}: " in error
    assert said in error


def test_bytes_on_the_command_line_that_are_not_utf8_end_in_a_clear_message():
    code = (
        "from utils import cli\n"
        "parser = cli.make_parser('Doc.')\n"
        "parser.add_argument('--prompt', type=cli.one_line)\n"
        "parser.parse_args()"
    )
    command = [sys.executable, "-X", "utf8", "-c", code, "--prompt", b"caf\xe9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        "argument --prompt: half of a character: U+DCE9 at character 4: is this UTF-8?"
        in done.stderr
    )


def test_an_output_folder_may_be_new_deep_and_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").mkdir()
    assert cli.output_dir("~/runs") == tmp_path / "runs"
    assert cli.output_dir("~/runs/a/b") == tmp_path / "runs" / "a" / "b"
    monkeypatch.chdir(tmp_path)
    assert cli.output_dir("new/folder") == Path("new/folder")
    (tmp_path / "link").symlink_to("runs")
    assert cli.output_dir("link/a") == Path("link/a")


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("file", "file' is not a folder"),
        ("file/a/b", "file' is not a folder"),
        ("broken/a", "broken' is not a folder"),
        ("~nobody-of-this-name/a", "'~nobody-of-this-name/a'"),
    ],
)
def test_no_output_folder_where_a_file_stands(tmp_path, monkeypatch, capsys, place, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").symlink_to("nowhere")
    parser = cli.make_parser("Doc.")
    cli.add_runtime_flags(parser, "output_dir")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--output_dir", place])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "argument --output_dir: " in error
    assert named in error


def test_a_mistyped_path_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert cli.data_source("owner/name") == "owner/name"
    assert cli.data_source("shards/{000..003}.tar") == "shards/{000..003}.tar"
    for text in ("data/otc", "/nowhere/at/all", "./here", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="no such file or folder"):
            cli.data_source(text)


def test_flags_cannot_be_abbreviated(capsys):
    parser = cli.make_parser("Doc.")
    cli.add_runtime_flags(parser, "batch_size")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--batch", "3"])
    assert stop.value.code == 2
    assert "--batch" in capsys.readouterr().err


def test_runtime_flags_are_those_named_and_may_have_own_defaults():
    parser = cli.make_parser("Doc.")
    cli.add_runtime_flags(
        parser, "seed", "batch_size", "output_dir", batch_size=64, output_dir=None
    )
    assert vars(parser.parse_args([])) == {"seed": 0, "batch_size": 64, "output_dir": None}


def test_output_dir_is_required_without_default(capsys):
    parser = cli.make_parser("Doc.")
    cli.add_runtime_flags(parser, "output_dir")
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "--output_dir" in capsys.readouterr().err


def test_help_shows_the_examples_as_they_stand():
    doc = "Draw.\n\n    python draw.py --num_images 3 \\\n        --seed 100%\n"
    assert "    python draw.py --num_images 3 \\\n        --seed 100%" in (
        cli.make_parser(doc).format_help()
    )


def test_fail_prints_one_line_and_exits_with_1(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.fail("no such thing")
    assert (stop.value.code, capsys.readouterr().err) == (1, "error: no such thing\n")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (cli.UserError("metadata.csv:3: empty text"), 1, "error: metadata.csv:3: empty text\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.png"), 1, "x.png"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ModuleNotFoundError("No module", name="torch"), 1, "pip install -r requirements.txt"),
    ],
)
def test_main_guard_turns_a_users_error_into_a_message(raised, status, said, capsys):
    def main():
        raise raised

    with pytest.raises(SystemExit) as stop:
        cli.main_guard(main)
    assert stop.value.code == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("raised", [ValueError("a bug"), OSError(errno.EIO, "bad disk")])
def test_main_guard_leaves_a_bug_its_traceback(raised):
    def main():
        raise raised

    with pytest.raises(type(raised)):
        cli.main_guard(main)


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1)])
def test_main_guard_exits_with_what_main_returns(returned, status):
    with pytest.raises(SystemExit) as stop:
        cli.main_guard(lambda: returned)
    assert stop.value.code == status


def test_offline_forbids_every_hugging_face_library(monkeypatch):
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "DIFFUSERS_OFFLINE")
    for name in names:
        monkeypatch.setenv(name, "0")
    cli.go_offline()
    assert [os.environ[name] for name in names] == ["1"] * 4


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_a_users_error(name):
    with pytest.raises(cli.UserError, match=f"--device {name}"):
        cli.resolve_device(name)


def test_device_auto_is_one_that_works():
    import torch

    assert cli.resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert cli.resolve_device("cpu") == "cpu"


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, utils.cli, utils.run_folder\n"
        "heavy = {'torch', 'numpy', 'PIL', 'tqdm', 'datasets', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
