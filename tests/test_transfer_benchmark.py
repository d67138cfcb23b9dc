"""The transfer benchmark compares what it says it compares, and its tables show it."""

import csv
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import transfer

ROOT = Path(__file__).parents[1]
FILMS = ["oct-5", "base-5", "untrained-5", "oct-100", "base-100", "rehearsed-100"]
SCANS = ["oct", "oct-100", "rehearsed-100"]


@pytest.mark.parametrize(
    ("sets", "name", "other"),
    [
        (FILMS, "oct-5", "base-5"),
        (FILMS, "untrained-5", "base-5"),
        (FILMS, "base-100", None),
        (FILMS, "rehearsed-100", "oct-100"),
        (SCANS, "oct", None),
        (SCANS, "oct-100", "oct"),
        (SCANS, "rehearsed-100", "oct"),
        (["oct-100", "rehearsed-100"], "rehearsed-100", "oct-100"),
        (["oct-5"], "oct-5", None),
    ],
)
def test_each_model_is_held_to_the_one_that_differs_in_one_thing(sets, name, other):
    assert transfer.held_to(name, dict.fromkeys(sets)) == other


def test_a_labels_share_counts_the_images_in_which_it_is_seen():
    records = [SimpleNamespace(labels=(label,)) for label in ("a", "a", "b", "a")]
    dataset = type("Set", (list,), {"labels": ["a", "b"]})(records)
    agreement = np.array([2 / 3, 0.0, 0.0, 2 / 3])  # weighed by label: no image counts as 1
    outcome = SimpleNamespace(per_image={"agreement": agreement})
    found = transfer.by_label(outcome, dataset)
    assert [found[label]["share"] for label in "ab"] == [2 / 3, 0.0]
    assert [found[label]["num_images"] for label in "ab"] == [3, 1]
    low, high = found["a"]["ci95"]
    assert low < 2 / 3 < high


def test_the_curve_has_a_row_for_each_loss_and_a_gap_where_none_was_measured(tmp_path):
    for name, rows in {
        "oct-5": [{"step": 50, "loss": 0.5}, {"step": 100, "loss": 0.4}],
        "rehearsed-100": [{"step": 100, "loss": 0.3, "rehearsal_loss": 0.2}],
    }.items():
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        with (folder / "validation_log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    found = transfer.curves(Namespace(output_dir=tmp_path), ["oct-5", "rehearsed-100"])
    lines = transfer.curve_table(found).splitlines()
    assert lines[0] == "| loss on val patients after step | 50 | 100 |"
    assert lines[2:] == [
        "| oct-5 | 0.5000 | 0.4000 |",
        "| rehearsed-100 |  | 0.3000 |",
        "| rehearsed-100, OCT |  | 0.2000 |",
    ]


def test_help_is_quick_and_has_examples():
    began = time.perf_counter()
    script = ROOT / "benchmarks" / "transfer.py"
    run = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    assert "--shares 10 100" in run.stdout
    assert time.perf_counter() - began < 1.5
