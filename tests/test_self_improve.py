import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from improvement_toys import (
    always_says,
    save_captioner,
    save_classifier,
    write_clinic,
    write_ratings,
)

import self_improve
from utils.cli import UserError
from utils.dataset import load_dataset, write_dataset
from utils.prompt_template import template_of
from utils.resumable_run import only_writer
from utils.reward_rounds import best_and_worst, rated_pairs, reward_weights
from utils.run_folder import write_csv

ROOT = Path(__file__).parents[1]
DRAWING = "--num_inference_steps 2 --guidance_scale 1 --mixed_precision no"
GENEROUS = ("recall_drop", "similarity_rise", "agreement_drop", "loss_rise", "distance")


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """A clinic, a judge and another classifier, a report model, unlabeled scans, ratings."""
    folder = tmp_path_factory.mktemp("clinic")
    real, labels = write_clinic(folder / "real")
    save_classifier(folder / "judge", labels, seed=1)
    save_classifier(folder / "classifier", labels, seed=2)
    always_says(folder / "classifier", "normal")
    save_captioner(folder / "captioner")
    write_unlabeled(folder / "unlabeled", write_clinic(folder / "other", population=7)[0])
    scans = [record for record in load_dataset(real) if record.split == "train"]
    write_ratings(folder / "ratings", scans)
    return folder


def write_unlabeled(folder, source, **cells):
    """Scans of another clinic's first patients without texts."""
    records = list(load_dataset(source))[:10]
    (folder / "images").mkdir(parents=True)
    rows = []
    for record in records:
        shutil.copy(record.path, folder / "images")
        row = {"file_name": record.file_name, "patient_id": f"other {record.patient_id}"}
        rows.append(row | cells)
    write_dataset(folder, rows)
    return folder


def command(clinic, pipeline, output_dir, *flags):
    generous = [part for name in GENEROUS for part in (f"--max_{name}", "9")]
    return [
        *("--model", str(pipeline), "--real_dir", str(clinic / "real"), "--offline"),
        *("--judge", str(clinic / "judge"), "--num_rounds", "1", "--max_train_steps", "2"),
        *("--train_batch_size", "2", "--num_eval_images", "12", "--learning_rate", "1e-3"),
        *("--drawing_flags", DRAWING, "--select_by", "agreement", "--num_workers", "0"),
        *("--device", "cpu", "--output_dir", str(output_dir), *generous, *flags),
    ]


def run(clinic, pipeline, output_dir, capsys, *flags):
    self_improve.main(command(clinic, pipeline, output_dir, *flags))
    return json.loads(capsys.readouterr().out)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Two steps are enough to lower the loss of a model that was never trained.
PAIRS = ("--mode", "synthetic_pairs", "--num_images", "24", "--select_by", "denoising_loss")


def pair_flags(clinic):
    networks = (
        "--captioner",
        str(clinic / "captioner"),
        "--classifier",
        str(clinic / "classifier"),
    )
    return (*PAIRS, *networks)


