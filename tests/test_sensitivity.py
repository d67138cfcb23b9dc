"""What goes wrong with a generator moves the score that should tell it, in the right direction.

Real scans of other patients stand in for synthetic ones: as they are, and spoiled in one way. The
network is a classifier trained on further real scans.
"""

import csv

import numpy as np
import pytest
from PIL import Image, ImageFilter
from test_evaluate import run

from demo.simulate import simulate
from utils.dataset import load_dataset
from utils.diagnosis_recipe import Recipe

FINDINGS = ("macular edema", "normal", "pigment epithelial detachment")
SIDE = 48


def write_scans(folder, first, count, *, spoil=lambda image, index: image, relabel=None):
    """A dataset folder of simulated scans, with one prompt a finding."""
    folder.mkdir()
    rows = [("file_name", "text", "label", "patient_id")]
    for index in range(first, first + count):
        scan = simulate(index, seed=1, resolution=SIDE, findings=FINDINGS, looks=["spectral"])
        spoil(scan.image, index).save(folder / f"{index}.png")
        label = (relabel or {}).get(scan.label, scan.label)
        rows.append((f"{index}.png", label, label, scan.truth["patient_id"]))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("real") / "real", 0, 120)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Folder of a classifier that names the findings of most scans."""
    folder = tmp_path_factory.mktemp("network")
    records = list(load_dataset(write_scans(folder / "scans", 1000, 150), check_pixels=False))
    recipe = Recipe(
        test=records[:10],
        labels=FINDINGS,
        multi_label=False,
        resolution=32,
        resize_mode="center_crop",
        num_steps=150,
    )
    classifier = recipe.train(records, name="real")
    classifier.save(folder / "classifier")
    return folder / "classifier"


@pytest.fixture(scope="module")
def scored(real, network, tmp_path_factory):
    """A function from what is spoiled to the overall scores and those per label."""

    def score(name, **options):
        folder = tmp_path_factory.mktemp(name)
        synthetic = write_scans(folder / "synthetic", 300, 120, **options)
        flags = ["--feature_extractor", f"classifier:{network}", "--bootstrap", "0"]
        result = run((real, synthetic), folder / "run", *flags)
        return result["overall"], result["per_label"]

    return score


@pytest.fixture(scope="module")
def good(scored):
    return scored("good")


def values(entries):
    return {name: entry["value"] for name, entry in entries.items()}


def test_scans_of_other_patients_are_near_the_floors(good):
    overall = good[0]
    assert overall["fid"]["equal_n"]["value"] < 1.5 * overall["fid"]["equal_n"]["floor"]
    assert abs(overall["kid"]["value"]) < 3 * overall["kid"]["std"] + abs(overall["kid"]["floor"])
    for name in ("precision", "recall", "density", "coverage"):
        assert overall[name]["value"] > 0.8 * overall[name]["floor"]
    assert overall["agreement"]["value"] > 0.8


def test_blur_moves_the_distances_and_makes_images_more_alike(scored, good):
    blurred, clear = (
        values(scored("blur", spoil=lambda i, _: i.filter(ImageFilter.GaussianBlur(3)))[0]),
        values(good[0]),
    )
    assert blurred["fid"] > 2 * clear["fid"]
    assert blurred["kid"] > clear["kid"] + 0.01
    assert blurred["precision"] < clear["precision"]
    assert blurred["ms_ssim"] > clear["ms_ssim"] + 0.05


def add_noise(image, index):
    noise = np.random.default_rng(index).normal(0, 100, (SIDE, SIDE))
    return Image.fromarray(np.clip(np.asarray(image.convert("L")) + noise, 0, 255).astype("uint8"))


def test_noise_moves_the_distances_and_makes_images_less_alike(scored, good):
    noisy, clear = values(scored("noise", spoil=add_noise)[0]), values(good[0])
    assert noisy["fid"] > 2 * clear["fid"]
    assert noisy["kid"] > clear["kid"]
    assert noisy["precision"] < clear["precision"]
    assert noisy["ms_ssim"] < clear["ms_ssim"] - 0.05


def test_one_repeated_image_is_precise_and_covers_nothing(scored, good, real):
    repeated, varied = [], good[0]

    def repeat(image, index):
        repeated.append(image)
        return repeated[0]

    overall, _ = scored("collapse", spoil=repeat)
    collapsed = values(overall)
    assert collapsed["ms_ssim"] == pytest.approx(1)
    assert collapsed["fid"] > 2 * varied["fid"]["value"]
    assert collapsed["coverage"] < 0.1 < 0.5 < varied["coverage"]["value"]
    assert collapsed["recall"] < 0.1
    assert collapsed["inception_score"] == pytest.approx(1)
    assert varied["inception_score"]["value"] > 1.5


def test_swapped_labels_move_what_is_asked_per_label_and_nothing_else(scored, good):
    following = dict(zip(FINDINGS, (*FINDINGS[1:], FINDINGS[0])))
    overall, per_label = scored("swap", relabel=following)
    for name in ("fid", "kid", "precision", "coverage", "inception_score"):
        assert overall[name]["value"] == pytest.approx(good[0][name]["value"], rel=1e-6)
    assert overall["agreement"]["value"] < 0.2 < 0.8 < good[0]["agreement"]["value"]
    for label in FINDINGS:
        assert per_label[label]["fid"]["value"] > 2 * good[1][label]["fid"]["value"]
