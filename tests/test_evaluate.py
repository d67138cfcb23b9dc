"""The script: flags, a whole run on each network, and the awkward sets (one image, unequal)."""

import csv
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import evaluate
from utils import cli, scores
from utils.backbones import build_network
from utils.classifier import Classifier, ClassifierConfig
from utils.cli import UserError
from utils.copy_training import DetectorOptions
from utils.dataset import load_dataset
from utils.distance_scores import DistanceOptions, Pools, frechet_entry, neighbour_entries
from utils.evaluation_pictures import NEIGHBOURS_SHOWN as NEAREST_SHOWN
from utils.image_sets import ImageSet, common_side, set_names
from utils.images import resize
from utils.inception import FidInception

ROOT = Path(evaluate.__file__).parent
LABELS = ("drusen", "normal")
FLAGS = """
real_dir synthetic_dir compare real_split train_dir image_column caption_column label_column
patient_column skip_invalid num_images resolution resize_mode metrics max_pairs
inception_score_splits bootstrap fail_above feature_extractor feature_weights classifier model
retrieval_encoder feature_cache_dir output_dir seed batch_size num_workers device offline
"""
DEFAULT_SCORES = [
    *("fid", "kid", "precision", "recall", "density", "coverage"),
    *("inception_score", "ms_ssim", "agreement"),
]


def write_set(folder, *, count, side=40, seed=0, labels=LABELS, split=None, width=None):
    """A dataset folder whose label is the depth of a bright layer; two prompts a label."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        label = labels[index % len(labels)]
        depth = np.arange(side)[:, None] - side * (0.3 if label == "normal" else 0.6)
        layer = 160 * np.exp(-((depth / (side / 10)) ** 2))
        pixels = np.clip(layer + rng.uniform(0, 80, (side, width or side)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{index:03d}.png")
        rows.append(
            {
                "file_name": f"images/{index:03d}.png",
                "text": f"{label}, kind {index // len(labels) % 2}",
                "label": label,
                "patient_id": f"p{index}",
                "split": split or "test",
            }
        )
    write_table(folder, rows)
    return folder


def write_table(folder, rows):
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    real = write_set(folder / "real", count=24, side=48, width=96)
    synthetic = write_set(folder / "synthetic", count=16, side=40, seed=1)
    return real, synthetic


def save_classifier(folder, *, labels=LABELS, multi_label=False):
    """A small network that knows the two labels by the brightness of the upper half."""
    options = {"resolution": 32, "mean": 0.3, "std": 0.2}
    network = build_network("small", num_labels=len(labels), seed=0, **options)
    config = ClassifierConfig(
        backbone="small",
        labels=labels,
        multi_label=multi_label,
        resize_mode="center_crop",
        data_hash="none",
        **options,
    )
    Classifier(config, network).save(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier") / "classifier")


def run(sets, output_dir, *flags):
    real, synthetic = sets
    data = ["--real_dir", str(real), "--synthetic_dir", str(synthetic)]
    where = ["--output_dir", str(output_dir), "--num_workers", "0", "--device", "cpu"]
    assert evaluate.main([*data, *where, *flags]) == 0
    return json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(sets, classifier, tmp_path_factory):
    """A whole run on a classifier, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    flags = ["--feature_extractor", f"classifier:{classifier}", "--bootstrap", "5"]
    return run(sets, folder, *flags), folder


def test_the_result_has_the_agreed_shape(finished):
    result, _ = finished
    assert set(result) == {"overall", "per_label", "extractor", "options"}
    assert list(result["overall"]) == DEFAULT_SCORES
    assert list(result["per_label"]) == list(LABELS)
    for found in [result["overall"], *result["per_label"].values()]:
        for entry in found.values():
            assert {"value", "direction", "n_real", "n_synthetic"} <= set(entry)
            assert isinstance(entry["value"], float)
            assert entry["direction"] in ("lower", "higher", "real")
    fid = result["overall"]["fid"]
    assert (fid["n_real"], fid["n_synthetic"], fid["floor_n"]) == (24, 16, [12, 12])
    assert fid["ci95"][0] < fid["value"] < fid["ci95"][1]
    assert fid["floor"] > 0
    assert result["per_label"]["normal"]["ms_ssim"]["n_real"] == 12
    assert {"std", "real", "splits"} <= set(result["overall"]["inception_score"])


