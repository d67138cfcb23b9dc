"""The classifier folder, its predictions, and the training that makes it."""

import hashlib
import json
import math
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.backbones import build_network
from utils.classification_metrics import auroc
from utils.classifier import Classifier, ClassifierConfig, read_config, to_gray
from utils.classifier_loss import class_weights
from utils.classifier_optim import Precision, learning_rate_at, update_average
from utils.classifier_training import (
    Examples,
    TrainingOptions,
    train_classifier,
)
from utils.cli import UserError
from utils.gray_images import GrayImages
from utils.shuffled_batches import epoch_batches

LABELS = ("bright left", "bright right", "stripes")


def toy_image(kind, rng, *, size=(40, 32)):
    """A noisy image (PIL, L) of one of three kinds that differ in their pattern."""
    width, height = size
    pixels = rng.normal(90, 15, (height, width))
    if kind == 0:
        pixels[:, : width // 2] += 60
    elif kind == 1:
        pixels[:, width // 2 :] += 60
    else:
        pixels[::4] += 90
        pixels[1::4] += 90
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Scan:
    """What GrayImages needs of a record."""

    picture: Image.Image
    where: str = "toy"

    def image(self):
        return self.picture


def toy_examples(count, seed, *, resize_mode="stretch", multi_label=False):
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    targets = np.eye(3, dtype=bool)[kinds]
    scans = [Scan(toy_image(kind, rng)) for kind in kinds]
    if multi_label:  # stripes over half of the bright halves
        targets[::2, 2] = True
        striped = [toy_image(2, rng) for _ in range(count)]
        scans = [
            Scan(Image.blend(scan.picture, stripes, 0.5)) if both else scan
            for scan, stripes, both in zip(scans, striped, targets[:, 2] & (kinds < 2))
        ]
    images = GrayImages(scans, resolution=32, resize_mode=resize_mode)
    return Examples(images, targets)


def config(**changes):
    usual = ClassifierConfig(
        backbone="small",
        labels=LABELS,
        multi_label=False,
        resolution=32,
        resize_mode="stretch",
        mean=0.4,
        std=0.2,
        data_hash="abc",
    )
    return replace(usual, **changes)


def classifier(seed=0, **changes):
    wanted = config(**changes)
    network = build_network(
        wanted.backbone,
        num_labels=len(wanted.labels),
        resolution=32,
        seed=seed,
        mean=wanted.mean,
        std=wanted.std,
    )
    with torch.no_grad():  # a fresh head says the same about every image
        network.head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return Classifier(wanted, network)


def toy_images(count=7):
    rng = np.random.default_rng(1)
    return [toy_image(index % 3, rng, size=(40 + index, 32)) for index in range(count)]


def quick(**changes):
    return replace(TrainingOptions(max_epochs=2, batch_size=8, seed=3), **changes)


def fit(options, *, train=None, val=None, multi_label=False, backbone="small"):
    network = build_network(backbone, num_labels=3, resolution=32, seed=options.seed)
    return train_classifier(
        network,
        train or toy_examples(24, 0),
        val or toy_examples(9, 1),
        multi_label=multi_label,
        options=options,
        device="cpu",
    )


def test_a_loaded_classifier_says_the_same_as_the_saved_one(tmp_path):
    saved = classifier()
    hash_before = saved.sha256
    saved.save(tmp_path / "c")
    loaded = Classifier.load(tmp_path / "c")
    assert loaded.config == saved.config
    assert loaded.labels == list(LABELS)
    assert loaded.resolution == 32 and not loaded.multi_label
    np.testing.assert_array_equal(loaded.predict(toy_images()), saved.predict(toy_images()))
    file_hash = hashlib.sha256((tmp_path / "c" / "model.safetensors").read_bytes()).hexdigest()
    assert hash_before == saved.sha256 == loaded.sha256 == file_hash
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_probabilities_and_features_come_from_one_pass():
    judge = classifier()
    probs, feats = judge.predict_and_features(toy_images())
    assert probs.dtype == feats.dtype == np.float32
    assert probs.shape == (7, 3) and feats.shape == (7, 256)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(judge.predict(toy_images()), probs)
    np.testing.assert_array_equal(judge.features(toy_images()), feats)
    weight, bias = (p.detach().numpy() for p in judge.network.head.parameters())
    logits = feats @ weight.T + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs, expected, atol=1e-5)


def test_multi_label_probabilities_are_sigmoids():
    judge = classifier(multi_label=True)
    probs, feats = judge.predict_and_features(toy_images())
    weight, bias = (p.detach().numpy() for p in judge.network.head.parameters())
    np.testing.assert_allclose(probs, 1 / (1 + np.exp(-(feats @ weight.T + bias))), atol=1e-5)


@pytest.mark.parametrize("backbone", ["small", "resnet18"])
def test_an_image_has_the_same_bytes_alone_and_in_a_batch_of_any_size(backbone):
    judge, images = classifier(backbone=backbone), toy_images(17)
    alone = [judge.predict_and_features([image], batch_size=1) for image in images]
    for count, batch_size in ((3, 3), (8, 8), (17, 17), (17, 5), (16, 64)):
        together = judge.predict_and_features(images[-count:], batch_size=batch_size)
        for table, one in zip(together, zip(*alone)):
            assert table.tobytes() == np.concatenate(one)[-count:].tobytes()


def test_no_image_gives_empty_tables_and_progress_counts_every_image():
    judge = classifier()
    probs, feats = judge.predict_and_features([])
    assert probs.shape == (0, 3) and feats.shape == (0, 256)
    done = []
    judge.predict(iter(toy_images(17)), progress=done.append)
    assert done == [16, 1]


def test_colour_is_dropped_and_the_resize_mode_is_kept():
    wide = toy_image(0, np.random.default_rng(0), size=(90, 32))
    probs = {
        mode: classifier(resize_mode=mode).predict([wide])
        for mode in ("stretch", "pad", "center_crop", "random_crop")
    }
    assert not np.allclose(probs["stretch"], probs["pad"], atol=1e-4)
    assert not np.allclose(probs["stretch"], probs["center_crop"], atol=1e-4)
    np.testing.assert_array_equal(probs["random_crop"], probs["center_crop"])
    np.testing.assert_array_equal(
        classifier().predict([wide.convert("RGB")]), classifier().predict([wide])
    )


def test_a_folder_without_a_classifier_is_told_with_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Classifier.load(tmp_path)
    classifier().save(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        Classifier.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a", "b"]}, "not those of"),
        ({"labels": ["a", "a", "b"]}, "different names"),
        ({"labels": ["a", "b", 3]}, "different names"),
        ({"labels": "abc"}, "labels is 'abc'"),
        ({"backbone": "resnet19"}, "resnet19"),
        ({"resolution": 0}, "resolution"),
        ({"resize_mode": "squeeze"}, "resize_mode"),
        ({"format": 99}, "format 1"),
        ({"mean": None}, "mean is None"),
        ({"std": 0}, "std is 0"),
        ({"multi_label": "no"}, "multi_label is 'no'"),
    ],
)
def test_a_broken_configuration_is_refused(tmp_path, changes, message):
    classifier().save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        Classifier.load(tmp_path)


