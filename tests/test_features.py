"""Feature networks: the same numbers as the reference packages, and no other file's in silence."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.models import inception_v3

from utils import features
from utils.backbones import build_network
from utils.classifier import Classifier, ClassifierConfig
from utils.cli import UserError
from utils.inception import FidInception
from utils.tensorflow_resize import resize_like_tensorflow1


def randomise(network):
    """Weights and batch statistics that keep the activations in range."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(randomise(FidInception()).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights):
    return features.load_extractor("inception", weights=weights)


def scans(count, side, mode="RGB"):
    rng = np.random.default_rng(side)
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


def test_inception_agrees_with_torch_fidelity_on_the_same_file(weights, extractor):
    """Pool and unbiased logits, raw pixels in: the published FID had un-normalised input."""
    reference = FeatureExtractorInceptionV3(
        "reference", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    for side in (64, 299):
        images = scans(2, side)
        pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2)
        pool, logits = (output.numpy() for output in reference(pixels))
        ours = features.extract(extractor, images, batch_size=2)
        assert ours.pool == pytest.approx(pool, abs=1e-5 * float(np.abs(pool).max()))
        assert ours.logits == pytest.approx(logits, abs=1e-5 * float(np.abs(logits).max()))
        assert ours.pool.std() > 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inception_gives_the_same_features_on_the_gpu(weights, extractor):
    images = scans(3, 96)
    on_gpu = features.load_extractor("inception", weights=weights, device="cuda")
    there, here = features.extract(on_gpu, images), features.extract(extractor, images)
    assert there.pool == pytest.approx(here.pool, abs=1e-2 * float(np.abs(here.pool).max()))


def test_resize_is_that_of_tensorflow_1():
    pixels = 255 * torch.rand(2, 3, 40, 61, generator=torch.Generator().manual_seed(0))
    for side in (29, 61, 299):
        reference = interpolate_bilinear_2d_like_tensorflow1x(
            pixels, size=(side, side), align_corners=False
        )
        torch.testing.assert_close(
            resize_like_tensorflow1(pixels, side), reference, atol=1e-3, rtol=0
        )


def test_gray_images_are_three_equal_channels_and_sizes_may_differ(extractor):
    gray = scans(1, 48, "L") + scans(1, 72, "L") + scans(1, 48, "RGB")
    together = features.extract(extractor, gray, batch_size=2)
    alone = [features.extract(extractor, [image.convert("RGB")]).pool for image in gray]
    assert together.pool == pytest.approx(np.concatenate(alone), abs=1e-4)
    assert together.pool.shape == (3, extractor.dim) == (3, 2048)
    assert together.logits.shape == (3, extractor.num_logits) == (3, 1008)
    assert extractor.prepare(gray[0]).shape == (48, 48, 1)


def test_on_a_cpu_neither_batch_size_nor_order_changes_a_bit(extractor):
    images = scans(11, 96, "L") + scans(2, 96, "RGB")
    first = features.extract(extractor, images, batch_size=1)
    for batch_size in (5, 64):
        again = features.extract(extractor, images, batch_size=batch_size)
        assert again.pool.tobytes() == first.pool.tobytes()
    order = np.random.default_rng(0).permutation(len(images))
    counted = []
    shuffled = features.extract(extractor, [images[i] for i in order], progress=counted.append)
    assert shuffled.pool.tobytes() == first.pool[order].tobytes()
    assert shuffled.logits.tobytes() == first.logits[order].tobytes()
    assert sum(counted) == len(images)
    assert len({row.tobytes() for row in first.pool}) == len(images)


def test_the_fused_convolutions_and_the_plain_ones_agree(extractor, monkeypatch):
    images = scans(2, 299)
    fused = features.extract(extractor, images)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = features.extract(extractor, images)
    scale = float(np.abs(plain.pool).max())
    assert 0 < np.abs(fused.pool - plain.pool).max() <= 1e-5 * scale