def test_the_network_and_the_data_are_named_with_hashes(finished, classifier):
    result, folder = finished
    network = result["extractor"]
    assert network["name"] == f"classifier:{classifier}"
    assert network["sha256"] == Classifier.load(classifier).sha256
    assert result["options"]["classifier_sha256"] == network["sha256"]
    assert result["options"]["resolution"] == 40
    assert len(result["options"]["real_fingerprint"]) == 64
    assert json.loads((folder / "options.json").read_text())["flags"]["bootstrap"] == 5


def test_the_page_tells_scores_counts_hashes_and_use(finished):
    result, folder = finished
    html = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("Research use only, not for diagnosis", result["extractor"]["sha256"], "24 / 16"):
        assert text in html
    assert html.count("<img") == 2 * 2 * evaluate.TILES_PER_LABEL + 2 * NEAREST_SHOWN
    assert html.count("<svg") == len(DEFAULT_SCORES)
    assert "lower is better" in html


def test_few_images_are_warned_of_in_result_and_page(finished):
    result, folder = finished
    (note,) = [n for n in result["overall"]["fid"]["notes"] if "dimensions" in n]
    assert note.startswith("16 images in")
    assert "16 images in" in (folder / "report.html").read_text(encoding="utf-8")
    assert "3 of 5 scales" not in str(result["overall"]["fid"])
    assert "2 of 5 scales" in str(result["overall"]["ms_ssim"]["notes"])


def test_the_same_seed_gives_the_same_numbers_whatever_the_batch(finished, sets, tmp_path):
    result, _ = finished
    extractor = result["extractor"]["name"]
    flags = ["--feature_extractor", extractor, "--bootstrap", "5", "--batch_size", "5"]
    again = run(sets, tmp_path, *flags, "--num_workers", "2")
    for name, entry in result["overall"].items():
        assert again["overall"][name]["value"] == pytest.approx(entry["value"], rel=1e-4)
        if "ci95" in entry:
            assert again["overall"][name]["ci95"] == pytest.approx(entry["ci95"], rel=1e-3)


def test_stdout_is_the_result_and_nothing_else(sets, tmp_path, capsys):
    result = run(sets, tmp_path, "--metrics", "ms_ssim")
    assert json.loads(capsys.readouterr().out) == result
    assert result["extractor"] is None


def test_agreement_counts_what_the_classifier_says(finished, sets, classifier):
    result, _ = finished
    judge = Classifier.load(classifier)
    for side, column in zip(sets, ("real", "value")):
        rows = list(csv.DictReader((side / "metadata.csv").open()))
        pictures = []
        for row in rows:
            image = Image.open(side / row["file_name"])
            scale = 40 / min(image.size)
            image = image.resize([round(n * scale) for n in image.size], Image.Resampling.LANCZOS)
            left = (image.width - 40) // 2
            pictures.append(image.crop((left, 0, left + 40, 40)))
        said = np.array(judge.labels)[judge.predict(pictures).argmax(axis=1)]
        shares = [
            np.mean([said[k] == label for k, row in enumerate(rows) if row["label"] == label])
            for label in LABELS
        ]
        assert result["overall"]["agreement"][column] == pytest.approx(np.mean(shares))
        for label, share in zip(LABELS, shares):
            assert result["per_label"][label]["agreement"][column] == pytest.approx(share)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_is_brought_to_one_size_in_order(tmp_path, num_workers):
    folder = write_set(tmp_path / "mixed", count=70, side=24, width=36)
    Image.new("RGB", (90, 60), "red").save(folder / "images" / "003.png")
    images = ImageSet("real", load_dataset(folder), 32, "center_crop", num_workers)
    found = list(images.read(lambda image: image, range(len(images)), largest_px=99))
    assert {image.size for image in found} == {(32, 32)}
    for record, image in zip(images.dataset, found):
        assert image.tobytes() == resize(record.image(), 32, "center_crop").tobytes()
    assert common_side(images.dataset) == 24