def test_a_missing_entry_or_text_that_is_no_json_is_refused(tmp_path):
    classifier().save(tmp_path)
    path = tmp_path / "config.json"
    found = json.loads(path.read_text())
    del found["labels"]
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="labels missing"):
        Classifier.load(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Classifier.load(tmp_path)


def test_the_configuration_is_read_without_the_weights(tmp_path):
    classifier().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not looked at")
    assert read_config(tmp_path) == config()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        read_config(tmp_path)


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    classifier().save(tmp_path)
    for content in (b"", b"garbage", pickle.dumps({"head.weight": 1})):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="not a readable file of weights"):
            Classifier.load(tmp_path)


def test_training_learns_the_toy_diagnoses_and_they_survive_a_blur():
    result = fit(quick(max_epochs=8), train=toy_examples(48, 0))
    judge = Classifier(config(), result.network)
    held_out = toy_examples(30, 7)
    for images in (held_out.images, held_out.images.blurred(4.0)):  # 1 px at 32 px
        probs, _ = judge.predict_gray(images)
        right = probs.argmax(axis=1) == held_out.targets.argmax(axis=1)
        assert right.mean() > 0.8
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_training_learns_labels_that_occur_together():
    train, val = (toy_examples(count, seed, multi_label=True) for count, seed in ((48, 0), (12, 1)))
    result = fit(quick(max_epochs=8), train=train, val=val, multi_label=True)
    judge = Classifier(config(multi_label=True), result.network)
    held_out = toy_examples(30, 7, multi_label=True)
    probs, _ = judge.predict_gray(held_out.images)
    assert held_out.targets.sum(axis=1).max() == 2
    for k in range(3):
        assert auroc(probs[:, k], held_out.targets[:, k]) > 0.8


