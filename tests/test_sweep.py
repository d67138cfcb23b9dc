"""Sweeps of semi_supervised.py: all arms, killed and continued, in two processes, and refusals."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_multiprocess import free_port
from test_semi_supervised import QUICK, ROOT, read_csv, write_clinic

import semi_supervised
from utils.arms import ARMS
from utils.cli import UserError

SWEEP = [
    *("--arms", *ARMS, "--label_shares", "20", "100", "--synthetic_ratios", "50", "100"),
    *("--num_seeds", "2", "--max_epochs", "1", "--max_train_steps", "4"),
]
TABLES = ("results.csv", "comparisons.csv", "runs.csv", "predictions.csv", "training.csv")
NUM_RUNS = 4 + 4 + 8 + 8 + 4 + 8


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clinic") / "data"
    return write_clinic(folder, splits=("train",) * 16 + ("val",) * 5 + ("test",) * 8)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    columns = ["file_name", "label"]
    return write_clinic(folder, splits=("",) * 18, prefix="s", seed=5, columns=columns)


def command(clinic, synthetic, output_dir, *flags):
    sources = ["--real_dir", clinic, "--synthetic_dir", synthetic, "--output_dir", output_dir]
    return [*map(str, sources), *QUICK, *SWEEP, *flags]


@pytest.fixture(scope="module")
def finished(clinic, synthetic, tmp_path_factory):
    """A whole sweep in one process, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "sweep"
    done = subprocess.run(
        [sys.executable, ROOT / "semi_supervised.py", *command(clinic, synthetic, folder)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return folder, json.loads(done.stdout), done.stderr


def test_every_run_of_every_arm_is_in_the_tables(finished):
    folder, printed, told = finished
    assert printed["num_runs"] == NUM_RUNS
    assert f"{NUM_RUNS} runs, 0 done" in told
    rows = read_csv(folder / "runs.csv")
    assert len(rows) == NUM_RUNS
    keys = {(r["arm"], r["label_share"], r["synthetic_ratio"], r["seed"]) for r in rows}
    assert len(keys) == NUM_RUNS and ("synthetic", "0", "50", "1") in keys
    scored = {
        (r["arm"], r["label_share"], r["synthetic_ratio"], r["seed"])
        for r in read_csv(folder / "results.csv")
    }
    assert scored == keys


def test_arms_see_what_their_names_say(finished):
    rows = read_csv(finished[0] / "runs.csv")

    def images(arm, share, ratio):
        (row,) = [
            r
            for r in rows
            if (r["arm"], r["label_share"], r["synthetic_ratio"], r["seed"])
            == (arm, share, ratio, "0")
        ]
        return [int(row[f"num_{kind}"]) for kind in ("real", "synthetic", "unlabeled")]

    assert images("real", "100", "0") == [48, 0, 0]
    assert images("real", "20", "0") == [9, 0, 0]  # 3 of 16 patients
    assert images("real+synthetic", "20", "100") == [9, 48, 0]
    assert images("synthetic->real", "20", "100") == [9, 0, 0]
    assert images("real+unlabeled", "20", "0") == [9, 0, 48]
    assert images("real+unlabeled+synthetic", "20", "50") == [9, 24, 48]
    real, drawn, hidden = images("synthetic", "0", "100")
    assert real == hidden == 0 and 36 <= drawn < 48  # a share of them validates


def test_the_same_patients_keep_their_labels_in_every_arm(finished, clinic):
    """Arms of one share and seed differ in the rest only: as many patients, nested."""
    counts = {(r["label_share"], r["seed"]): set() for r in read_csv(finished[0] / "runs.csv")}
    for row in read_csv(finished[0] / "runs.csv"):
        if row["label_share"] != "0":
            counts[row["label_share"], row["seed"]].add(row["num_patients"])
    assert counts["20", "0"] == {"3"} and counts["100", "1"] == {"16"}


def test_every_other_arm_is_compared_with_real_and_a_sentence_says_so(finished):
    folder, printed, _ = finished
    rows = [r for r in read_csv(folder / "comparisons.csv") if r["target"] == "macro"]
    assert {row["reference_arm"] for row in rows} == {"real"}
    main = [row for row in rows if row["metric"] == "auroc"]
    assert len(main) == len(printed["verdict"]) == 2 * 2 + 4 + 4 + 2 + 4
    for row in main:
        assert float(row["difference"]) == pytest.approx(
            float(row["value"]) - float(row["reference_value"]), abs=2e-6
        )
        assert row["p_holm"] == "" or float(row["p_holm"]) >= float(row["p"])
    assert any("With 20 % of the labels" in sentence for sentence in printed["verdict"])


def test_the_best_on_validation_patients_is_kept(finished):
    folder, printed, _ = finished
    rows = [r for r in read_csv(folder / "runs.csv") if r["label_share"] == "100"]
    groups = {}
    for row in rows:
        groups.setdefault((row["arm"], row["synthetic_ratio"]), []).append(float(row["val_auroc"]))
    best = max(groups, key=lambda key: np.mean(groups[key]))
    name = printed["classifier"]["run"]
    arm, share, ratio, _ = name.split("_")
    assert (arm.replace("-to-", "->"), ratio) == (best[0], f"ratio{best[1]}")
    assert share == "share100"
    own = folder / "runs" / name / "network" / "model.safetensors"
    assert own.read_bytes() == (folder / "classifier" / "model.safetensors").read_bytes()


def test_page_and_errors_are_there(finished):
    page = (finished[0] / "report.html").read_text()
    for text in ("Verdict", "real + synthetic", "synthetic → real", "Most confident errors"):
        assert text in page
    wrong = [r for r in read_csv(finished[0] / "predictions.csv") if r["label"] != r["predicted"]]
    assert (finished[0] / "errors.png").is_file() or not wrong


def test_a_killed_sweep_continues_to_the_same_tables(finished, clinic, synthetic, tmp_path):
    folder = tmp_path / "sweep"
    words = [sys.executable, ROOT / "semi_supervised.py", *command(clinic, synthetic, folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for wanted in (2, 9):
        run = subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(folder.glob("runs/*/run.json"))) < wanted and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not (folder / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}
    assert 9 <= len(kept) < NUM_RUNS
    done = subprocess.run(words, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    assert f"{NUM_RUNS} runs, {len(kept)} done" in done.stderr
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert_same(folder, finished[0])


def assert_same(one, other):
    for name in (*TABLES, "classifier/model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_two_processes_find_what_one_finds(finished, clinic, synthetic, tmp_path):
    flags = [
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--main_process_port", str(free_port()), "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
    ]
    subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *flags),
            *("semi_supervised.py", *command(clinic, synthetic, tmp_path / "sweep")),
        ],
        check=True,
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.DEVNULL,
    )
    assert_same(tmp_path / "sweep", finished[0])


def sweep(clinic, synthetic, output_dir, *flags):
    return semi_supervised.main(command(clinic, synthetic, output_dir, *flags))


def test_more_runs_join_those_that_are_there(clinic, synthetic, tmp_path, capsys):
    few = ["--arms", "real", "--label_shares", "100", "--num_seeds", "1"]
    base = [*map(str, ("--real_dir", clinic, "--output_dir", tmp_path / "out")), *QUICK]
    base += ["--max_train_steps", "2"]
    semi_supervised.main([*base, *few])
    (own,) = (tmp_path / "out" / "runs").glob("*/run.json")
    before = own.stat().st_mtime_ns
    capsys.readouterr()
    semi_supervised.main([*base, "--arms", "real", "--label_shares", "20", "100"])
    assert json.loads(capsys.readouterr().out)["num_runs"] == 2
    assert own.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "out" / "options.json").read_text())["flags"]["label_shares"] == [
        *(20, 100)
    ]
    with pytest.raises(UserError, match="--max_train_steps: 2 before, 3 now"):
        semi_supervised.main([*base[:-1], "3", *few])