def test_a_run_on_the_fid_inception(tmp_path):
    torch.manual_seed(0)
    torch.save(FidInception().state_dict(), tmp_path / "random.pth")
    flags = ["--feature_weights", str(tmp_path / "random.pth"), "--bootstrap", "0"]
    few = [write_set(tmp_path / name, count=4, seed=k) for k, name in enumerate("rs")]
    result = run(few, tmp_path / "run", *flags, "--metrics", "fid", "inception_score")
    assert (result["extractor"]["name"], result["extractor"]["dim"]) == ("inception", 2048)
    assert result["overall"]["fid"]["value"] >= 0
    assert "ci95" not in result["overall"]["fid"]
    assert 1 <= result["overall"]["inception_score"]["value"] < 1008
    assert "agreement" not in result["overall"]


def test_inception_score_is_over_logits_not_over_pool_features():
    """The published script took a softmax over the 2048 pool features."""
    logits = np.tile(50 * np.eye(5), (20, 1))
    found = scores.inception_entry(logits, logits, splits=10, seed=0)
    assert 3.5 < found["value"] <= 5
    found = scores.inception_entry(logits, logits[:50], splits=1, seed=0)
    assert found["value"] == found["real"] == pytest.approx(5)


def test_fid_is_not_square_rooted():
    pool = np.random.default_rng(0).normal(size=(20, 3))
    pools = Pools(pool, pool + 10.0, np.arange(20))
    found = frechet_entry(pools, DistanceOptions(num_resamples=0, seed=0, device="cpu"))["fid"]
    assert found["value"] == pytest.approx(300)


def test_classes_that_may_occur_together_have_no_inception_score(sets, tmp_path):
    folder = save_classifier(tmp_path / "classifier", multi_label=True)
    result = run(
        sets, tmp_path / "run", "--feature_extractor", f"classifier:{folder}", "--bootstrap", "0"
    )
    entry = result["overall"]["inception_score"]
    assert entry["value"] is None
    assert "may occur together" in entry["notes"][0]
    assert result["overall"]["agreement"]["value"] is not None


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_synthetic_images_are_answered_in_words(sets, classifier, tmp_path, count):
    few = write_set(tmp_path / "few", count=count, labels=("normal",))
    flags = ["--feature_extractor", f"classifier:{classifier}", "--bootstrap", "5"]
    result = run((sets[0], few), tmp_path / "run", *flags)
    overall, per_label = result["overall"], result["per_label"]
    if count == 1:
        why = "24 real and 1 synthetic image(s): 2 of each are needed"
        assert (overall["fid"]["value"], overall["fid"]["notes"]) == (None, [why])
        assert "no two synthetic images to compare" in overall["ms_ssim"]["notes"]
    else:
        assert overall["fid"]["value"] > 0
    assert overall["inception_score"]["splits"] == 1
    assert per_label["drusen"]["fid"]["value"] is None
    assert per_label["drusen"]["agreement"]["notes"] == ["no synthetic image"]
    assert result["options"]["notes"] == ["only the real set has the label(s) drusen"]
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Only the real set has the label(s) drusen." in html
    assert "No image." in html


def test_equal_pixels_in_two_folders_are_distance_zero_and_said(sets, classifier, tmp_path):
    flags = ["--feature_extractor", f"classifier:{classifier}", "--bootstrap", "0"]
    copy = write_set(tmp_path / "copy", count=16, side=40, seed=1)
    result = run((copy, sets[1]), tmp_path / "run", *flags)
    fid = result["overall"]["fid"]
    assert fid["value"] < 1e-6 * fid["floor"]
    assert fid["notes"][-1].startswith("16 synthetic image(s) equal a real image")
    assert result["overall"]["ms_ssim"]["direction"] == "real"


def test_sets_without_labels_or_repeated_prompts_are_compared_as_a_whole(sets, tmp_path):
    plain = write_set(tmp_path / "plain", count=6)
    rows = [{"file_name": f"images/{k:03d}.png", "text": f"scan number {k}"} for k in range(6)]
    write_table(plain, rows)
    result = run((sets[0], plain), tmp_path / "run", "--metrics", "ms_ssim")
    entry = result["overall"]["ms_ssim"]
    assert entry["grouped_by"] == "label"
    assert entry["num_pairs"] == 15
    assert "no prompt has two images" in entry["notes"][0]


