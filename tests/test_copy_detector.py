import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from utils import copy_training
from utils.cli import UserError
from utils.copy_detector import INNER_BATCH, CopyDetector, build_detector_network, gray_views
from utils.copy_training import DetectorOptions, nt_xent, train_copy_detector

SIDE = 32
QUICK = DetectorOptions(resolution=SIDE, embedding_dim=16, batch_size=8, min_steps=6, max_steps=6)


def pictures(count, side=SIDE, seed=0):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 4, 4))
    return np.kron(blocks, np.ones((side // 4, side // 4), int)).astype(np.uint8)


@pytest.fixture(scope="module")
def detector():
    return train_copy_detector(pictures(20), QUICK)


def test_loss_of_views_that_agree_among_orthogonal_images_has_its_closed_form():
    """Each row: its partner at cosine 1, itself left out, the 2 B - 2 others at 0."""
    count, temperature = 5, 0.5
    both = torch.eye(count).repeat(2, 1)
    expected = math.log(math.exp(1 / temperature) + 2 * count - 2) - 1 / temperature
    assert nt_xent(both, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_loss_of_one_embedding_for_all_is_that_of_guessing():
    loss = nt_xent(torch.ones(12, 3), temperature=0.1)
    assert loss.item() == pytest.approx(math.log(11), rel=1e-5)


def test_loss_does_not_see_the_length_of_an_embedding():
    vectors = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(1.0, 9)[:, None]
    one, other = (nt_xent(v, temperature=0.2).item() for v in (vectors, lengths * vectors))
    assert one == pytest.approx(other, rel=1e-5)


def test_a_crop_keeps_the_area_and_lies_inside_the_image():
    """On a ramp along x the drawn part can be read off: first and last value, and the slope."""
    side = 64
    ramp = torch.linspace(0, 1, side).expand(200, 1, side, side)
    for images, axis in ((ramp, 3), (ramp.transpose(2, 3), 2)):
        crops = copy_training.resized_crop(images, torch.Generator().manual_seed(1))
        assert (crops.diff(dim=axis) < 1e-6).float().mean((1, 2, 3)).max() < 0.03  # nothing outside
        span = crops.amax((1, 2, 3)) - crops.amin((1, 2, 3))
        assert (0.7 / 1.1) ** 0.5 - 0.02 < span.min() < 0.83
        assert span.max() <= 1
        assert span.std() > 0.03
        assert crops.amin((1, 2, 3)).max() > 0.05  # not all begin at the edge


def test_steps_grow_with_the_images_between_their_bounds():
    options = DetectorOptions(views_per_image=32, batch_size=64, min_steps=300, max_steps=5000)
    assert [options.num_steps(n) for n in (2, 1000, 10**6)] == [300, 500, 5000]


def test_same_seed_gives_the_same_bytes_and_leaves_global_generators_alone(detector):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = train_copy_detector(pictures(20), QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.sha256 == detector.sha256
    other = train_copy_detector(pictures(20), DetectorOptions(**{**vars(QUICK), "seed": 1}))
    assert other.sha256 != detector.sha256
    first, second = (build_detector_network(detector.config, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.head.weight, second.head.weight)


def test_embeddings_have_unit_length_and_do_not_depend_on_the_images_around(detector):
    images = pictures(INNER_BATCH + 3, seed=1)
    together = detector.embed(images)
    assert together.dtype == np.float32
    assert np.linalg.norm(together, axis=1) == pytest.approx(1)
    singly = np.concatenate([detector.embed([image]) for image in images])
    assert singly.tobytes() == together.tobytes()
    assert detector.embed([]).shape == (0, 16)


def test_a_mirror_image_has_the_same_embedding(detector):
    images = pictures(4, seed=2)
    assert detector.embed(images[:, :, ::-1]).tobytes() == detector.embed(images).tobytes()


def test_embed_brings_pil_images_of_any_size_to_the_networks(detector):
    large = [Image.fromarray(image).resize((96, 96)) for image in pictures(3)]
    arrays = list(gray_views(large, resolution=SIDE, resize_mode="center_crop"))
    assert arrays[0].shape == (SIDE, SIDE)
    assert detector.embed(large).tobytes() == detector.embed(arrays).tobytes()


def test_a_saved_detector_embeds_alike(detector, tmp_path):
    detector.save(tmp_path / "detector")
    loaded = CopyDetector.load(tmp_path / "detector")
    images = pictures(3, seed=3)
    assert loaded.embed(images).tobytes() == detector.embed(images).tobytes()
    assert loaded.config == detector.config
    assert loaded.sha256 == detector.sha256


def test_training_needs_two_images():
    with pytest.raises(UserError, match=r"1 image\(s\).*needs 2 or more"):
        train_copy_detector(pictures(1), QUICK)
    assert train_copy_detector(pictures(2), QUICK).embed(pictures(1)).shape == (1, 16)


def test_a_folder_that_is_no_detector_is_refused(detector, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no copy detector here \(config.json"):
        CopyDetector.load(tmp_path)
    detector.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"kind": "classifier"}, "not the configuration of a copy detector"),
        ({"extra": 1}, "not the configuration of a copy detector"),
        ({"std": 0}, "std or resize_mode is no such"),
        ({"resize_mode": "fold"}, "std or resize_mode is no such"),
        ({"embedding_dim": 8}, "not those of config.json"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=words):
            CopyDetector.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        CopyDetector.load(tmp_path)
