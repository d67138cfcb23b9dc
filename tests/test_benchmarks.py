import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import drawing_table, evaluate_throughput, generate_throughput, train_throughput
from benchmarks.arithmetic import unet_flops
from benchmarks.blocks import paired_ratio
from utils.cli import UserError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "train_throughput.py"


def test_the_benchmark_times_both_loops(tiny_pipeline, toy_dataset, capsys):
    argv = [f"--model={tiny_pipeline}", f"--data_dir={toy_dataset}", "--batch_size=2"]
    argv += ["--pairs=1", "--block_steps=2", "--untimed_steps=1", "--markdown"]
    assert train_throughput.main(argv) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    (row,) = result["batch_sizes"]
    assert result["resolution"] == 64
    assert row["ratio"] == row["ratio_least"] == row["ratio_most"] > 0
    for loop in ("ours", "reference"):
        assert row[loop]["images_per_s"] > 0 and row[loop]["matmul_share"] > 0
        assert 0.3 < row[loop]["loss"] < 3
    ratio = row["ours"]["images_per_s"] / row["reference"]["images_per_s"]
    assert row["ratio"] == pytest.approx(ratio)
    assert "| `train_text_to_image.py`" in printed.err


def test_help_is_quick_and_has_examples():
    began = time.perf_counter()
    run = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "--model sd14 --precision bf16" in run.stdout
    assert time.perf_counter() - began < 1.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only without a GPU")
def test_sd14_without_a_gpu_says_what_to_do():
    with pytest.raises(UserError, match=r"needs a GPU.*--model demo"):
        train_throughput.main(["--model=sd14"])


def test_a_wrong_batch_size_ends_with_the_flags_name(capsys):
    with pytest.raises(SystemExit) as stop:
        train_throughput.parse_args(["--batch_size", "0"])
    assert stop.value.code == 2 and "--batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(("reference", "ours"), [(0.5, math.nan), (0.5, 0.1), (0.1, 0.5)])
def test_loops_that_do_not_learn_alike_end_the_run(reference, ours):
    row = {"batch_size": 2, "reference": {"loss": reference}, "ours": {"loss": ours}}
    with pytest.raises(UserError, match="batch size 2"):
        train_throughput.check(row)
    train_throughput.check(row | {"ours": {"loss": 1.1 * reference}})


def test_the_ratio_is_of_pairs_not_of_means():
    ratio = paired_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0])
    assert (ratio.median, ratio.least, ratio.most) == (3.0, 2.0, 4.0)


def test_stable_diffusion_has_its_published_size():
    from benchmarks.sd14 import new_text_encoder, new_unet, new_vae

    with torch.device("meta"):
        parts = [new_unet(), new_vae(), new_text_encoder()]
    sizes = [sum(weight.numel() for weight in part.parameters()) for part in parts]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]
    # about 0.8 TFLOP a forward pass at 64 x 64 latents (two per multiplication and addition)
    assert unet_flops(parts[0], text_length=77) == pytest.approx(0.8e12, rel=0.05)


def test_squares_of_one_size_are_cut_from_scans_into_two_sets(tmp_path):
    folders = evaluate_throughput.cut_squares(None, tmp_path, count=5, side=64)
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert list(map(len, names)) == [3, 2]
    with Image.open(folders[1] / names[1][0]) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
    (tmp_path / "more").mkdir()
    source = str(folders[0])
    with pytest.raises(UserError, match="gives 3 squares"):
        evaluate_throughput.cut_squares(source, tmp_path / "more", count=9, side=64)


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("torch_fidelity", 2.001, True),
        ("pytorch_fid", 2.001, False),
        ("pytorch_fid", 2.1, True),
        ("ours_cached", 2.0000001, True),
    ],
)
def test_evaluations_that_differ_end_the_run(name, value, refused):
    runs = dict.fromkeys(("ours", "ours_cached", "torch_fidelity", "pytorch_fid"), 2.0)
    runs = {key: {"values": {"fid": each}} for key, each in (runs | {name: value}).items()}
    if refused:
        with pytest.raises(UserError, match="distance"):
            evaluate_throughput.check(runs, side=299)
    else:
        evaluate_throughput.check(runs, side=299)
    if name != "ours_cached":  # at another size the packages resize in other ways
        evaluate_throughput.check(runs, side=256)


@pytest.fixture(scope="module")
def scan_classifier(tmp_path_factory):
    """A classifier's folder, as the benchmark would train one, with random weights."""
    from utils.backbones import build_network
    from utils.classifier import Classifier, ClassifierConfig

    folder = tmp_path_factory.mktemp("classifier") / "classifier"
    config = ClassifierConfig(
        backbone="small",
        labels=("drusen", "normal"),
        multi_label=False,
        resolution=32,
        resize_mode="center_crop",
        mean=0.3,
        std=0.2,
        data_hash="",
    )
    network = build_network("small", num_labels=2, resolution=32, seed=0)
    Classifier(config, network).save(folder)
    return folder


def test_the_benchmark_of_drawing_times_and_judges_every_side(
    tiny_pipeline, scan_classifier, capsys
):
    argv = [f"--model={tiny_pipeline}", f"--classifier={scan_classifier}", "--device=cpu"]
    argv += ["--precision=bf16", "--num_images=16", "--pairs=2", "--num_inference_steps=2"]
    generate_throughput.main([*argv, "--batch_size=8", "--num_real=40", "--markdown"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    sides, distances = result["sides"], result["frechet_distance"]
    assert list(sides) == list(drawing_table.SIDES)
    assert set(distances) == {*sides, "simulated_scans"}
    assert (result["resolution"], result["batch_size"]) == (64, 8)
    assert {entry["n_synthetic"] for entry in distances.values()} == {32}
    assert sides["ours"]["ours_is_faster"] == {"median": 1, "least": 1, "most": 1}
    # The same pictures in float32; random weights draw noise, far from scans.
    near = pytest.approx(distances["plain_float32"]["value"], rel=0.02)
    assert distances["ours_float32"]["value"] == near
    assert distances["simulated_scans"]["value"] < distances["ours"]["value"]
    assert printed.err.count("| `ImageSampler` against") == 4


def test_a_block_that_takes_half_as_long_is_twice_as_fast():
    times = {"ours": [(1.0, 2.0), (1.0, 2.0)], "default_loop": [(2.0, 2.0), (4.0, 6.0)]}
    found = generate_throughput.summary(times, num_images=6)
    assert found["default_loop"]["ours_is_faster"] == {"median": 3, "least": 2, "most": 4}
    assert found["default_loop"]["images_per_s"] == 2
    assert found["default_loop"]["cpu_seconds_per_image"] == pytest.approx(4 / 6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only without a GPU")
def test_drawing_with_sd14_without_a_gpu_says_what_to_do():
    with pytest.raises(UserError, match=r"needs a GPU.*--model demo"):
        generate_throughput.main(["--model=sd14"])