def test_ms_ssim_compares_within_prompts_up_to_the_cap(sets, tmp_path):
    result = run(sets, tmp_path / "a", "--metrics", "ms_ssim")
    entry = result["overall"]["ms_ssim"]
    assert entry["grouped_by"] == "prompt"
    assert entry["num_pairs"] == 4 * 6  # four prompts of four images
    assert entry["num_pairs_real"] == 2 * 66  # two labels of twelve images
    capped = run(sets, tmp_path / "b", "--metrics", "ms_ssim", "--max_pairs", "8")
    assert capped["overall"]["ms_ssim"]["num_pairs"] == 8


def test_repeating_one_image_raises_ms_ssim_above_the_real_sets(sets, tmp_path):
    collapsed = write_set(tmp_path / "collapsed", count=8)
    first = (collapsed / "images" / "000.png").read_bytes()
    rng = np.random.default_rng(5)
    for index in range(1, 8):
        path = collapsed / "images" / f"{index:03d}.png"
        path.write_bytes(first)
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, index] = rng.integers(256)  # the loader refuses equal pixels
        Image.fromarray(pixels).save(path)
    entry = run((sets[0], collapsed), tmp_path / "run", "--metrics", "ms_ssim")["overall"][
        "ms_ssim"
    ]
    assert entry["value"] > 0.98 > 0.8 > entry["real"]


def test_labels_the_classifier_does_not_know_are_left_out_by_name(sets, tmp_path):
    folder = save_classifier(tmp_path / "classifier", labels=("normal", "retinal detachment"))
    flags = ["--metrics", "agreement", "--classifier", str(folder)]
    result = run(sets, tmp_path / "run", *flags)
    overall = result["overall"]["agreement"]
    assert overall["notes"] == ["left out, unknown to the classifier: drusen"]
    assert overall["n_synthetic"] == 8
    assert overall["value"] == result["per_label"]["normal"]["agreement"]["value"]
    unknown = result["per_label"]["drusen"]["agreement"]
    assert (unknown["value"], unknown["n_synthetic"]) == (None, 8)


def test_ten_images_of_other_sizes_have_every_score(sets, classifier, tmp_path):
    few = write_set(tmp_path / "few", count=10, side=33, width=70)
    flags = ["--feature_extractor", f"classifier:{classifier}", "--bootstrap", "3"]
    result = run((sets[0], few), tmp_path / "run", *flags)
    assert result["options"]["resolution"] == 33
    assert all(entry["value"] is not None for entry in result["overall"].values())


def test_a_label_without_images_has_no_value_and_the_reason(sets, classifier, tmp_path):
    few = write_set(tmp_path / "few", count=8, labels=("normal", "retinal hole"))
    flags = ["--feature_extractor", f"classifier:{classifier}", "--bootstrap", "0"]
    entries = run((sets[0], few), tmp_path / "run", *flags)["per_label"]["retinal hole"]
    for name in ("fid", "kid", "precision"):
        assert entries[name]["value"] is None
        assert "0 real and 4 synthetic image(s)" in entries[name]["notes"][0]
    assert entries["agreement"]["notes"] == ["the classifier does not know this label"]


def test_at_most_so_many_images_of_each_set_are_used(sets, tmp_path):
    result = run(sets, tmp_path / "run", "--metrics", "ms_ssim", "--num_images", "9")
    entry = result["overall"]["ms_ssim"]
    assert (entry["n_real"], entry["n_synthetic"]) == (9, 9)


def test_the_vaes_floor_is_the_distance_to_its_reconstructions(
    sets, classifier, tiny_pipeline, tmp_path
):
    flags = ["--feature_extractor", f"classifier:{classifier}", "--bootstrap", "0"]
    flags += ["--model", str(tiny_pipeline), "--metrics", "fid", "kid", "prdc"]
    result = run(sets, tmp_path / "run", *flags)
    assert result["options"]["model_sha256"]
    assert result["overall"]["fid"]["vae_floor"] > result["overall"]["fid"]["floor"]
    assert result["overall"]["coverage"]["vae_floor"] < 1  # an untrained VAE makes noise
    assert "VAE&#x27;s floor" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"--resolution 36: .* multiples of 8, such as 32"):
        run(sets, tmp_path / "other", *flags, "--resolution", "36")


