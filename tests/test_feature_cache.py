"""Features kept on disk: only what is new passes through the network, whatever the processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from test_evaluate import ROOT, run, save_classifier, write_set

from utils import feature_cache
from utils.dataset import load_dataset
from utils.features import extract, load_extractor
from utils.image_sets import ImageSet
from utils.reconstruction import Reconstruction


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set") / "real", count=20, side=48)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return load_extractor(f"classifier:{save_classifier(tmp_path_factory.mktemp('c') / 'c')}")


@pytest.fixture
def measured(extractor, tmp_path, monkeypatch):
    """Features of a folder, and how many images passed through the network for them."""
    passed = []
    original = feature_cache.run_network

    def counted(network, pixels, **options):
        pixels = list(pixels)
        passed.append(len(pixels))
        return original(network, pixels, **options)

    monkeypatch.setattr(feature_cache, "run_network", counted)

    def measure(folder, *, resolution=40, mode="center_crop", network=extractor, vae=None):
        images = ImageSet("real", load_dataset(folder), resolution, mode)
        shared = {"state": PartialState(cpu=True), "folder": tmp_path / "cache"}
        digests = feature_cache.digests_of(images, **shared)
        passed.clear()
        found = feature_cache.cached_features(
            images, network, digests=digests, batch_size=4, reconstruction=vae, **shared
        )
        return found, sum(passed)

    return measure


def copy_of(folder, target, *, change=None):
    target.mkdir()
    (target / "images").mkdir()
    (target / "metadata.csv").write_bytes((folder / "metadata.csv").read_bytes())
    for path in (folder / "images").iterdir():
        (target / "images" / path.name).write_bytes(path.read_bytes())
    if change:
        Image.new("L", (48, 48), 77).save(target / "images" / change)
    return target


def test_features_are_those_of_the_network_and_are_made_once(measured, folder, extractor):
    first, passed = measured(folder)
    assert passed == 20
    images = ImageSet("real", load_dataset(folder), 40, "center_crop")
    direct = extract(extractor, [images.image(i, largest_px=32) for i in range(20)])
    assert first.pool.tobytes() == direct.pool.tobytes()
    assert first.logits.tobytes() == direct.logits.tobytes()
    again, passed = measured(folder)
    assert passed == 0
    assert again.pool.tobytes() == first.pool.tobytes()


def test_of_a_changed_set_only_the_new_image_is_computed(measured, folder, tmp_path):
    first, _ = measured(folder)
    found, passed = measured(copy_of(folder, tmp_path / "copy", change="007.png"))
    assert passed == 1
    changed = (found.pool != first.pool).any(axis=1)
    assert changed.nonzero()[0].tolist() == [7]


@pytest.mark.parametrize("change", [{"resolution": 24}, {"mode": "stretch"}])
def test_another_size_or_mode_is_computed_anew(measured, folder, change):
    measured(folder)
    assert measured(folder, **change)[1] == 20


def test_another_network_is_computed_anew(measured, folder, tmp_path):
    measured(folder)
    torch.manual_seed(5)
    other = load_extractor(f"classifier:{save_classifier(tmp_path / 'o', labels=('a', 'b'))}")
    assert measured(folder, network=other)[1] == 20


def test_reconstructions_are_kept_apart_from_the_images(measured, folder, tiny_pipeline):
    plain, _ = measured(folder)
    vae = Reconstruction(tiny_pipeline, device="cpu", offline=True)
    passed_through, passed = measured(folder, vae=vae)
    assert passed == 20
    assert not np.allclose(passed_through.pool, plain.pool)
    assert measured(folder, vae=vae)[1] == 0
    assert measured(folder)[1] == 0


def test_a_damaged_shard_is_made_again(measured, folder, tmp_path):
    first, _ = measured(folder)
    (shard,) = (tmp_path / "cache").glob("features-*/*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(data)
    again, passed = measured(folder)
    assert passed == 20
    assert again.pool.tobytes() == first.pool.tobytes()


def launch(count, argv):
    """evaluate.py under accelerate launch on CPUs."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if count > 1:
        command += ["--multi_gpu"]
    command += [f"--num_processes={count}", "--num_machines=1", "--dynamo_backend=no"]
    command += ["--mixed_precision=no", "--num_cpu_threads_per_process=1", "--main_process_port=0"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "evaluate.py", *argv],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_two_processes_share_the_work_and_give_the_same_bytes(tmp_path, extractor):
    sets = [write_set(tmp_path / name, count=21, seed=k) for k, name in enumerate("rs")]
    flags = ["--feature_extractor", extractor.name, "--bootstrap=3", "--offline"]
    one = run(sets, tmp_path / "one" / "run", *flags)
    argv = [
        f"--real_dir={sets[0]}",
        f"--synthetic_dir={sets[1]}",
        "--num_workers=0",
        "--device=cpu",
    ]
    launch(2, [*argv, f"--output_dir={tmp_path / 'two' / 'run'}", *flags])
    shards = [
        {path.relative_to(tmp_path / name): path for path in cache.rglob("*.safetensors")}
        for name in ("one", "two")
        for cache in [tmp_path / name / "feature_cache"]
    ]
    assert len(shards[1]) > len(shards[0])  # each process wrote its own
    two = (tmp_path / "two" / "run" / "metrics.json").read_text(encoding="utf-8")
    expected = (tmp_path / "one" / "run" / "metrics.json").read_text(encoding="utf-8")
    assert two == expected.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    assert one["overall"]["fid"]["value"] > 0
