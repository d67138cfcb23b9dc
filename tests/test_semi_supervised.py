"""semi_supervised.py: its flags, what it refuses, what it writes."""

import csv
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import semi_supervised
from utils.cli import UserError
from utils.dataset import Dataset, Record
from utils.diagnosis_data import divide, targets_of
from utils.patient_division import patients_of

ROOT = Path(__file__).parents[1]
LABELS = ("bright left", "bright right", "stripes")
QUICK = [
    *("--resolution", "32", "--resize_mode", "stretch", "--batch_size", "8", "--device", "cpu"),
    *("--num_workers", "0", "--num_resamples", "50", "--offline"),
]


def draw(kinds, rng):
    """A noisy gray image with the pattern of each kind: 0 left half, 1 right half, 2 stripes."""
    pixels = rng.normal(70, 15, (32, 40))
    for kind in kinds:
        if kind == 2:
            pixels[::4] += 70
            pixels[1::4] += 70
        else:
            pixels[:, 20 * kind : 20 * (kind + 1)] += 60
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_clinic(
    folder,
    *,
    splits=("train",) * 6 + ("val",) * 2 + ("test",) * 2,
    prefix="p",
    seed=0,
    kinds_of=lambda patient, image: [image % 3],
    columns=None,
):
    """A dataset folder: a patient per entry of ``splits``, three images of each."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = []
    for patient, split in enumerate(splits):
        for image in range(3):
            kinds = kinds_of(patient, image)
            name = f"images/{prefix}{patient}-{image}.png"
            draw(kinds, rng).save(folder / name)
            label = ";".join(LABELS[kind] for kind in kinds)
            rows.append(
                {
                    "file_name": name,
                    "label": label,
                    "patient_id": f"{prefix}{patient}",
                    "split": split,
                }
            )
    columns = columns or list(rows[0])
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(real_dir, output_dir, *flags):
    return semi_supervised.main(
        ["--real_dir", str(real_dir), "--output_dir", str(output_dir), *QUICK, *flags]
    )


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    return write_clinic(
        tmp_path_factory.mktemp("clinic") / "data",
        splits=("train",) * 16 + ("val",) * 3 + ("test",) * 8,
    )


@pytest.fixture(scope="module")
def finished(clinic, tmp_path_factory):
    """A run that has learned, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "diagnosis"
    out = folder.parent / "stdout.json"
    with out.open("w") as file:
        subprocess.run(
            [
                sys.executable,
                ROOT / "semi_supervised.py",
                "--real_dir",
                clinic,
                "--output_dir",
                folder,
                *QUICK,
                "--max_epochs",
                "8",
                "--arms",
                "real",
            ],
            check=True,
            stdout=file,
            cwd=ROOT,
        )
    return folder, json.loads(out.read_text())