def test_a_clip_model_measures_cmmd_and_retrieves(sets, tiny_clip, tmp_path):
    flags = ["--feature_extractor", "clip", "--feature_weights", str(tiny_clip), "--offline"]
    result = run(sets, tmp_path / "run", *flags, "--retrieval_encoder", str(tiny_clip))
    assert result["overall"]["cmmd"]["value"] > 0
    assert {"floor", "direction"} <= set(result["overall"]["cmmd"])
    assert "inception_score" not in result["overall"]
    names = [name for name in result["overall"] if name.startswith("retrieval_")]
    assert len(names) == 12
    assert result["options"]["retrieval_encoder_sha256"] == result["extractor"]["sha256"]
    assert "Recall@10" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_cas_is_computed_only_if_named(sets, monkeypatch, tmp_path):
    monkeypatch.setattr("utils.diagnosis_recipe.MIN_STEPS", 10)
    monkeypatch.setattr("utils.diagnosis_recipe.MAX_STEPS", 10)
    result = run(sets, tmp_path / "run", "--metrics", "cas")
    assert 0 <= result["overall"]["cas"]["value"] <= 1
    assert result["overall"]["cas"]["n_real"] == 24
    assert set(result["per_label"]["normal"]) == {"cas"}


@pytest.fixture
def quick_detector(monkeypatch):
    """The copy detector with fewer steps than it needs for scans."""
    options = {"resolution": 32, "min_steps": 25, "max_steps": 25, "batch_size": 16}
    monkeypatch.setattr("utils.auditor.DetectorOptions", partial(DetectorOptions, **options))


