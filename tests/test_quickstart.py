"""quickstart.sh calls the scripts as they are, runs a stage once, and stops at a failure."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES_OF_DOCTORS = [
    *("few", "forgetful", "weak", "weak_drawn", "second", "second_split", "oracle"),
    *("study", "raters", "ratings", "rating_report", "improved"),
]
STAGES = [
    "clinic",
    "split",
    "diagnosis",
    "pipeline",
    "synthetic_before",
    "synthetic",
    "evaluation_before",
    "evaluation",
    "few_labels",
    "self_supervised",
    "reports",
    *STAGES_OF_DOCTORS,
    *("films", "films_split", "film_diagnosis", "transferred", "films_drawn", "scans_after"),
    *("film_evaluation", "scans_evaluation"),
    "report",
]

# Writes its arguments as a line of JSON, and makes the folder that the script would have made.
STUB = f"""#!{sys.executable}
import json, os, pathlib, sys
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
if "FAIL" in os.environ and os.environ["FAIL"] in " ".join(sys.argv):
    sys.exit(3)
if "--output_dir" in sys.argv:
    folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
    for name in ("classifier", "labeled"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text("{{}}")
print("{{}}")
"""


@pytest.fixture
def quickstart(tmp_path):
    """Run quickstart.sh with stubs for python and accelerate; gives its status and its calls."""
    for script in ("quickstart.sh", "transfer_cxr.sh", "train.sh"):
        shutil.copy(ROOT / script, tmp_path)
    (tmp_path / "setup_env.sh").write_text("setup_env() { :; }\n")
    (tmp_path / "demo" / "base").mkdir(parents=True)
    (tmp_path / "demo" / "base" / "model_index.json").write_text("{}")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("python", "accelerate"):
        (binaries / name).write_text(STUB)
        (binaries / name).chmod(0o755)

    def run(**environment):
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", tmp_path / "quickstart.sh"],
            env={"PATH": path, **environment},
            cwd="/",
            capture_output=True,
            text=True,
        )
        calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").open()]
        (tmp_path / "calls.jsonl").write_text("")
        return done, calls

    return run


def test_every_command_is_accepted_by_its_script(quickstart, tmp_path, monkeypatch):
    done, calls = quickstart()
    assert done.returncode == 0, done.stderr
    assert len(calls) == len(STAGES)
    assert done.stdout.splitlines()[-1] == "The page: runs/quickstart/report.html"
    monkeypatch.chdir(tmp_path)
    for argv in calls:
        if argv[1] == "-m":
            name, flags = argv[2], argv[3:]
        else:
            script = next(word for word in argv if word.endswith(".py") and "/" not in word)
            name, flags = script.removesuffix(".py"), argv[argv.index(script) + 1 :]
        parser = importlib.import_module(name).build_parser()
        parser.parse_args(flags)  # exits for a flag that is not there


def test_stages_that_ended_are_not_run_again(quickstart):
    quickstart()
    _, again = quickstart()
    assert again == []


def test_a_changed_stage_and_all_after_it_run_anew(quickstart):
    quickstart()
    done, calls = quickstart(MAX_TRAIN_STEPS="7")
    assert done.returncode == 0, done.stderr
    assert len(calls) == len(STAGES) - STAGES.index("pipeline")


def test_a_folder_that_no_stage_made_is_not_deleted(quickstart, tmp_path):
    foreign = tmp_path / "runs" / "quickstart" / "clinic"
    foreign.mkdir(parents=True)
    (foreign / "mine.txt").write_text("keep")
    quickstart()
    assert (foreign / "mine.txt").exists()


def test_a_failing_stage_ends_the_run_and_is_tried_again(quickstart):
    done, calls = quickstart(FAIL="semi_supervised")
    assert done.returncode == 1
    assert "[diagnosis] failed" in done.stderr
    assert len(calls) == 3
    done, calls = quickstart()
    assert done.returncode == 0
    assert len(calls) == len(STAGES) - 2
    assert "semi_supervised.py" in calls[0]


def test_an_output_folder_with_a_space_works(quickstart):
    done, calls = quickstart(OUTPUT_DIR="my runs/one")
    assert done.returncode == 0, done.stderr
    assert "my runs/one/clinic" in calls[0]