def test_help_answers_at_once_and_without_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = (
        "import sys, runpy\nsys.argv = ['semi_supervised.py', '--help']\n"
        "try:\n    runpy.run_path('semi_supervised.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "python semi_supervised.py --real_dir" in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1.5


def test_the_flags_are_these():
    parser = semi_supervised.build_parser()
    flags = {name for action in parser._actions for name in action.option_strings}
    assert flags == {
        *("-h", "--help", "--real_dir", "--test_dir", "--arms", "--task", "--image_column"),
        *("--label_column", "--patient_column", "--by_image", "--skip_invalid", "--backbone"),
        *("--backbone_weights", "--resolution", "--resize_mode", "--batch_size", "--max_epochs"),
        *("--max_train_steps", "--learning_rate", "--weight_decay", "--label_smoothing"),
        *("--class_balance", "--augment", "--random_flip", "--ema_decay"),
        *("--early_stopping_patience", "--output_dir", "--seed", "--device"),
        *("--mixed_precision", "--num_workers", "--offline", "--overwrite", "--num_resamples"),
        *("--synthetic_dir", "--unlabeled_dir", "--label_shares", "--synthetic_ratios"),
        *("--num_seeds", "--plan", "--unlabeled_method", "--pseudo_threshold"),
        *("--unlabeled_ratio", "--unlabeled_weight", "--freeze_backbone", "--layer_decay"),
        *("--drop_path", "--distribution_alignment"),
    }
    args = parser.parse_args(["--real_dir", str(ROOT), "--output_dir", "out"])
    assert (args.resolution, args.backbone, args.backbone_weights) == (224, "small", "none")
    assert args.augment == "standard" and not args.random_flip


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--arms", "synthetic"], "--arms synthetic needs --synthetic_dir"),
        (["--arms", "synthetic-"], "quote it in the shell: 'synthetic->real'"),
        (["--arms", "fake"], "--arms"),
        (["--synthetic_dir", str(ROOT)], "--synthetic_dir goes with an arm"),
        (["--synthetic_ratios", "100"], "--synthetic_ratios goes with an arm"),
        (["--unlabeled_dir", str(ROOT)], "--unlabeled_dir goes with an arm"),
        (["--label_shares", "0"], "--label_shares"),
        (["--label_shares", "101"], "--label_shares"),
        (["--label_shares", "5", "5"], "--label_shares names a value twice"),
        (["--num_seeds", "0"], "--num_seeds"),
        (["--arms", "real+unlabeled", "--pseudo_threshold", "0.4"], "--pseudo_threshold"),
        (["--unlabeled_ratio", "2"], "--unlabeled_ratio goes with an arm that uses unlabeled"),
        (["--unlabeled_method", "mixmatch"], "--unlabeled_method"),
        (["--num_resamples", "1"], "--num_resamples"),
        (["--backbone", "vit"], "--backbone vit takes its sizes from --backbone_weights"),
        (["--backbone", "vit-100-2-8"], "multiple of 64"),
        (["--drop_path", "0.1"], "--layer_decay and --drop_path are for vision transformers"),
        (["--freeze_backbone"], "--freeze_backbone needs --backbone_weights"),
        (["--arms", "real", "real"], "--arms"),
        (["--backbone", "resnet19"], "--backbone"),
        (["--backbone_weights", "no/such.pth"], "--backbone_weights"),
        (["--backbone_weights", "IMAGENET1K_V1"], "--backbone_weights"),
        (["--resolution", "100"], "--resolution"),
        (["--resolution", "24"], "--resolution"),
        (["--resize_mode", "squeeze"], "--resize_mode"),
        (["--batch_size", "1"], "--batch_size"),
        (["--learning_rate", "0"], "--learning_rate"),
        (["--ema_decay", "1"], "--ema_decay"),
        (["--ema_decay", "1.5"], "--ema_decay"),
        (["--augment", "strong"], "--augment"),
        (["--task", "regression"], "--task"),
        (["--max_train_steps", "0"], "--max_train_steps"),
        (["--seed", "-1"], "--seed"),
        (["--test_dir", "/no/such/folder"], "--test_dir"),
        (["--real", "x"], "--real"),
        (["--output_dir", __file__], "--output_dir"),
    ],
)
def test_a_bad_flag_ends_with_status_2_and_its_name(flags, named, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        semi_supervised.main(
            ["--real_dir", str(ROOT), "--output_dir", str(tmp_path / "out"), *flags]
        )
    assert end.value.code == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_learns_and_reports_every_diagnosis(finished):
    folder, printed = finished
    assert printed["macro"]["accuracy"]["value"] > 0.8
    assert printed["macro"]["auroc"]["value"] > 0.9
    rows = read_csv(folder / "results.csv")
    assert list(rows[0]) == [
        *("arm", "label_share", "synthetic_ratio", "seed", "target", "metric", "value"),
        *("ci95_low", "ci95_high", "n", "n_positive", "reason"),
    ]
    found = {(row["target"], row["metric"]): row for row in rows}
    metrics = (
        *("auroc", "auprc", "sensitivity_at_95_specificity", "accuracy", "balanced_accuracy"),
        *("f1", "sensitivity", "specificity"),
    )
    named = {(t, m) for t in (*LABELS, "macro") for m in metrics}
    assert set(found) == named | {("macro", "ece")}
    row = found["stripes", "auroc"]
    assert (row["arm"], row["label_share"], row["synthetic_ratio"]) == ("real", "100", "0")
    assert float(row["ci95_low"]) <= float(row["value"]) <= float(row["ci95_high"])
    assert (row["n"], row["n_positive"]) == ("24", "8")
    assert printed["macro"]["f1"]["value"] == pytest.approx(
        float(found["macro", "f1"]["value"]), abs=1e-6
    )
    assert read_csv(folder / "comparisons.csv") == []
    assert (folder / "comparisons.csv").read_text().startswith("arm,reference_arm,")


def test_predictions_are_those_of_the_saved_classifier(finished, clinic):
    from utils.classifier import Classifier

    folder, printed = finished
    judge = Classifier.load(folder / "classifier")
    assert judge.labels == list(LABELS)
    assert judge.sha256 == printed["classifier"]["sha256"]
    rows = read_csv(folder / "predictions.csv")
    assert list(rows[0]) == [
        *("file_name", "patient_id", "label", "predicted"),
        *(f"prob_{name}" for name in LABELS),
    ]
    probs = judge.predict([Image.open(clinic / row["file_name"]) for row in rows])
    written = [[float(row[f"prob_{name}"]) for name in LABELS] for row in rows]
    np.testing.assert_allclose(probs, written, atol=2e-6)
    right = np.mean([row["predicted"] == row["label"] for row in rows])
    assert right == pytest.approx(printed["macro"]["accuracy"]["value"])


def test_results_and_page_hold_the_tables(finished):
    folder, printed = finished
    results = json.loads((folder / "results.json").read_text())
    assert results["data"]["train"] == {
        "images": 48,
        "patients": 16,
        "labels": dict.fromkeys(LABELS, 16),
    }
    assert [row["diagnosis"] for row in results["table"]] == [*LABELS, "all diagnoses"]
    assert list(results["table"][0]) == ["diagnosis", "images", "AUROC", "AUPRC", "accuracy", "F1"]
    (cell,) = results["arms"]["real"]
    assert cell["scores"]["macro"] == printed["macro"] and cell["label_share"] == 100
    blurred = results["robustness"]["blurred, sigma 1 px at 128 px"]
    assert 0.5 < blurred["accuracy"] <= 1
    page = (folder / "report.html").read_text()
    for text in ("Scores by diagnosis", "Confusion matrix", "ROC curves", "<svg", *LABELS):
        assert text in page
    assert "https://" not in page and 'src="http' not in page
    options = json.loads((folder / "options.json").read_text())
    assert options["flags"]["max_epochs"] == 8 and options["data_hash"]
    history = read_csv(folder / "training.csv")
    assert len(history) == results["training"]["epochs"]


def test_a_finished_run_is_replaced_only_with_overwrite(finished, clinic, capsys):
    folder, _ = finished
    with pytest.raises(UserError, match="--overwrite"):
        run(clinic, folder, "--max_train_steps", "1")
    before = (folder / "predictions.csv").read_bytes()
    saved = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run(clinic, folder, "--max_train_steps", "1", "--overwrite")
    assert json.loads(capsys.readouterr().out)["training"]["steps"] == 1
    assert (folder / "predictions.csv").read_bytes() != before
    for path, content in saved.items():  # other tests read this run
        path.write_bytes(content)


def test_a_folder_that_something_else_filled_is_left_alone(clinic, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"this script|another script|damaged"):
        run(clinic, tmp_path)
    for text in ('{"flags": {"prompt": "x"}}', "[]", "no JSON"):
        (tmp_path / "options.json").write_text(text)
        with pytest.raises(UserError, match=r"this script|another script|damaged"):
            run(clinic, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_same_seed_same_bytes(clinic, tmp_path):
    names = (
        "classifier/model.safetensors",
        "classifier/config.json",
        "predictions.csv",
        "results.csv",
        "training.csv",
    )
    for name in ("a", "b"):
        run(clinic, tmp_path / name, "--max_train_steps", "3", "--seed", "5")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_several_labels_an_image_are_learned_as_multi_label(tmp_path, capsys):
    def both(patient, image):
        return [image] if image == 2 or patient % 2 else [image, 2]

    data = write_clinic(
        tmp_path / "data", splits=("train",) * 12 + ("val",) * 2 + ("test",) * 6, kinds_of=both
    )
    run(data, tmp_path / "out", "--max_epochs", "6")
    printed = json.loads(capsys.readouterr().out)
    assert printed["task"] == "multilabel"
    assert printed["macro"]["auroc"]["value"] > 0.75
    assert 0 <= printed["macro"]["exact_match"]["value"] <= 1
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert any(";" in row["label"] for row in rows)
    sums = [sum(float(row[f"prob_{name}"]) for name in LABELS) for row in rows]
    assert max(abs(total - 1) for total in sums) > 0.05  # sigmoids, no softmax
    assert "false alarm" in (tmp_path / "out" / "report.html").read_text()


def test_a_test_set_of_its_own_is_used_and_a_split_is_made(tmp_path, capsys):
    real = write_clinic(tmp_path / "real", splits=("",) * 10)
    other = write_clinic(tmp_path / "other", splits=("",) * 4, prefix="q", seed=9)
    run(real, tmp_path / "out", "--test_dir", str(other), "--max_train_steps", "2")
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["data"]["test"]["images"] == 12
    assert printed["data"]["train"]["images"] + printed["data"]["val"]["images"] == 30
    assert "patients were divided at random with seed 0" in captured.err
    tested = {row["patient_id"] for row in read_csv(tmp_path / "out" / "predictions.csv")}
    assert tested == {"q0", "q1", "q2", "q3"}


@pytest.mark.parametrize(
    ("prefix", "seed", "message"),
    [
        ("p", 9, "patients are in train and in test"),
        ("q", 0, "9 images of --real_dir are test images"),
    ],
)
def test_a_patient_or_an_image_on_both_sides_is_refused(tmp_path, prefix, seed, message):
    real = write_clinic(tmp_path / "real", splits=("train",) * 4 + ("val",) * 2)
    other = write_clinic(tmp_path / "other", splits=("",) * 3, prefix=prefix, seed=seed)
    with pytest.raises(UserError, match=message):
        run(real, tmp_path / "out", "--test_dir", str(other))
    assert not (tmp_path / "out" / "results.json").exists()


def test_broken_data_is_refused_before_anything_is_written(tmp_path):
    data = write_clinic(tmp_path / "data")
    (data / "images" / "p0-0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"metadata\.csv:2"):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_label_without_test_image_has_a_dash_and_a_reason(tmp_path):
    data = write_clinic(
        tmp_path / "data", kinds_of=lambda patient, image: [image % 2 if patient > 7 else image]
    )
    run(data, tmp_path / "out", "--max_train_steps", "1")
    rows = read_csv(tmp_path / "out" / "results.csv")
    (row,) = [r for r in rows if (r["target"], r["metric"]) == ("stripes", "auroc")]
    assert row["value"] == "" and row["n_positive"] == "0"
    assert row["reason"] == "no image of the test set has this label"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (cell,) = results["arms"]["real"]
    assert cell["scores"]["stripes"]["auroc"]["value"] is None
    assert (
        "no image of the test set has this label" in (tmp_path / "out" / "report.html").read_text()
    )


def test_a_torchvision_backbone_starts_from_a_local_file(clinic, tmp_path, capsys):
    import torch
    from torchvision import models

    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "weights.pth")
    run(
        *(clinic, tmp_path / "out", "--backbone", "resnet18", "--max_train_steps", "1"),
        *("--backbone_weights", str(tmp_path / "weights.pth")),
    )
    captured = capsys.readouterr()
    assert "resnet18 starts from weights.pth (sha256" in captured.err
    config = json.loads((tmp_path / "out" / "classifier" / "config.json").read_text())
    assert config["backbone"] == "resnet18"
    assert config["initial_weights"].startswith("weights.pth (sha256 ")


def records(*rows):
    """Records from (labels, patient, split)."""
    return Dataset(
        [
            Record(f"{n}.png", "", tuple(labels.split(";")), patient, split, {}, f"m.csv:{n}", "")
            for n, (labels, patient, split) in enumerate(rows, start=2)
        ],
        None,
    )


def split_up(real, test=None, **changes):
    options = {"task": "auto", "seed": 0, "by_image": False} | changes
    return divide(real, test, **options)


GOOD = (
    ("a", "1", "train"),
    ("b", "2", "train"),
    ("a", "3", "val"),
    ("b", "4", "test"),
)


def test_the_column_split_is_used_as_it_is():
    data = split_up(records(*GOOD))
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 1, 1]
    assert data.labels == ("a", "b") and not data.multi_label
    assert data.counts()["test"] == {"images": 1, "patients": 1, "labels": {"a": 0, "b": 1}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("c", "5", "test"), r"test has diagnoses that train has not.*c \(1\)"),
        (("c", "5", "val"), r"val has diagnoses that train has not.*c \(1\)"),
        (("a", "1", "test"), r"1 patients are in train and in test.*1 \(m.csv:2, m.csv:6\)"),
        (("a", "1", "val"), "1 patients are in train and in val"),
        (("a", "3", "test"), "1 patients are in val and in test"),
        (("a", "5", None), r"m.csv:6: no split here"),
    ],
)
def test_a_division_that_makes_the_score_meaningless_is_refused(row, message):
    with pytest.raises(UserError, match=message):
        split_up(records(*GOOD, row))