def test_planted_copies_are_listed_and_gate_the_exit_status(
    sets, quick_detector, tmp_path, monkeypatch
):
    train = write_set(tmp_path / "train", count=20, side=40, seed=7, split="train")
    synthetic = write_set(tmp_path / "synthetic", count=10, side=40, seed=8)
    for index in (2, 5, 6):
        image = Image.open(train / "images" / f"{index + 3:03d}.png")
        image = ImageOps.mirror(image) if index == 5 else image
        image.save(synthetic / "images" / f"{index:03d}.png")
    argv = ["--real_dir", str(sets[0]), "--synthetic_dir", str(synthetic), "--device", "cpu"]
    argv += ["--train_dir", str(train), "--metrics", "copies", "--output_dir"]
    output = tmp_path / "run"
    assert evaluate.main([*argv, str(output), "--fail_above", "0.1"]) == 1
    entry = json.loads((output / "metrics.json").read_text())["overall"]["copies"]
    assert entry["exact_duplicates"] == 3
    assert entry["num_mirrored"] >= 1
    assert entry["value"] >= 0.3
    with (output / "copies.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {row["synthetic"]: row for row in rows if row["exact"] == "True"}
    assert found["images/005.png"]["train"] == "images/008.png"
    assert found["images/005.png"]["mirrored"] == "True"
    html = (output / "report.html").read_text(encoding="utf-8")
    assert "Copies of training images" in html

    def untrained(*_, **__):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr("utils.auditor.train_copy_detector", untrained)
        assert evaluate.main([*argv, str(tmp_path / "again"), "--fail_above", "1"]) == 0
    (kept,) = (tmp_path / "feature_cache").glob("copy_detector-*")
    (kept / "model.safetensors").write_bytes(b"broken")
    assert evaluate.main([*argv, str(tmp_path / "third")]) == 0  # trained anew
    again = json.loads((tmp_path / "third" / "metrics.json").read_text())["overall"]["copies"]
    assert again == entry


def test_several_sets_are_compared_at_the_smallest_ones_size(sets, classifier, tmp_path):
    real, first = sets
    second = write_set(tmp_path / "second", count=12, side=40, seed=4)
    flags = ["--feature_extractor", f"classifier:{classifier}", "--bootstrap", "3"]
    argv = ["--real_dir", str(real), "--compare", str(first), str(second), "--device", "cpu"]
    assert evaluate.main([*argv, *flags, "--output_dir", str(tmp_path / "run")]) == 0
    whole = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert list(whole["sets"]) == ["synthetic", "second"]
    for name, result in whole["sets"].items():
        alone = json.loads((tmp_path / "run" / name / "metrics.json").read_text(encoding="utf-8"))
        assert alone == result
        assert result["overall"]["fid"]["n_synthetic"] == 12
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Synthetic sets side by side" in html
    assert 'href="second/report.html"' in html
    values = [result["overall"]["fid"]["value"] for result in whole["sets"].values()]
    assert values[0] != values[1]


def test_broken_images_are_all_reported_before_a_network_loads(sets, tmp_path):
    broken = write_set(tmp_path / "broken", count=5)
    (broken / "images" / "001.png").write_bytes(b"")
    (broken / "images" / "003.png").write_text("no image")
    (tmp_path / "classifier").mkdir()  # not one: would fail when loaded
    flags = ["--feature_extractor", f"classifier:{tmp_path / 'classifier'}"]
    with pytest.raises(UserError) as caught:
        run((sets[0], broken), tmp_path / "run", *flags)
    assert "metadata.csv:3" in str(caught.value)
    assert "metadata.csv:5" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_broken_images_can_be_skipped_and_are_counted(sets, tmp_path):
    broken = write_set(tmp_path / "broken", count=5)
    (broken / "images" / "001.png").write_bytes(b"")
    result = run((sets[0], broken), tmp_path / "run", "--metrics", "ms_ssim", "--skip_invalid")
    assert result["overall"]["ms_ssim"]["n_synthetic"] == 4
    assert "1 broken synthetic rows dropped" in result["options"]["notes"][0]


def test_a_missing_weight_file_is_named_with_its_origin(sets, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(sets, tmp_path / "run")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "--feature_weights" in said
    assert "weights-inception-2015-12-05-6726825d.pth (https://github.com/toshas" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--real_dir", "no_such_folder"], "--real_dir"),
        (["--synthetic_dir", "/no/such.csv"], "--synthetic_dir"),
        (["--synthetic_dir", "REAL"], "--synthetic_dir are the same"),
        (["--feature_extractor", "clip"], "clip needs --feature_weights PATH: openai/clip"),
        (["--compare", "REAL"], "give either --synthetic_dir or --compare"),
        (["--fail_above", "0.1"], "--fail_above needs --train_dir"),
        (["--fail_above", "10"], "--fail_above"),
        (["--retrieval_encoder", "no/such/folder"], "--retrieval_encoder"),
        (["--metrics", "retrieval"], "--metrics retrieval needs --retrieval_encoder"),
        (["--metrics", "copies"], "--metrics copies needs --train_dir"),
        (["--metrics", "cmmd"], "--metrics cmmd needs --feature_extractor clip"),
        (["--feature_extractor", "vgg"], "'vgg' is none of inception"),
        (["--feature_extractor", "classifier:no_such_folder"], "--feature_extractor"),
        (["--feature_weights", "no_such.pth"], "--feature_weights"),
        (["--metrics", "fid2"], "--metrics"),
        (["--metrics", "agreement"], "--metrics agreement needs --classifier"),
        (["--max_pairs", "0"], "--max_pairs"),
        (["--resolution", "-8"], "--resolution"),
        (["--resize_mode", "random_crop"], "--resize_mode"),
        (["--bootstrap", "-1"], "--bootstrap"),
        (["--real_splits", "test"], "--real_splits"),
        (["--output_dir"], "--output_dir"),
    ],
)
def test_a_bad_flag_is_named_with_exit_status_2(sets, capsys, flags, named):
    real, synthetic = map(str, sets)
    argv = ["--real_dir", real, "--synthetic_dir", synthetic, "--output_dir", "unused"]
    flags = [real if flag == "REAL" else flag for flag in flags]
    with pytest.raises(SystemExit) as caught:
        evaluate.main([*argv, *flags])
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--output_dir", "SYNTHETIC"], "would be written into"),
        (["--output_dir", "SYNTHETIC/evaluation"], "must not travel with a data set"),
        (["--output_dir", "run", "--feature_cache_dir", "REAL/cache"], "must not travel"),
    ],
)
def test_nothing_is_written_into_a_data_set(sets, capsys, flags, said):
    real, synthetic = map(str, sets)
    flags = [f.replace("SYNTHETIC", synthetic).replace("REAL", real) for f in flags]
    argv = ["--real_dir", real, "--synthetic_dir", synthetic, "--metrics", "ms_ssim"]
    with pytest.raises(SystemExit) as caught:
        evaluate.parse_args([*argv, *flags])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_sets_are_not_compared_into_the_folder_they_lie_in(sets, tmp_path, capsys):
    compared = [str(write_set(tmp_path / name, count=2)) for name in "ab"]
    argv = ["--real_dir", str(sets[0]), "--metrics", "ms_ssim", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        evaluate.parse_args([*argv, "--compare", *compared])
    assert "would be written into" in capsys.readouterr().err


def test_names_of_compared_sets_differ_and_are_folder_names():
    assert set_names(["a/x", "b/x", "c/x-2"]) == ["x", "x-2", "x-2-2"]
    assert set_names(["runs/oct-{0..3}.tar", "runs/*.tar"]) == ["oct-_0..3", "set"]


def test_sets_without_splits_and_patients_are_told(sets, tmp_path):
    plain = write_set(tmp_path / "plain", count=6)
    rows = [{"file_name": f"images/{k:03d}.png", "text": "a", "label": "a"} for k in range(6)]
    write_table(plain, rows)
    flags = ["--metrics", "ms_ssim", "--real_split", "test"]
    result = run((plain, sets[1]), tmp_path / "run", *flags)
    notes = " ".join(result["options"]["notes"])
    assert "the real set has no column split: all of it is used" in notes
    assert "6 real images have no patient_id" in notes
    assert "(test split)" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_agreement_without_labels_has_a_reason(sets, classifier, tmp_path):
    plain = write_set(tmp_path / "plain", count=4)
    rows = [{"file_name": f"images/{k:03d}.png", "text": "a"} for k in range(4)]
    write_table(plain, rows)
    flags = ["--metrics", "agreement", "--classifier", str(classifier)]
    entry = run((sets[0], plain), tmp_path / "run", *flags)["overall"]["agreement"]
    assert entry["value"] is None
    assert entry["notes"] == ["no synthetic image has a label that the classifier knows"]


def test_an_interval_needs_five_patients_and_five_images():
    pool = np.random.default_rng(0).normal(size=(20, 3))
    options = DistanceOptions(num_resamples=5, seed=0, device="cpu")
    four, five = (
        frechet_entry(Pools(pool, pool + 1, np.arange(20) % k), options)["fid"] for k in (4, 5)
    )
    assert "ci95" not in four and "ci95" in five
    assert "no interval: fewer than 5 patients or synthetic images" in four["notes"]


def test_a_hub_name_and_shards_pass_the_flag():
    for source in ("owner/oct-set", "shards/oct-{00..03}.tar"):
        assert cli.data_source(source) == source


def test_the_set_of_flags_is_frozen():
    parser = evaluate.build_parser()
    found = {option for action in parser._actions for option in action.option_strings} - {"-h"}
    assert found == {f"--{name}" for name in FLAGS.split()} | {"--help"}
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize("argv", [["--help"], ["--max_pairs", "none"]])
def test_help_and_bad_flags_answer_at_once(argv):
    """Without torch or Pillow, whose import alone takes longer than the answer may."""
    code = (
        "import sys, time; start = time.perf_counter(); import evaluate\n"
        f"try: evaluate.parse_args({argv})\n"
        "except SystemExit as stop: status = stop.code\n"
        "heavy = {'torch', 'PIL', 'numpy', 'scipy'} & set(sys.modules)\n"
        "print(status, sorted(heavy), time.perf_counter() - start, file=sys.stderr)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    status, heavy, seconds = done.stderr.splitlines()[-1].rsplit(" ", 2)
    assert (int(status), heavy) == (0 if "--help" in argv else 2, "[]")
    assert float(seconds) < 1.5 <= 60 > time.perf_counter() - start


def test_intervals_of_neighbours_stay_wide_where_all_images_lie_inside():
    pool = np.random.default_rng(0).normal(size=(30, 2))
    options = DistanceOptions(num_resamples=0, seed=0, device="cpu")
    inside = Pools(pool, pool[:12] + 1e-6, np.arange(30))
    precision = neighbour_entries(inside, options)["precision"]
    assert precision["value"] == 1
    assert precision["ci95"][0] == pytest.approx(0.757, abs=1e-3)  # Wilson, 12 of 12