def test_equal_subsets_are_told(clinic, tmp_path, capsys):
    base = [*map(str, ("--real_dir", clinic, "--output_dir", tmp_path / "out")), *QUICK]
    semi_supervised.main([*base, "--max_train_steps", "1", "--label_shares", "1", "2"])
    notes = json.loads((tmp_path / "out" / "results.json").read_text())["notes"]
    assert any("1 % and 2 % of the labels are the same 1 patients" in note for note in notes)


def test_arms_are_compared_with_one_that_has_a_ratio(clinic, synthetic, tmp_path, capsys):
    flags = ["--arms", "real+synthetic", "synthetic", "--synthetic_ratios", "100"]
    sweep(clinic, synthetic, tmp_path / "out", *flags, "--max_train_steps", "1")
    assert len(json.loads(capsys.readouterr().out)["verdict"]) == 2  # at both label shares


def test_the_plan_counts_runs_and_time_and_writes_nothing(clinic, synthetic, tmp_path, capsys):
    sweep(clinic, synthetic, tmp_path / "out", "--plan")
    plan = json.loads(capsys.readouterr().out)
    assert (plan["num_runs"], plan["num_done"]) == (NUM_RUNS, 0)
    assert plan["runs_by_arm"]["real+synthetic"] == 8
    assert plan["estimated_seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_too_few_synthetic_images_for_a_ratio_are_told(clinic, synthetic, tmp_path):
    with pytest.raises(UserError, match=r"--synthetic_ratios 200: that is 96 images, .* has 54"):
        sweep(clinic, synthetic, tmp_path / "out", "--synthetic_ratios", "200")


def test_a_ratio_of_next_to_nothing_is_refused(clinic, synthetic, tmp_path):
    with pytest.raises(UserError, match="--synthetic_ratios 5: that is 2 images, and fewer than"):
        sweep(clinic, synthetic, tmp_path / "out", "--synthetic_ratios", "5")


def test_a_synthetic_set_without_one_of_the_labels_is_refused(clinic, synthetic, tmp_path):
    rows = read_csv(synthetic / "metadata.csv")
    part = tmp_path / "part"
    (part / "images").mkdir(parents=True)
    with (part / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            if row["label"] != "stripes":
                os.link(synthetic / row["file_name"], part / row["file_name"])
                writer.writerow(row)
    with pytest.raises(UserError, match="--synthetic_dir has no image of stripes"):
        sweep(clinic, part, tmp_path / "out")


def test_scans_of_test_patients_are_refused_in_every_source(clinic, synthetic, tmp_path):
    with pytest.raises(UserError, match="images of --synthetic_dir are of test patients"):
        sweep(clinic, clinic, tmp_path / "out")
    stolen = write_clinic(tmp_path / "stolen", splits=("train",) * 29, prefix="x")
    with pytest.raises(UserError, match="24 images of --unlabeled_dir are test images"):
        sweep(clinic, synthetic, tmp_path / "out", "--unlabeled_dir", str(stolen))
    assert not (tmp_path / "out").exists()


def test_more_images_without_labels_are_learned_from(clinic, synthetic, tmp_path, capsys):
    more = write_clinic(
        tmp_path / "more", splits=("",) * 4, prefix="q", columns=["file_name"], seed=8
    )
    flags = ["--arms", "real+unlabeled", "--label_shares", "100", "--max_train_steps", "1"]
    base = [*map(str, ("--real_dir", clinic, "--unlabeled_dir", more)), *QUICK, *flags]
    semi_supervised.main([*base, "--output_dir", str(tmp_path / "out")])
    printed = json.loads(capsys.readouterr().out)
    assert printed["training"]["num_unlabeled"] == 48 + 12


def test_a_frozen_backbone_is_passed_once_and_probed(clinic, synthetic, tmp_path, capsys):
    import torch
    from torchvision import models

    torch.manual_seed(0)
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "weights.pth")
    flags = ["--backbone", "resnet18", "--backbone_weights", str(tmp_path / "weights.pth")]
    arms = ["--arms", "real", "real+synthetic", "synthetic"]
    sweep(clinic, synthetic, tmp_path / "out", *flags, *arms, "--freeze_backbone")
    first = capsys.readouterr()
    assert "features: train" in first.err
    printed = json.loads(first.out)
    assert printed["num_runs"] == 4 + 8 + 4 and printed["training"]["steps"] == 1
    assert printed["macro"]["auroc"]["value"] > 0.8
    sweep(clinic, synthetic, tmp_path / "again", *flags, *arms, "--freeze_backbone")
    assert "features: train" not in capsys.readouterr().err
    assert_same_tables(tmp_path / "again", tmp_path / "out")
    with pytest.raises(SystemExit):
        sweep(clinic, synthetic, tmp_path / "no", *flags, "--freeze_backbone")
    assert "synthetic->real trains the whole network" in capsys.readouterr().err


def assert_same_tables(one: Path, other: Path):
    for name in TABLES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_probes_alone_have_a_page(clinic, tmp_path, capsys):
    import torch
    from torchvision import models

    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "weights.pth")
    flags = ["--backbone", "resnet18", "--backbone_weights", str(tmp_path / "weights.pth")]
    base = [*map(str, ("--real_dir", clinic, "--output_dir", tmp_path / "out")), *QUICK]
    semi_supervised.main([*base, *flags, "--freeze_backbone"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_probabilities_are_calibrated_on_validation_patients(finished):
    rows = read_csv(finished[0] / "runs.csv")
    temperatures = {float(row["temperature"]) for row in rows}
    assert len(temperatures) > 5 and all(0.05 <= t <= 20 for t in temperatures)