def test_missing_splits_are_told():
    with pytest.raises(UserError, match="no row with split test: give --test_dir"):
        split_up(records(*GOOD[:3]))
    with pytest.raises(UserError, match="no row with split train"):
        split_up(records(*GOOD[2:]))
    with pytest.raises(UserError, match="--test_dir has splits, but no row with split test"):
        split_up(records(*GOOD), records(("a", "9", "train")))


def test_one_diagnosis_alone_is_refused():
    with pytest.raises(UserError, match=r"only one diagnosis \(a\)"):
        split_up(records(*((("a", p, s)) for _, p, s in GOOD)))


def test_task_must_fit_the_labels():
    several = records(("a;b", "1", "train"), *GOOD[1:])
    assert split_up(several).multi_label
    assert split_up(records(*GOOD), task="multilabel").multi_label
    with pytest.raises(UserError, match=r"--task multiclass, but 1 images .*m.csv:2 \(a;b\)"):
        split_up(several, task="multiclass")


def test_a_made_split_parts_patients_by_seed_and_covers_every_label():
    rows = [("ab"[n % 2], str(n // 3), None) for n in range(120)]
    data = split_up(records(*rows))
    patients = [{r.patient_id for r in part} for part in (data.train, data.val, data.test)]
    assert sum(map(len, patients)) == 40 == len(set.union(*patients))
    for part in (data.train, data.val, data.test):
        assert {label for r in part for label in r.labels} == {"a", "b"}
    assert 20 <= len(data.test) <= 28 and 14 <= len(data.val) <= 22
    assert split_up(records(*rows)).test == data.test
    assert split_up(records(*rows), seed=1).test != data.test


def test_val_is_drawn_from_the_patients_of_train_where_it_is_missing():
    rows = [("ab"[n % 2], str(n), "train" if n < 40 else "test") for n in range(50)]
    data = split_up(records(*rows))
    assert len(data.test) == 10 and len(data.val) == 6 and len(data.train) == 34
    assert "No split val" in data.notes[0]


def test_images_without_patient_are_split_only_when_told_to():
    rows = [("ab"[n % 2], None, None) for n in range(40)]
    with pytest.raises(UserError, match="--by_image"):
        split_up(records(*rows))
    data = split_up(records(*rows), by_image=True)
    assert len(data.train) + len(data.val) + len(data.test) == 40
    assert any("cannot be found out" in note for note in data.notes)
    assert len(set(patients_of(data.train))) == len(data.train)


def test_targets_follow_the_order_of_the_labels():
    data = records(("b", "1", None), ("a;c", "2", None))
    np.testing.assert_array_equal(targets_of(data.records, ("a", "b", "c")), [[0, 1, 0], [1, 0, 1]])
