"""A handful of kills; python -m benchmarks.kill_and_resume makes as many as one likes."""

import json
import random
import shutil

import pytest

from benchmarks import kill_and_resume
from benchmarks.kill_and_resume import Tally, fingerprints, inspect, parse_args

KILLS = 3


@pytest.fixture(scope="module")
def results(tiny_pipeline, toy_dataset, tmp_path_factory):
    """A run of the script in its own folder, about a minute; its status and what it wrote."""
    folder = tmp_path_factory.mktemp("kills") / "runs"
    flags = ["--output_dir", folder, "--model", tiny_pipeline, "--train_data_dir", toy_dataset]
    flags += ["--num_kills", KILLS, "--kills_per_run", KILLS, "--minutes", 5, "--seed", 2]
    flags += ["--max_train_steps", 8]
    status = kill_and_resume.main([str(flag) for flag in flags])
    return folder, status, json.loads((folder / "results.json").read_text())


def test_a_killed_and_resumed_run_has_the_bytes_of_one_that_was_not(results):
    folder, status, found = results
    assert sum(found["kills"].values()) >= 1
    assert found["differing"] == []
    assert found["corrupt"] == []
    assert found["lost"] == 0
    assert status == 0
    assert fingerprints(folder / "run-1", 8) == fingerprints(folder / "uninterrupted", 8)


def test_a_difference_a_broken_and_a_lost_checkpoint_are_found(results, tmp_path):
    folder, _, _ = results
    run = tmp_path / "run"
    shutil.copytree(folder / "run-1", run)
    args = parse_args(["--output_dir", str(tmp_path / "new")])
    tally = Tally()
    assert inspect(args, run, tally, had=True)
    assert tally.corrupt == []
    weights = run / "checkpoint-8" / "unet_ema" / kill_and_resume.WEIGHTS
    weights.write_bytes(bytes(weights.stat().st_size))  # of the right size, and no safetensors
    inspect(args, run, tally, had=True)
    assert len(tally.corrupt) == 1
    assert fingerprints(run, 8) != fingerprints(folder / "run-1", 8)
    (run / "checkpoint-8" / "training_state.json").unlink()
    assert not inspect(args, run, tally, had=True)
    assert tally.lost == 1


def test_the_moments_follow_from_the_seed():
    def draw(seed):
        rng = random.Random(seed)
        return [kill_and_resume.draw_moment(rng, kill_and_resume.Pace(1, 0.5)) for _ in range(50)]

    assert draw(1) == draw(1) != draw(2)
    assert {aim for aim, _ in draw(1)} == set(kill_and_resume.AIMS)
    assert all(0 <= delay <= (4 if aim == "step" else 0.5) for aim, delay in draw(1))