@pytest.fixture(scope="module")
def pairs_run(clinic, tiny_pipeline, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("pairs") / "run"
    self_improve.main(command(clinic, tiny_pipeline, output_dir, *pair_flags(clinic)))
    return output_dir


def test_of_the_drawn_pairs_those_are_learned_from_whose_text_label_and_image_agree(pairs_run):
    found = rows_of(pairs_run / "round-1" / "agreement.csv")
    kept = [r for r in found if r["label_agrees"] == r["text_agrees"] == "true"]
    assert 0 < len(kept) < len(found) == 24
    assert {row["label"] for row in kept} == {"normal"}  # the one label that the classifier sees
    mix = rows_of(pairs_run / "round-1" / "mix" / "metadata.csv")
    synthetic = [row for row in mix if row["origin"] == "synthetic"]
    assert [row["text"] for row in synthetic] == [row["text"] for row in kept]
    assert {row["split"] for row in mix} == {"train"}
    assert sum(row["origin"] == "real" for row in mix) == 16


def test_a_round_is_a_row_beside_the_first_model(pairs_run):
    first, last = rows_of(pairs_run / "rounds.csv")
    assert (first["round"], last["round"]) == ("0", "1")
    assert first["fid_change"] == ""
    change = float(last["fid"]) - float(first["fid"])
    assert float(last["fid_change"]) == pytest.approx(change)
    assert float(last["fid_low"]) < change < float(last["fid_high"])
    assert float(first["distance_to_first"]) == 0 < float(last["distance_to_first"])
    assert {first["is_best"], last["is_best"]} == {"True", "False"}


def test_the_output_is_the_pipeline_of_the_best_round(pairs_run):
    result = json.loads((pairs_run / "results.json").read_text())
    assert result["best_round"] == 1
    name = "unet/diffusion_pytorch_model.safetensors"
    source = pairs_run / "round-1" / "pipeline"
    assert (pairs_run / "pipeline" / name).read_bytes() == (source / name).read_bytes()
    StableDiffusionPipeline.from_pretrained(pairs_run / "pipeline")
    assert not list(source.glob("checkpoint-*"))


def test_first_and_best_model_are_measured_once_on_test_patients(pairs_run, clinic):
    test = json.loads((pairs_run / "results.json").read_text())["test"]
    assert set(test["compared"]) == set(test["first"]) == set(test["best"])
    change = test["best"]["fid"] - test["first"]["fid"]
    assert test["compared"]["fid"]["difference"] == pytest.approx(change)
    real = load_dataset(clinic / "real")
    texts = {split: {r.text for r in real if r.split == split} for split in ("val", "test")}
    for folder, split in (("test/round-0", "test"), ("test/round-1", "test"), ("round-1", "val")):
        drawn = folder if folder.startswith("test") else f"{folder}/held_out"
        assert {record.text for record in load_dataset(pairs_run / drawn)} <= texts[split]
    page = (pairs_run / "report.html").read_text(encoding="utf-8")
    assert "Texts and scans of test patients" in page


def test_the_page_and_the_sheets_are_there(pairs_run):
    page = (pairs_run / "report.html").read_text(encoding="utf-8")
    assert "Round by round" in page
    assert "own images whose text, label and image agree" in page
    assert page.count("<img") >= 12
    for number in (0, 1):
        assert (pairs_run / f"round-{number}" / "sheet.png").stat().st_size > 1000


def test_killed_and_continued_it_ends_as_if_it_had_not_been(
    pairs_run, clinic, tiny_pipeline, tmp_path
):
    output_dir = tmp_path / "run"
    argv = command(clinic, tiny_pipeline, output_dir, *pair_flags(clinic))
    kill_at(argv, output_dir, "round-1/drawn/manifest_parts/*.csv")
    self_improve.main(argv)
    for name in (
        "rounds.csv",
        "round-1/mix/metadata.csv",
        "round-1/pipeline/unet/diffusion_pytorch_model.safetensors",
        "round-1/held_out/metadata.csv",
        "round-1/sheet.png",
    ):
        found, wanted = ((folder / name).read_bytes() for folder in (output_dir, pairs_run))
        where = {str(pairs_run): str(output_dir)}
        for old, new in where.items():
            wanted = wanted.replace(old.encode(), new.encode())
        assert found == wanted, name


def kill_at(argv, output_dir, sign):
    """Start, and kill it and the stage it waits for as soon as a file is there."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "self_improve.py"), *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        limit = time.monotonic() + 600
        while not list(output_dir.glob(sign)):
            assert process.poll() is None, "ended before it was killed"
            assert time.monotonic() < limit
            time.sleep(0.01)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(process.pid, signal.SIGKILL)
        for child in map(int, children):
            os.killpg(child, signal.SIGKILL)  # with what it has started
    while is_held(output_dir):  # until the last of them is gone
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_held(folder):
    try:
        with only_writer(folder):
            return False
    except UserError:
        return True


def test_a_finished_run_starts_nothing_again(pairs_run, clinic, tiny_pipeline, capsys):
    before = {path: path.stat().st_mtime_ns for path in pairs_run.glob("round-*/*/*")}
    run(clinic, tiny_pipeline, pairs_run, capsys, *pair_flags(clinic))
    assert {path: path.stat().st_mtime_ns for path in pairs_run.glob("round-*/*/*")} == before


def test_other_flags_do_not_continue_a_run(pairs_run, clinic, tiny_pipeline):
    argv = command(clinic, tiny_pipeline, pairs_run, *pair_flags(clinic), "--max_added_share", "1")
    with pytest.raises(UserError, match=r"--max_added_share: 0\.5 before, 1\.0 now"):
        self_improve.main(argv)


def unlabeled_flags(clinic, source=None):
    source = source or clinic / "unlabeled"
    return (
        *("--mode", "unlabeled", "--unlabeled_dir", str(source)),
        *("--captioner", str(clinic / "captioner")),
    )


def test_unlabeled_scans_train_with_a_sure_report_or_without_text(
    clinic, tiny_pipeline, tmp_path, capsys
):
    output_dir = tmp_path / "run"
    flags = (*unlabeled_flags(clinic), "--max_added_share", "0.25", "--min_confidence", "-1.5")
    result = run(clinic, tiny_pipeline, output_dir, capsys, *flags)
    written = rows_of(output_dir / "captioned" / "manifest.csv")
    mix = rows_of(output_dir / "round-1" / "mix" / "metadata.csv")
    sure = [row for row in written if float(row["confidence"]) >= -1.5 and row["text"]]
    assert [r["text"] for r in mix if r["origin"] == "pseudo_report"] == [r["text"] for r in sure]
    without = [row for row in mix if row["origin"] == "no_report"]
    assert len(without) == 10 - len(sure)
    assert {row["text"] for row in without} <= {""}
    weights = {kind: [float(r["weight"]) for r in mix if r["origin"] == kind] for kind in ("real",)}
    total = sum(float(row["weight"]) for row in mix)
    assert sum(weights["real"]) / total == pytest.approx(0.75, abs=1e-4)
    assert result["rounds"] == 1


def test_ratings_become_preferences(clinic, tiny_pipeline, tmp_path, capsys):
    output_dir = tmp_path / "run"
    flags = ("--mode", "rlhf", "--method", "dpo", "--ratings", str(clinic / "ratings"))
    flags += ("--classifier", str(clinic / "classifier"), "--num_images", "16")
    flags += ("--accept_weak_reward",)  # of untrained networks it foresees nothing
    result = run(clinic, tiny_pipeline, output_dir, capsys, *flags, "--images_per_prompt", "2")
    assert result["method"] == "dpo"
    first, last = rows_of(output_dir / "rounds.csv")
    assert 1 <= float(first["reward"]) <= 5
    assert float(first["held_out_reward"]) != float(first["reward"])
    assert float(last["distance_to_first"]) > 0
    options = json.loads((output_dir / "round-1" / "pipeline" / "options.json").read_text())
    assert options["flags"]["train"] == "lora"
    mix = rows_of(output_dir / "round-1" / "mix" / "metadata.csv")
    assert [row["origin"] for row in mix] == ["real"] * 16  # always part of it
    pairs = rows_of(output_dir / "round-1" / "pairs.csv")
    ours = [row for row in pairs if row["preferred"].startswith("drawn/")]
    rated = [row for row in pairs if row["preferred"].startswith("rated/")]
    # Two of the three raters: the answers of the third only measure.
    assert len(rated) == 2 * 16
    assert set(result["rewards"]) == {"reward", "held_out_reward"}
    assert 0 < len(ours) <= 8
    for row in pairs:
        for side in ("preferred", "rejected"):
            assert (output_dir / "round-1" / row[side]).is_file()


@pytest.fixture(scope="module")
def spoken(clinic, tiny_pipeline, tmp_path_factory):
    """A pipeline whose prompts name the modality, and the clinic with that column."""
    folder = tmp_path_factory.mktemp("spoken")
    shutil.copytree(tiny_pipeline, folder / "pipeline")
    config = folder / "pipeline" / "text_encoder" / "config.json"
    content = json.loads(config.read_text()) | {"prompt_template": "{modality}: {text}"}
    config.write_text(json.dumps(content))
    shutil.copytree(clinic, folder / "clinic")
    rows = [record.row | {"modality": "OCT"} for record in load_dataset(clinic / "real")]
    write_dataset(folder / "clinic" / "real", rows)
    return folder / "clinic", folder / "pipeline"


@pytest.mark.parametrize("mode", ["unlabeled", "dpo"])
def test_a_model_that_is_told_the_modality_improves_by_such_prompts(spoken, tmp_path, mode, capsys):
    clinic, pipeline = spoken
    flags = ("--mode", "rlhf", "--method", "dpo", "--ratings", str(clinic / "ratings"))
    flags += ("--classifier", str(clinic / "classifier"), "--num_images", "16")
    flags += ("--accept_weak_reward", "--images_per_prompt", "2")
    if mode == "unlabeled":
        flags = (*unlabeled_flags(clinic), "--min_confidence", "-1.5")
    run(clinic, pipeline, tmp_path / "run", capsys, *flags)
    round_1 = tmp_path / "run" / "round-1"
    (drawn,) = {row["prompt"].split(":")[0] for row in rows_of(round_1 / "held_out/metadata.csv")}
    assert drawn == "OCT"
    table = "pairs.csv" if mode == "dpo" else "mix/metadata.csv"
    assert {row["modality"] for row in rows_of(round_1 / table)} == {"OCT"}
    assert template_of(round_1 / "pipeline") == "{modality}: {text}"


def test_a_clinic_without_what_the_models_prompts_name_is_refused(clinic, spoken, tmp_path):
    with pytest.raises(UserError, match=r"column modality is empty"):
        self_improve.main(command(clinic, spoken[1], tmp_path / "run", "--mode", "plain"))


def test_of_each_prompt_the_best_image_is_preferred_to_the_worst(clinic):
    data = load_dataset(clinic / "real").select([0, 1, 2, 3])
    rewards = np.array([2.0, 3.0, 1.0, 1.0])
    rows = best_and_worst(data, rewards, folder="drawn")
    by_text = {row["text"]: row for row in rows}
    texts = [record.text for record in data]
    for text, row in by_text.items():
        members = [place for place, other in enumerate(texts) if other == text]
        assert row["preferred"] == f"drawn/{data[max(members, key=lambda m: rewards[m])].file_name}"
        assert row["rejected"] == f"drawn/{data[min(members, key=lambda m: rewards[m])].file_name}"


def test_weights_grow_by_e_with_a_temperature_of_reward():
    weights = reward_weights(np.array([1.0, 1.5, 2.0]), 0.5)
    assert weights.mean() == pytest.approx(1)
    assert weights[1:] / weights[:-1] == pytest.approx(np.e)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mode", "unlabeled"), "--mode unlabeled needs --unlabeled_dir"),
        (("--mode", "rlhf"), "--mode rlhf needs --ratings"),
        (("--mode", "plain", "--method", "dpo"), "--method is for --mode rlhf, not plain"),
        (("--mode", "plain", "--select_by", "held_out_reward"), "is for --mode rlhf"),
        (("--mode", "plain", "--training_flags", "--snr_gama 5"), "unrecognized arguments"),
        (("--mode", "plain", "--drawing_flags", "--guidance_scale 0"), "--drawing_flags"),
        (("--mode", "plain", "--max_added_share", "0"), "not a number in (0, 1]"),
        (("--mode", "plain", "--drawing_flags", "'"), "No closing quotation"),
        (("--mode", "plain", "--drawing_flags", "--train_dir ."), "give them as --gate_flags"),
        (("--mode", "plain", "--gate_flags", "--train_dir ."), "is for --mode synthetic_pairs or"),
    ],
)
def test_bad_flags_end_with_status_2_and_their_name(
    clinic, tiny_pipeline, tmp_path, capsys, flags, message
):
    with pytest.raises(SystemExit) as stop:
        self_improve.main(command(clinic, tiny_pipeline, tmp_path / "run", *flags))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_chooses_the_images_may_not_measure_them(clinic, tiny_pipeline, tmp_path, capsys):
    flags = (*PAIRS, "--captioner", str(clinic / "captioner"))
    argv = command(clinic, tiny_pipeline, tmp_path / "a", *flags)
    with pytest.raises(SystemExit):
        self_improve.main([*argv, "--classifier", str(clinic / "judge")])
    assert "--judge is --classifier" in capsys.readouterr().err
    shutil.copytree(clinic / "judge", tmp_path / "copy")  # the same weights elsewhere
    with pytest.raises(UserError, match=r"--judge .* has the weights of --classifier"):
        self_improve.main([*argv, "--classifier", str(tmp_path / "copy")])
    argv += ["--feature_extractor", f"classifier:{clinic / 'classifier'}"]
    with pytest.raises(UserError, match=r"--feature_extractor .* the weights of --classifier"):
        self_improve.main([*argv, "--classifier", str(clinic / "classifier")])


@pytest.mark.parametrize("name", ["model", "real_dir", "judge"])
def test_the_output_may_not_touch_what_is_read(clinic, tiny_pipeline, capsys, name):
    sources = {"model": tiny_pipeline, "real_dir": clinic / "real", "judge": clinic / "judge"}
    argv = command(clinic, tiny_pipeline, sources[name] / "run", "--mode", "plain")
    with pytest.raises(SystemExit):
        self_improve.main(argv)
    assert f"and --{name} {sources[name]} lie in each other" in capsys.readouterr().err


def test_what_would_fail_after_hours_is_told_at_once(clinic, tiny_pipeline, tmp_path):
    rated = ("--mode", "rlhf", "--method", "dpo", "--ratings", str(clinic / "ratings"))
    rated += ("--classifier", str(clinic / "classifier"))
    real = write_clinic(tmp_path / "real")[0]
    write_dataset(real, [{**row, "label": ""} for row in rows_of(real / "metadata.csv")])
    for flags, message in (
        (("--mode", "plain", "--num_eval_images", "5"), "5 drawn images to measure with"),
        ((*rated, "--num_images", "999"), "--num_images 999: the 14 texts"),
        (("--mode", "plain", "--real_dir", str(real)), "--select_by fid"),
        ((*pair_flags(clinic), "--real_dir", str(real)), "every scan of --real_dir needs a label"),
    ):
        with pytest.raises(UserError, match=message):
            self_improve.main(command(clinic, tiny_pipeline, tmp_path / "run", *flags))
        assert not (tmp_path / "run" / "round-0").exists()


def test_real_scans_that_may_be_of_held_out_patients_teach_no_reward(
    clinic, tiny_pipeline, tmp_path
):
    scans = [record for record in load_dataset(clinic / "real") if record.split == "test"]
    ratings = write_ratings(tmp_path / "ratings", scans, split="test")
    assert rated_pairs(ratings, ["ann", "ben"], tmp_path) == []
    assert not (tmp_path / "rated").exists()
    flags = ("--mode", "rlhf", "--method", "dpo", "--ratings", str(ratings), "--num_images", "16")
    flags += ("--classifier", str(clinic / "classifier"))
    with pytest.raises(UserError, match="0 images with ratings"):
        self_improve.main(command(clinic, tiny_pipeline, tmp_path / "run", *flags))


def test_pairs_of_images_of_other_texts_are_left_out(clinic, tmp_path):
    scans = [record for record in load_dataset(clinic / "real") if record.split == "train"]
    ratings = write_ratings(tmp_path / "ratings", scans)
    assert len(rated_pairs(ratings, ["ann"], tmp_path / "all")) == 16
    rows = rows_of(ratings / "pairs.csv")
    rows = [row | {"text": "drusen"} for row in rows[:3]] + rows[3:]
    write_csv(ratings / "pairs.csv", rows, list(rows[0]))
    assert len(rated_pairs(ratings, ["ann"], tmp_path / "some")) == 13


def test_unlabeled_scans_with_texts_or_of_test_patients_are_refused(
    clinic, tiny_pipeline, tmp_path
):
    texts = write_unlabeled(tmp_path / "texts", clinic / "other", text="drusen")
    patient = next(r.patient_id for r in load_dataset(clinic / "real") if r.split == "test")
    leak = write_unlabeled(tmp_path / "leak", clinic / "other")
    rows = rows_of(leak / "metadata.csv")
    write_dataset(leak, [row | {"patient_id": patient} for row in rows])
    for source, message in ((texts, "rows have a text"), (leak, "test patients")):
        argv = command(clinic, tiny_pipeline, tmp_path / "run", *unlabeled_flags(clinic, source))
        with pytest.raises(UserError, match=message):
            self_improve.main(argv)


def test_one_rater_is_not_enough(clinic, tiny_pipeline, tmp_path):
    scans = [record for record in load_dataset(clinic / "real") if record.split == "train"]
    ratings = write_ratings(tmp_path / "ratings", scans, raters=("ann",))
    flags = ("--mode", "rlhf", "--method", "dpo", "--ratings", str(ratings))
    flags += ("--num_images", "16")
    flags += ("--classifier", str(clinic / "classifier"))
    with pytest.raises(UserError, match="1 rater; at least two are needed"):
        self_improve.main(command(clinic, tiny_pipeline, tmp_path / "run", *flags))


def test_help_answers_before_torch_is_imported():
    code = "import sys, self_improve\n"
    code += "try:\n    self_improve.main(['--help'])\nexcept SystemExit:\n    pass\n"
    code += "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
