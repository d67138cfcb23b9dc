"""The README's commands name scripts, subcommands and flags that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.split("#")[0].strip()
]
PYTHON = [line for line in LINES if line.startswith("python ")]


@pytest.mark.parametrize("line", PYTHON)
def test_flags_of_a_python_command_exist(line):
    words = line.split()[1:]
    with_commands = words[0] in ("prepare_dataset.py", "rate_images.py")
    command = words[:2] if with_commands else words[:1]
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for flag in re.findall(r"--\w+", line):
        assert re.search(rf"{flag}\b", done.stdout), f"{flag} is no flag of {command}"


@pytest.mark.parametrize("line", [line for line in LINES if line not in PYTHON])
def test_shell_commands_name_scripts_that_parse(line):
    script = re.search(r"\bbash (?:\./)?(\S+\.sh)", line)
    assert script is not None, line
    subprocess.run(["bash", "-n", ROOT / script[1]], check=True)


def test_the_readme_has_the_two_commands_of_a_new_user():
    assert {"bash quickstart.sh", "bash run_tests.sh"} <= set(LINES)


def test_files_of_the_tree_exist():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", TEXT, re.DOTALL)[1]
    for line in tree.splitlines():
        if line.startswith(" "):  # goes on with what the line above tells
            continue
        assert (ROOT / line.split()[0]).exists(), line
