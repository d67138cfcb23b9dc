"""The quality gate at work: verdicts, new attempts, failures, and the same bytes whoever draws.

The classifier has random weights: it tells the tiny pipeline's random textures apart, which is all
that a gate needs to be tried.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evaluate import save_classifier as new_classifier
from test_generate import change_weights, contents, flags, recorded, table
from test_multiprocess import free_port, run_together

import generate_synthetic_dataset as generate
from utils.classifier import Classifier
from utils.cli import UserError
from utils.dataset import load_dataset
from utils.quality_gate import QualityGate

SCRIPT = Path(generate.__file__)
LABELS = ("cyst", "drusen", "edema")
NUM_IMAGES = 18


def save_classifier(folder, *, labels=LABELS, multi_label=False):
    """A random network that is surer of itself than one that was just made."""
    judge = Classifier.load(new_classifier(folder, labels=labels, multi_label=multi_label))
    judge.network.head.weight.data *= 16
    judge.save(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier") / "classifier")


def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    rows = "".join(f"{label} in the macula,{label}\n" for label in LABELS)
    path.write_text("text,label\n" + rows, encoding="utf-8")
    return ["--prompts_file", path, "--num_images", NUM_IMAGES]


@pytest.fixture(scope="module")
def request_(tiny_pipeline, classifier, tmp_path_factory):
    """Flags of a run in which each gate rejects some images, but for the output folder."""
    folder = tmp_path_factory.mktemp("request")
    drawn = folder / "ungated"
    more = prompts(folder)
    generate.main(flags(tiny_pipeline, drawn, *more))
    found = Classifier.load(classifier)
    scores = {label: [] for label in LABELS}
    for record in load_dataset(drawn):
        [label] = record.labels
        scores[label].append(found.predict([record.image()])[0][LABELS.index(label)])
    thresholds = {label: float(np.median(values)) for label, values in scores.items()}
    contrasts = [float(row["contrast"]) for row in table(drawn / "manifest.csv")]
    (folder / "thresholds.json").write_text(json.dumps(thresholds))
    more += ["--classifier", classifier, "--accept_prob", folder / "thresholds.json"]
    more += ["--min_contrast", f"{np.quantile(contrasts, 0.1):.3f}", "--max_attempts", 3]
    return thresholds, [*more, "--reject_duplicates", "--keep_rejected"]


@pytest.fixture(scope="module")
def gated(request_, tiny_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated") / "set"
    generate.main(flags(tiny_pipeline, folder, *request_[1]))
    return folder


def test_an_image_is_kept_exactly_if_its_own_label_reaches_its_threshold(gated, request_):
    thresholds, _ = request_
    rows = table(gated / "manifest.csv")
    for row in rows:
        low = float(row["score"]) < thresholds[row["label"]] - 5e-5
        high = float(row["score"]) > thresholds[row["label"]] + 5e-5
        assert low or high or "class" in row["reason"] or row["status"] == "accepted"
        assert not (low and "class" not in row["reason"])
        assert not (high and "class" in row["reason"])
        assert (row["status"] == "accepted") is (row["reason"] == "")
    assert {"accepted", "rejected", "failed"} == {row["status"] for row in rows}
    assert {"class", "contrast"} <= {name for row in rows for name in row["reason"].split(";")}


def test_every_image_has_attempts_until_one_passes_or_none_is_left(gated):
    attempts = {}
    for row in table(gated / "manifest.csv"):
        attempts.setdefault(int(row["index"]), []).append(row)
    assert sorted(attempts) == list(range(NUM_IMAGES))
    for rows in attempts.values():
        assert [int(row["attempt"]) for row in rows] == list(range(len(rows)))
        assert {row["status"] for row in rows[:-1]} <= {"rejected"}
        assert rows[-1]["status"] == ("failed" if rows[-1]["accepted"] == "false" else "accepted")
        assert len(rows) == 3 or rows[-1]["status"] == "accepted"


def test_the_set_holds_the_accepted_and_the_plan_tells_the_rest(gated):
    accepted = [row for row in table(gated / "manifest.csv") if row["accepted"] == "true"]
    dataset = load_dataset(gated)
    assert [record.file_name for record in dataset] == [row["file_name"] for row in accepted]
    states = Counter(row["status"] for row in table(gated / "plan.csv"))
    assert states == {"done": len(accepted), "failed": NUM_IMAGES - len(accepted)}
    assert len(list(gated.glob("images/*.png"))) == len(accepted)


def test_rejected_pictures_are_kept_apart_on_request(gated, request_, tiny_pipeline, tmp_path):
    refused = [row for row in table(gated / "manifest.csv") if row["accepted"] == "false"]
    assert refused
    assert {row["file_name"] for row in refused} == {
        path.relative_to(gated).as_posix() for path in gated.glob("rejected/*.png")
    }
    more = [flag for flag in request_[1] if flag != "--keep_rejected"]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    assert not (tmp_path / "set/rejected").exists()
    assert (tmp_path / "set/metadata.csv").read_bytes() == (gated / "metadata.csv").read_bytes()


def test_card_page_and_result_tell_the_acceptance(gated):
    rows = table(gated / "manifest.csv")
    num_accepted = sum(row["accepted"] == "true" for row in rows)
    page = (gated / "report.html").read_text(encoding="utf-8")
    assert f"{num_accepted} of {NUM_IMAGES} images asked for, {len(rows)} images drawn" in page
    card = (gated / "dataset_card.md").read_text(encoding="utf-8")
    for label in LABELS:
        asked = [row for row in rows if row["label"] == label]
        kept = sum(row["accepted"] == "true" for row in asked)
        failed = sum(row["status"] == "failed" for row in asked)
        rate = 100 * kept / len(asked)
        assert f"| {label} | {kept} | {failed} | {len(asked)} | {rate:.1f} % |" in card


@pytest.mark.parametrize("batch_size", [1, 24])
def test_batch_size_changes_no_byte(gated, request_, tiny_pipeline, tmp_path, batch_size):
    more = [*request_[1], "--batch_size", batch_size]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    assert contents(tmp_path / "set") == contents(gated)


def launch(num_processes, args, **more):
    command = ["accelerate", "launch", "--dynamo_backend=no", "--mixed_precision=no"]
    command += [f"--num_processes={num_processes}", "--multi_gpu"]
    command += [f"--{name}={value}" for name, value in more.items()]
    return [*command, str(SCRIPT), *args]


def test_two_processes_change_no_byte(gated, request_, tiny_pipeline, tmp_path):
    args = flags(tiny_pipeline, tmp_path / "set", *request_[1])
    command = launch(2, args, num_machines=1, main_process_port=free_port())
    run_together([(command, {})], ACCELERATE_USE_CPU="true")
    assert contents(tmp_path / "set") == contents(gated)


def test_two_machines_with_one_folder_change_no_byte(gated, request_, tiny_pipeline, tmp_path):
    args = flags(tiny_pipeline, tmp_path / "set", *request_[1])
    where = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": free_port()}
    commands = [(launch(2, args, machine_rank=rank, **where), {}) for rank in range(2)]
    run_together(commands, ACCELERATE_USE_CPU="true")
    assert contents(tmp_path / "set") == contents(gated)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "9"], "process 1 has another seed than process 0"),
        (["--output_dir", "{tmp_path}/elsewhere"], "on a disk that they share"),
    ],
)
def test_machines_that_disagree_are_stopped_before_anything_is_drawn(
    tiny_pipeline, tmp_path, change, message
):
    args = flags(tiny_pipeline, tmp_path / "set", "--prompt", "scar", "--num_images", 9)
    where = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": free_port()}
    changes = [each.format(tmp_path=tmp_path) for each in change]
    commands = [
        launch(2, args, machine_rank=0, **where),
        launch(2, [*args, *changes], machine_rank=1, **where),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = [
        subprocess.Popen(
            command,
            env=os.environ | {"PATH": path, "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    errors = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1]
    assert message in errors[1]
    assert "another process of this run has ended" in errors[0]
    assert not list(tmp_path.rglob("*.png"))


def test_killed_five_times_and_resumed_changes_no_byte(gated, request_, tiny_pipeline, tmp_path):
    folder = tmp_path / "set"
    args = flags(tiny_pipeline, folder, *request_[1], "--batch_size", 4)
    total, kills = len(table(gated / "manifest.csv")), 0
    while kills < 5:
        wanted = min(len(recorded(folder)) + total // 8, total - 1)
        with subprocess.Popen(
            [sys.executable, str(SCRIPT), *args],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as run:
            while run.poll() is None and len(recorded(folder)) < wanted:
                time.sleep(0.005)
            run.kill()
        kills += run.returncode == -signal.SIGKILL
        assert run.returncode == -signal.SIGKILL, "it ended before it could be killed"
    generate.main(args)
    assert contents(folder) == contents(gated)


def _lose_an_image(folder):
    sorted(folder.glob("images/*.png"))[2].unlink()


def _lose_a_rejected_image(folder):
    sorted(folder.glob("rejected/*.png"))[0].unlink()


def _cut_an_image(folder):
    path = sorted(folder.glob("images/*.png"))[0]
    path.write_bytes(path.read_bytes()[:-1])


def _leave_a_stray(folder):
    shutil.copy(sorted(folder.glob("images/*.png"))[0], folder / "images/000099.png")


@pytest.mark.parametrize(
    "damage", [_lose_an_image, _lose_a_rejected_image, _cut_an_image, _leave_a_stray]
)
def test_what_is_lost_is_drawn_again_to_the_same_bytes(
    gated, request_, tiny_pipeline, tmp_path, damage
):
    folder = Path(shutil.copytree(gated, tmp_path / "set"))
    damage(folder)
    generate.main(flags(tiny_pipeline, folder, *request_[1]))
    assert contents(folder) == contents(gated)


def test_an_image_that_repeats_an_earlier_one_is_drawn_again_and_may_fail(tiny_pipeline, tmp_path):
    pipeline = Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))
    change_weights(pipeline, "vae", "post_quant_conv.weight", lambda weight: weight * 0)
    more = ["--prompt", "scar", "--num_images", 3, "--max_attempts", 2, "--reject_duplicates"]
    for name, flag in (("one", "1"), ("many", "24")):
        generate.main(flags(pipeline, tmp_path / name, *more, "--batch_size", flag))
    rows = table(tmp_path / "one/manifest.csv")
    assert [(row["index"], row["status"], row["reason"]) for row in rows] == [
        ("0", "accepted", ""),
        *[(index, status, "duplicate") for index in "12" for status in ("rejected", "failed")],
    ]
    assert [path.name for path in tmp_path.glob("one/images/*")] == ["000000.png"]
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    kept = [*more, "--keep_rejected"]
    generate.main(flags(pipeline, tmp_path / "kept", *kept))
    names = {path.name for path in tmp_path.glob("kept/rejected/*")}
    assert names == {f"00000{index}-{attempt}.png" for index in "12" for attempt in "01"}


def test_thresholds_that_changed_are_refused(gated, request_, tiny_pipeline, tmp_path):
    thresholds, more = request_
    folder = Path(shutil.copytree(gated, tmp_path / "set"))
    sorted(folder.glob("images/*.png"))[2].unlink()  # so that there is something left to draw
    place = more.index("--accept_prob") + 1
    path = Path(more[place])
    before = path.read_text()
    path.write_text(json.dumps(thresholds | {"drusen": 0.9}))
    try:
        with pytest.raises(UserError, match="gate_inputs"):
            generate.main(flags(tiny_pipeline, folder, *more))
    finally:
        path.write_text(before)


def test_a_label_the_classifier_lacks_is_refused_before_anything_is_written(
    classifier, tiny_pipeline, tmp_path
):
    more = ["--prompt", "a hole", "--label", "hole", "--classifier", classifier]
    with pytest.raises(UserError, match=r"(?s)hole.*cyst, drusen, edema"):
        generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    assert not (tmp_path / "set").exists()


def test_a_prompt_without_label_is_refused_where_a_classifier_judges(
    classifier, tiny_pipeline, tmp_path
):
    more = ["--prompt", "a hole", "--classifier", classifier]
    with pytest.raises(UserError, match="--prompt 1"):
        generate.main(flags(tiny_pipeline, tmp_path / "set", *more))


def test_an_image_with_several_labels_must_show_each(tmp_path):
    folder = save_classifier(tmp_path / "classifier", multi_label=True)
    judge = Classifier.load(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    [probabilities] = judge.predict([Image.fromarray(pixels)])
    for label, other in (("cyst", "drusen"), ("drusen", "edema")):
        places = [LABELS.index(label), LABELS.index(other)]
        low, high = sorted(probabilities[places].tolist())
        for threshold, passes in ((low - 1e-4, True), ((low + high) / 2, False)):
            thresholds = dict.fromkeys(LABELS, threshold)
            gate = QualityGate(classifier=judge, thresholds=thresholds)
            [verdict] = gate.examine([Image.fromarray(pixels)], [(label, other)])
            assert verdict.score == pytest.approx(low)
            assert (verdict.reasons == ()) is passes


@pytest.mark.parametrize(
    ("level", "spread", "reasons"),
    [(0, 0, ("blank", "contrast")), (128, 1, ("blank", "contrast")), (128, 5, ("contrast",))],
)
def test_black_flat_and_dull_images_are_rejected(level, spread, reasons):
    pixels = np.full((32, 32), level, np.uint8)
    pixels[::2] += np.uint8(spread)
    [verdict] = QualityGate(min_contrast=10).examine([Image.fromarray(pixels)], [()])
    assert verdict.reasons == reasons
    assert verdict.contrast == pytest.approx(spread / 2)


def test_copies_of_training_images_are_rejected(tiny_pipeline, tmp_path, capsys):
    """Trained on what this very model draws, the gate must know the pictures again."""
    drawn, more = tmp_path / "data", ["--prompt", "scar", "--num_images", 40]
    generate.main(flags(tiny_pipeline, drawn, *more))
    rows = table(drawn / "metadata.csv")
    for number, row in enumerate(rows):
        row["split"] = "train" if number < 12 else "val"
    from utils.dataset import write_dataset

    write_dataset(drawn, rows)
    gate = ["--train_dir", drawn, "--real_dir", drawn, "--max_attempts", 1]
    with pytest.raises(UserError, match="too like a training image: 12"):
        generate.main(
            flags(tiny_pipeline, tmp_path / "set", "--prompt", "scar", "--num_images", 12, *gate)
        )
    rows = table(tmp_path / "set/manifest.csv")
    assert min(float(row["train_similarity"]) for row in rows) > 0.99
    facts = json.loads((tmp_path / "set/gates.json").read_text())["copy"]
    assert (facts["num_train"], facts["num_held_out"]) == (12, 28)


def test_several_guidance_scales_write_comparable_sets(tiny_pipeline, tmp_path, capsys):
    more = ["--prompt", "scar", "--label", "scar", "--num_images", 3]
    generate.main(flags(tiny_pipeline, tmp_path / "grid", *more, "--guidance_scale", 1, 2, 7.5))
    result = json.loads(capsys.readouterr().out)
    assert list(result["sets"]) == ["guidance_1", "guidance_2", "guidance_7.5"]
    sets = {name: table(tmp_path / "grid" / name / "metadata.csv") for name in result["sets"]}
    seeds = {name: [row["seed"] for row in rows] for name, rows in sets.items()}
    assert seeds["guidance_1"] == seeds["guidance_2"] == seeds["guidance_7.5"]
    assert [row["guidance"] for row in sets["guidance_7.5"]] == ["7.5"] * 3
    assert "guidance_7.5/report.html" in (tmp_path / "grid/report.html").read_text()
    generate.main(flags(tiny_pipeline, tmp_path / "alone", *more, "--guidance_scale", 2))
    assert contents(tmp_path / "grid/guidance_2") == contents(tmp_path / "alone")
    with pytest.raises(UserError, match="something else than sets of several guidance scales"):
        generate.main(flags(tiny_pipeline, tmp_path / "alone", *more, "--guidance_scale", 2, 3))
    before = contents(tmp_path / "grid")
    generate.main(flags(tiny_pipeline, tmp_path / "grid", *more, "--guidance_scale", 1, 2, 7.5))
    assert contents(tmp_path / "grid") == before


def test_a_single_set_does_not_overwrite_several(tiny_pipeline, tmp_path):
    more = ["--prompt", "scar"]
    generate.main(flags(tiny_pipeline, tmp_path / "grid", *more, "--guidance_scale", 2, 3))
    with pytest.raises(UserError, match="name another --output_dir"):
        generate.main(flags(tiny_pipeline, tmp_path / "grid", *more, "--guidance_scale", 2))


def test_a_scale_without_an_accepted_image_does_not_keep_the_others_from_being_drawn(
    tiny_pipeline, tmp_path
):
    more = ["--prompt", "scar", "--max_attempts", 1]
    generate.main(flags(tiny_pipeline, tmp_path / "open", *more, "--guidance_scale", 1, 30))
    contrasts = {
        scale: float(table(tmp_path / f"open/guidance_{scale}/manifest.csv")[0]["contrast"])
        for scale in (1, 30)
    }
    dull, clear = sorted(contrasts, key=contrasts.get)
    between = sum(contrasts.values()) / 2
    gate = ["--guidance_scale", dull, clear, "--min_contrast", between]
    message = rf"no image was accepted in 1 attempts .*guidance_{dull}"
    with pytest.raises(UserError, match=message):
        generate.main(flags(tiny_pipeline, tmp_path / "set", *more, *gate))
    assert len(table(tmp_path / f"set/guidance_{clear}/metadata.csv")) == 1
    assert not (tmp_path / f"set/guidance_{dull}/metadata.csv").exists()
    assert (tmp_path / "set/report.html").exists()


def test_ctrl_c_ends_with_130_and_the_set_is_continued(gated, request_, tiny_pipeline, tmp_path):
    folder = tmp_path / "set"
    args = flags(tiny_pipeline, folder, *request_[1])
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *args], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as run:
        while run.poll() is None and not recorded(folder):
            time.sleep(0.005)
        os.kill(run.pid, signal.SIGINT)
        assert "interrupted" in run.stderr.read().decode()
    assert run.returncode == 130
    generate.main(args)
    assert contents(folder) == contents(gated)
