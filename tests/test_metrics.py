"""Inception score, MS-SSIM, halves and intervals: closed forms first, then reference packages."""

import numpy as np
import pytest
import pytorch_msssim
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from utils import metrics, ms_ssim


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_halves_share_no_patient_and_hold_every_image_once():
    patients = [f"p{index // 3}" for index in range(30)]
    first, second = metrics.split_halves(patients, seed=4)
    assert sorted([*first, *second]) == list(range(30))
    assert {patients[i] for i in first}.isdisjoint({patients[i] for i in second})
    assert len(first) == len(second) == 15
    other, _ = metrics.split_halves(patients, seed=5)
    assert list(other) != list(first)


def test_inception_score_of_sure_and_evenly_spread_predictions_is_the_number_of_classes():
    logits = np.tile(100.0 * np.eye(7), (10, 1))
    value, std = metrics.inception_score(logits, splits=10)
    assert value == pytest.approx(7)
    assert std == pytest.approx(0, abs=1e-9)


def test_inception_score_of_one_prediction_for_all_is_one(rng):
    logits = np.tile(rng.normal(size=(1, 20)), (30, 1))
    assert metrics.inception_score(logits, splits=3)[0] == pytest.approx(1)


def test_inception_score_takes_log_probabilities_of_zero():
    with np.errstate(divide="ignore"):
        logits = np.log(np.tile(np.eye(4), (5, 1)))
    assert metrics.inception_score(logits, splits=1)[0] == pytest.approx(4)


def test_inception_score_agrees_with_torch_fidelity(rng):
    logits = 3 * rng.normal(size=(105, 1008))
    reference = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)
    value, std = metrics.inception_score(logits, splits=10)
    assert value == pytest.approx(reference["inception_score_mean"], rel=1e-9)
    assert std == pytest.approx(reference["inception_score_std"], rel=1e-6)


def test_inception_score_shuffles_images_sorted_by_class():
    in_order = np.repeat(100.0 * np.eye(10), 50, axis=0)
    assert metrics.inception_score(in_order, splits=10, seed=None)[0] == pytest.approx(1)
    assert metrics.inception_score(in_order, splits=10, seed=0)[0] > 8


@pytest.mark.parametrize("splits", [0, 11])
def test_inception_score_refuses_more_splits_than_images(splits):
    with pytest.raises(ValueError, match=f"into {splits} parts"):
        metrics.inception_score(np.zeros((10, 3)), splits=splits)