def test_same_seed_same_bytes_and_another_seed_other_bytes():
    hashes = []
    for seed in (3, 3, 4):
        result = fit(quick(max_train_steps=4, seed=seed))
        hashes.append(Classifier(config(), result.network).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_training_ends_at_the_step_asked_for_inside_an_epoch():
    result = fit(quick(max_train_steps=4))  # three steps an epoch
    assert result.steps == 4
    assert [row["step"] for row in result.history] == [3, 4]
    assert not result.stopped_early


def test_training_stops_when_the_validation_loss_no_longer_falls_and_keeps_the_best_epoch():
    val = toy_examples(9, 1)
    wrong = Examples(val.images, np.roll(val.targets, 1, axis=1))  # learning makes it worse
    result = fit(quick(max_epochs=30, patience=3, learning_rate=5e-3), val=wrong)
    assert result.stopped_early
    losses = [row["val_loss"] for row in result.history]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert len(losses) - result.best_epoch >= 2
    judge = Classifier(config(), result.network)
    probs, _ = judge.predict_gray(wrong.images)
    loss = -np.log(probs[wrong.targets]).mean()
    assert loss == pytest.approx(min(losses), rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_training_with_the_step():
    with pytest.raises(UserError, match=r"not finite at step \d"):
        fit(quick(learning_rate=1e30, augment="none", ema_decay=0.0))


def test_fp16_needs_a_cuda_device():
    with pytest.raises(UserError, match="CUDA"):
        Precision("cpu", "fp16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_learns_on_a_gpu(precision):
    network = build_network("small", num_labels=3, resolution=32, seed=0)
    result = train_classifier(
        network,
        toy_examples(48, 0),
        toy_examples(9, 1),
        multi_label=False,
        options=quick(max_epochs=8, mixed_precision=precision),
        device="cuda",
    )
    assert result.history[-1]["val_accuracy"] > 0.8


def test_bf16_training_learns_too():
    result = fit(quick(max_epochs=4, mixed_precision="bf16"), train=toy_examples(48, 0))
    assert result.history[-1]["train_loss"] < 0.8 * result.history[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in result.network.parameters())


def test_class_weights_give_every_class_the_same_say():
    targets = np.eye(3, dtype=bool)[[0] * 6 + [1] * 3 + [2] * 1]
    weights = class_weights(targets, multi_label=False)
    np.testing.assert_allclose(weights * torch.tensor([6.0, 3.0, 1.0]), 10 / 3, rtol=1e-6)
    several = np.array([[1, 1], [0, 1], [0, 1], [0, 0]], bool)
    np.testing.assert_allclose(class_weights(several, multi_label=True), [3, 1 / 3])
    rare = np.eye(2, dtype=bool)[[0] * 999 + [1]]
    assert class_weights(rare, multi_label=False).max() == 10


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    rates = [learning_rate_at(step, total_steps=100, peak=1.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[55] == pytest.approx(0.01 + 0.99 * 0.5)
    assert rates[100] == pytest.approx(0.01)


def test_the_average_moves_by_one_minus_the_decay():
    average, network = (
        build_network("small", num_labels=2, resolution=32, seed=seed) for seed in (0, 1)
    )
    before, current = average.head.weight.clone(), network.head.weight
    update_average(average, network, decay=0.9, step=1000)
    torch.testing.assert_close(average.head.weight, 0.9 * before + 0.1 * current)
    update_average(average, network, decay=0.99, step=0)  # the first step: decay 0.1
    expected = 0.1 * (0.9 * before + 0.1 * current) + 0.9 * current
    torch.testing.assert_close(average.head.weight, expected)


def test_an_epoch_shows_every_image_once_and_differs_from_the_next():
    generator = torch.Generator().manual_seed(0)
    first = np.concatenate(list(epoch_batches(12, 4, generator)))
    second = np.concatenate(list(epoch_batches(12, 4, generator)))
    assert sorted(first) == list(range(12)) and first.tolist() != second.tolist()
    assert [len(batch) for batch in epoch_batches(10, 4, generator)] == [4, 4]
    assert [len(batch) for batch in epoch_batches(3, 4, generator)] == [3]


@pytest.mark.parametrize("resize_mode", ["stretch", "center_crop", "random_crop"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_read_batch_by_batch_are_those_held_in_memory(resize_mode, num_workers):
    rng = np.random.default_rng(0)
    scans = [Scan(toy_image(index % 3, rng, size=(60, 40))) for index in range(9)]
    plan = [np.array([4, 0, 7]), np.array([1, 8, 2]), np.array([3, 5, 6]), np.array([0])]
    found = []
    for limit in (1 << 20, 0):
        images = GrayImages(
            scans,
            resolution=32,
            resize_mode=resize_mode,
            num_workers=num_workers,
            memory_limit=limit,
        )
        assert images.in_memory == (limit > 0)
        crops = np.random.default_rng(5)
        batches = list(images.batches(plan, rng=crops))
        assert [indices.tolist() for indices, _ in batches] == [p.tolist() for p in plan]
        found.append((torch.cat([gray for _, gray in batches]), np.stack(list(images))))
    assert torch.equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_random_crop_moves_along_the_long_side_only():
    ramp = Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (32, 1)))
    images = GrayImages([Scan(ramp)], resolution=32, resize_mode="random_crop")
    rng = np.random.default_rng(0)
    starts = {int(gray[0, 0, 0]) for _, gray in images.batches([np.array([0])] * 40, rng=rng)}
    assert len(starts) > 10 and min(starts) < 15 and max(starts) > 50
    (centre,) = images
    assert centre[0, 0] == 32
    expected = to_gray(ramp, resolution=32, resize_mode="center_crop")
    np.testing.assert_array_equal(centre, expected)
    assert images.shares_lost == [pytest.approx(2 / 3)]


def test_gray_statistics_are_those_of_the_pixels():
    examples = toy_examples(12, 0)
    pixels = np.stack(list(examples.images)) / 255
    mean, std = examples.images.gray_statistics()
    assert mean == pytest.approx(pixels.mean(), abs=1e-6)
    assert std == pytest.approx(pixels.std(), abs=1e-6)
    black = GrayImages([Scan(Image.new("L", (32, 32)))], resolution=32, resize_mode="stretch")
    assert math.isfinite(1 / black.gray_statistics()[1])