def test_a_larger_image_is_reduced_antialiased_and_a_smaller_one_left_alone(extractor):
    large = Image.fromarray(np.indices((897, 897)).sum(0).astype(np.uint8) % 2 * 255)
    reduced = extractor.prepare(large)
    assert reduced.shape == (299, 299, 1)
    assert 110 <= reduced[50:-50, 50:-50].min() <= reduced[50:-50, 50:-50].max() <= 145
    small = scans(1, 40)[0]
    assert extractor.prepare(small).tobytes() == small.tobytes()
    with pytest.raises(ValueError, match="square images, not 8 x 4"):
        extractor.prepare(Image.new("L", (8, 4)))


def test_no_image_gives_empty_arrays(extractor):
    nothing = features.extract(extractor, [])
    assert nothing.pool.shape == (0, 2048)
    assert nothing.logits.shape == (0, 1008)


def test_facts_are_json_and_name_the_file(extractor):
    facts = json.loads(json.dumps(extractor.facts))
    assert facts["sha256"] == extractor.sha256
    assert facts["name"] == "inception"
    assert facts["input_px"] == 299


def test_the_hash_is_that_of_the_file(weights, extractor):
    import hashlib

    assert extractor.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert extractor.weights == str(weights)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(9)}, path)
    with pytest.raises(UserError, match=r"other\.pth: not the weights of the FID Inception"):
        features.load_extractor("inception", weights=path)


def test_a_pickle_in_a_weight_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "trap.pth"
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(UserError, match=r"trap\.pth"):
        features.load_extractor("inception", weights=path)
    assert not (tmp_path / "sprung").exists()


def test_an_unknown_name_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no feature extractor 'resnet'"):
        features.load_extractor("resnet", weights=tmp_path / "any")
    for name, wanted in (
        ("inception", "weights-inception-2015-12-05-6726825d.pth"),
        ("clip", "openai/clip-vit-large-patch14-336"),
        ("dinov2", "facebook/dinov2-large"),
    ):
        with pytest.raises(UserError, match=f"extractor {name} needs its weights: {wanted}"):
            features.load_extractor(name)
    with pytest.raises(UserError, match=r"gone\.pth"):
        features.load_extractor("inception", weights=tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="no classifier here"):
        features.load_extractor(f"classifier:{tmp_path}")


def test_torchvision_inception_is_torchvisions_and_says_that_it_is_no_fid(tmp_path):
    network = randomise(inception_v3(weights=None, init_weights=False, transform_input=True)).eval()
    torch.save(network.state_dict(), tmp_path / "tv.pth")
    images = scans(1, 299)
    pixels = torch.from_numpy(np.array(images[0])).permute(2, 0, 1)[None] / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.inference_mode():
        logits = network((pixels - mean) / std).numpy()
    extractor = features.load_extractor("torchvision-inception", weights=tmp_path / "tv.pth")
    found = features.extract(extractor, images)
    assert found.logits == pytest.approx(logits, abs=1e-4 * float(np.abs(logits).max()))
    assert found.pool.shape == (1, 2048)
    assert "not the FID's" in extractor.note


def classifier_folder(folder, *, multi_label):
    labels = ("drusen", "macular edema", "normal")
    config = ClassifierConfig(
        backbone="small",
        labels=labels,
        multi_label=multi_label,
        resolution=32,
        resize_mode="center_crop",
        mean=0.3,
        std=0.2,
        data_hash="none",
    )
    network = build_network("small", num_labels=3, resolution=32, seed=0, mean=0.3, std=0.2)
    Classifier(config, network).save(folder)
    return folder


def test_a_classifier_gives_its_penultimate_layer_and_log_probabilities(tmp_path):
    folder = classifier_folder(tmp_path / "multi_class", multi_label=False)
    images = scans(5, 40, "L")
    extractor = features.load_extractor(f"classifier:{folder}")
    found = features.extract(extractor, images, batch_size=2)
    probabilities, pool = Classifier.load(folder).predict_and_features(images)
    assert found.pool == pytest.approx(pool, abs=1e-5)
    assert found.pool.shape == (5, extractor.dim)
    assert np.exp(found.logits) == pytest.approx(probabilities, abs=1e-6)


def test_a_multi_label_classifier_has_no_logits_of_exclusive_classes(tmp_path):
    folder = classifier_folder(tmp_path / "multi_label", multi_label=True)
    extractor = features.load_extractor(f"classifier:{folder}")
    assert extractor.num_logits == 0
    assert features.extract(extractor, scans(2, 40)).logits is None