def pictures(rng, count, side):
    """Blocks and noise in [0, 1], (count, side, side)."""
    blocks = np.kron(rng.random((count, side // 8, side // 8)), np.ones((1, 8, 8)))
    return (blocks + 0.2 * rng.random((count, side, side))) / 1.2


def channel(images):
    return torch.from_numpy(images)[:, None]


def test_ms_ssim_of_an_image_with_itself_is_one(rng):
    for side in (11, 64, 128, 192):
        images = np.repeat(rng.random((1, side, side)), 2, axis=0)
        assert metrics.ms_ssim(images, images) == pytest.approx([1, 1])


@pytest.mark.parametrize("side", [176, 256])
def test_ms_ssim_agrees_with_pytorch_msssim(rng, side):
    first = pictures(rng, 3, side)
    second = 0.7 * first + 0.3 * pictures(rng, 3, side)
    reference = pytorch_msssim.ms_ssim(
        channel(first), channel(second), data_range=1.0, size_average=False
    )
    assert metrics.ms_ssim(first, second) == pytest.approx(reference.numpy(), abs=1e-4)


def test_ms_ssim_agrees_with_torchmetrics_but_for_its_padded_last_scale(rng):
    """torchmetrics averages the last scale over mirrored borders too: its map is cut to windows."""
    first = pictures(rng, 3, 192)
    second = 0.7 * first + 0.3 * pictures(rng, 3, 192)
    options = {"data_range": 1.0, "reduction": "none"}
    images = channel(first), channel(second)
    weights = (*ms_ssim.SCALE_WEIGHTS[:4], 0.0)
    four = multiscale_structural_similarity_index_measure(*images, **options, betas=weights)
    small = [torch.nn.functional.avg_pool2d(x, 16) for x in images]
    _, last = structural_similarity_index_measure(*small, **options, return_full_image=True)
    windows = last[..., 5:-5, 5:-5].mean((1, 2, 3))
    reference = four * windows ** ms_ssim.SCALE_WEIGHTS[4]
    assert metrics.ms_ssim(first, second) == pytest.approx(reference.numpy(), abs=1e-4)


def test_ms_ssim_of_a_data_range_is_that_of_scaled_images(rng):
    first, second = pictures(rng, 2, 64), pictures(rng, 2, 64)
    scaled = metrics.ms_ssim(255 * first, 255 * second, data_range=255)
    assert scaled == pytest.approx(metrics.ms_ssim(first, second))


def test_ms_ssim_does_not_take_its_range_from_the_first_image(rng):
    """The published script did: a dark first image changed the value, and the order mattered."""
    dark, bright = 0.05 * pictures(rng, 1, 176), pictures(rng, 1, 176)
    reference = pytorch_msssim.ms_ssim(channel(dark), channel(bright), data_range=1.0).item()
    assert metrics.ms_ssim(dark, bright) == pytest.approx([reference], abs=1e-4)
    assert metrics.ms_ssim(dark, bright) == pytest.approx(metrics.ms_ssim(bright, dark))


@pytest.mark.parametrize(
    ("side", "scales"), [(512, 5), (176, 5), (175, 4), (128, 4), (64, 3), (22, 2), (11, 1)]
)
def test_ms_ssim_has_five_scales_where_they_fit_and_says_how_many(side, scales):
    """The published script always used three."""
    assert ms_ssim.num_scales(side, 1000) == scales
    weights = ms_ssim.scale_weights(1000, side)
    assert weights.sum() == pytest.approx(1)
    assert weights == pytest.approx(np.array(ms_ssim.SCALE_WEIGHTS)[:scales] / weights_sum(scales))


def weights_sum(scales):
    return sum(ms_ssim.SCALE_WEIGHTS[:scales])


def test_ms_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 pixels a side; the images are 40x10"):
        metrics.ms_ssim(np.zeros((1, 10, 40)), np.zeros((1, 10, 40)))


def test_ms_ssim_of_pairs_is_that_of_each_pair(rng, monkeypatch):
    monkeypatch.setattr(ms_ssim, "_BLOCK_BYTES", 4 * 64 * 64 * 3)  # three pairs a block
    images = (255 * pictures(rng, 6, 64)).astype(np.uint8)
    pairs = np.array([(0, 1), (0, 2), (1, 2), (1, 5), (3, 4)])
    counts = []
    values = metrics.pairwise_ms_ssim(lambda i: images[i], pairs, progress=counts.append)
    expected = metrics.ms_ssim(images[pairs[:, 0]] / 255, images[pairs[:, 1]] / 255)
    assert values == pytest.approx(expected, abs=1e-5)
    assert counts == [3, 2]


def test_pairs_are_all_pairs_of_a_group_where_the_cap_allows():
    pairs, owners = metrics.choose_pairs(["a", "b", "a", "c", "a", "b"], max_pairs=99, seed=0)
    assert pairs.tolist() == [[0, 2], [0, 4], [2, 4], [1, 5]]
    assert owners.tolist() == [0, 0, 0, 1]


def test_pairs_under_a_cap_are_different_and_spread_evenly_over_groups():
    groups = ["large"] * 40 + ["small"] * 3 + ["middle"] * 10
    pairs, owners = metrics.choose_pairs(groups, max_pairs=43, seed=0)
    assert np.bincount(owners).tolist() == [20, 3, 20]
    assert len({tuple(pair) for pair in pairs}) == 43
    assert all(i < j and groups[i] == groups[j] for i, j in pairs)


def test_pairs_of_more_groups_than_the_cap_are_one_a_group():
    groups = np.repeat(np.arange(50), 4)
    pairs, owners = metrics.choose_pairs(groups.tolist(), max_pairs=8, seed=0)
    assert len(pairs) == 8
    assert len(set(owners)) == 8
    other, _ = metrics.choose_pairs(groups.tolist(), max_pairs=8, seed=1)
    assert other.tolist() != pairs.tolist()


def test_single_images_give_no_pair():
    pairs, owners = metrics.choose_pairs(["a", "b"], max_pairs=5, seed=0)
    assert pairs.shape == (0, 2)
    assert metrics.pairwise_ms_ssim(lambda index: None, pairs).shape == owners.shape == (0,)


def test_interval_of_a_mean_draws_whole_groups(rng):
    values = np.repeat(rng.normal(size=20), 10)
    groups = np.repeat(np.arange(20), 10)
    narrow = metrics.bootstrap_interval(values, seed=0)
    wide = metrics.bootstrap_interval(values, groups=groups, seed=0)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    assert np.ptp(wide) == pytest.approx(np.sqrt(10) * np.ptp(narrow), rel=0.2)


def test_interval_of_a_mean_needs_five_groups():
    values = np.arange(10.0)
    assert metrics.bootstrap_interval(values, groups=list("aabbccddaa")) is None
    assert metrics.bootstrap_interval(values, groups=list("aabbccddee")) is not None
    assert metrics.bootstrap_interval(np.empty(0)) is None


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775)],
)
def test_wilson_interval_has_its_textbook_values(successes, total, low, high):
    assert metrics.wilson_interval(successes, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_of_nothing_is_none():
    assert metrics.wilson_interval(0, 0) is None


@pytest.mark.parametrize(("right", "total"), [(0, 4), (1, 4), (4, 4)])
def test_interval_of_one_share_is_wilsons(right, total):
    interval = metrics.mean_share_interval(np.array([right, 0]), np.array([total, 0]))
    assert interval == pytest.approx(metrics.wilson_interval(right, total))


def test_interval_of_a_mean_share_contains_it_also_where_all_but_one_of_many_labels_succeed():
    """Percentiles of posterior draws would end at 0.95, below the mean of 0.995."""
    totals = np.full(40, 5)
    low, high = metrics.mean_share_interval(np.array([4, *[5] * 39]), totals)
    assert 0.9 < low < 0.995 < high <= 1
    assert metrics.mean_share_interval(totals, totals)[1] == 1
    assert metrics.mean_share_interval(0 * totals, totals)[0] == 0
    assert metrics.mean_share_interval(np.array([0]), np.array([0])) is None


def test_interval_of_a_mean_share_holds_the_truth_in_19_of_20_draws(rng):
    shares, totals = np.array([0.98, 0.9, 0.8, 0.6]), np.array([40, 12, 25, 60])
    intervals = [
        metrics.mean_share_interval(rng.binomial(totals, shares), totals) for _ in range(2000)
    ]
    held = np.mean([low <= shares.mean() <= high for low, high in intervals])
    assert 0.93 < held < 0.98
