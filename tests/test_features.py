"""Feature networks: the same numbers as the reference packages, and no other file's in silence."""

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
from utils.inception import FidInception, resize_like_tensorflow1


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
    for side in (64, 320):
        images = scans(2, side)
        pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2)
        pool, logits = (output.numpy() for output in reference(pixels))
        ours = extractor.extract(images, batch_size=2)
        assert ours.pool == pytest.approx(pool, abs=1e-5 * float(np.abs(pool).max()))
        assert ours.logits == pytest.approx(logits, abs=1e-5 * float(np.abs(logits).max()))
        assert ours.pool.std() > 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inception_gives_the_same_features_on_the_gpu(weights, extractor):
    images = scans(3, 96)
    there = features.load_extractor("inception", weights=weights, device="cuda").extract(images)
    here = extractor.extract(images)
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
    gray = scans(1, 48, "L") + scans(1, 72, "L")
    together = extractor.extract(gray, batch_size=2)
    alone = extractor.extract([image.convert("RGB") for image in gray], batch_size=1)
    assert together.pool == pytest.approx(alone.pool, abs=1e-4)
    assert together.pool.shape == (2, extractor.dim) == (2, 2048)
    assert together.logits.shape == (2, 1008)


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
    with pytest.raises(UserError, match="no feature extractor 'clip'"):
        features.load_extractor("clip", weights=tmp_path / "any")
    with pytest.raises(UserError, match="inception needs its weight file"):
        features.load_extractor("inception")
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
    found = extractor.extract(images)
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
    found = extractor.extract(images, batch_size=2)
    probabilities, pool = Classifier.load(folder).predict_and_features(images)
    assert found.pool == pytest.approx(pool, abs=1e-5)
    assert found.pool.shape == (5, extractor.dim)
    assert np.exp(found.logits) == pytest.approx(probabilities, abs=1e-6)


def test_a_multi_label_classifier_has_no_logits_of_exclusive_classes(tmp_path):
    folder = classifier_folder(tmp_path / "multi_label", multi_label=True)
    assert features.load_extractor(f"classifier:{folder}").extract(scans(2, 40)).logits is None


def test_batches_join_in_order():
    parts = [
        features.Features(np.full((n, 2), n, np.float32), np.full((n, 3), n, np.float32))
        for n in (1, 2)
    ]
    joined = features.concatenate(parts)
    assert joined.pool[:, 0].tolist() == joined.logits[:, 0].tolist() == [1, 2, 2]
