"""Set-up of the shell scripts: which interpreter, what is installed when, what failure says."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP_STUB = """
import os, pathlib, sys
log = pathlib.Path(os.environ["PIP_LOG"])
log.write_text(log.read_text() + " ".join(sys.argv[1:]) + "\\n")
sys.exit(int(os.environ.get("PIP_STATUS", 0)))
"""


@pytest.fixture
def tree(tmp_path):
    """The set-up script, two requirement files, and an environment with a stub of pip."""
    shutil.copy(ROOT / "setup_env.sh", tmp_path)
    (tmp_path / "one.txt").write_text("a==1\n")
    (tmp_path / "two.txt").write_text("b==2\n")
    (tmp_path / "pip.log").touch()
    venv.create(tmp_path / "env", with_pip=False)
    packages = next((tmp_path / "env").glob("lib/python*/site-packages"))
    (packages / "pip").mkdir()
    (packages / "pip/__main__.py").write_text(PIP_STUB)
    return tmp_path


def set_up(tree, *files, **variables):
    environment = {"PATH": os.environ["PATH"], "PIP_LOG": str(tree / "pip.log")} | variables
    script = f"set -euo pipefail; source ./setup_env.sh; setup_env {' '.join(files)}; "
    script += "command -v python"
    return subprocess.run(
        ["bash", "-c", script], cwd=tree, env=environment, capture_output=True, text=True
    )


def installs(tree):
    return [line for line in (tree / "pip.log").read_text().splitlines() if "install" in line]


@pytest.mark.parametrize("how", ["VIRTUAL_ENV", "PYTHON"])
def test_the_environment_that_is_named_is_used_and_installed_into_once(tree, how):
    value = {"VIRTUAL_ENV": tree / "env", "PYTHON": tree / "env/bin/python"}[how]
    for _ in range(2):
        done = set_up(tree, "one.txt", "two.txt", **{how: str(value)})
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(tree / "env/bin/python")
    assert len(installs(tree)) == 1
    assert "-r one.txt -r two.txt" in installs(tree)[0]


def test_a_changed_file_is_installed_again(tree):
    environment = {"VIRTUAL_ENV": str(tree / "env")}
    set_up(tree, "one.txt", **environment)
    (tree / "one.txt").write_text("a==2\n")
    set_up(tree, "one.txt", **environment)
    assert len(installs(tree)) == 2


def test_one_script_needs_not_what_another_needs(tree):
    environment = {"VIRTUAL_ENV": str(tree / "env")}
    set_up(tree, "one.txt", **environment)
    assert "two.txt" not in installs(tree)[0]
    set_up(tree, "one.txt", "two.txt", **environment)
    assert len(installs(tree)) == 2
    set_up(tree, "one.txt", **environment)
    assert len(installs(tree)) == 2


def test_a_failed_installation_says_so_and_is_tried_again(tree):
    environment = {"VIRTUAL_ENV": str(tree / "env")}
    done = set_up(tree, "one.txt", PIP_STATUS="1", **environment)
    assert done.returncode == 1
    assert "pip could not install one.txt" in done.stderr
    set_up(tree, "one.txt", **environment)
    assert len(installs(tree)) == 2


def test_an_environment_is_made_where_none_is_active_and_reused(tree):
    shutil.copytree(tree / "env", tree / ".venv", symlinks=True)
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    done = set_up(tree, "one.txt", PYTHON=str(base))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tree / ".venv/bin/python")
    assert len(installs(tree)) == 1


def test_an_old_python_is_refused_by_its_version(tree):
    old = tree / "old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.12\n[ "$1" = --version ]\n')
    old.chmod(0o755)
    done = set_up(tree, "one.txt", PYTHON=str(old))
    assert done.returncode == 1
    assert "3.11 or newer is needed" in done.stderr
    assert "Python 3.10.12" in done.stderr


def test_a_python_that_is_not_there_is_named(tree):
    done = set_up(tree, "one.txt", PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert "there is no /nowhere/python" in done.stderr
