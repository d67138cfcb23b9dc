"""Fréchet distance: closed forms first, then the reference packages, then resamples and subsets."""

import numpy as np
import pytest
import scipy.linalg
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from utils import frechet, metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mixed(rng, count, dim, mean=0.0):
    """Correlated Gaussian features (count, dim)."""
    return mean + rng.normal(size=(count, dim)) @ np.random.default_rng(9).normal(size=(dim, dim))


def test_fid_of_a_shift_is_its_squared_length(rng):
    real = mixed(rng, 40, 8)
    shift = np.array([3.0, 0, 0, 0, 0, 0, 0, -4.0])
    assert metrics.frechet_distance(real=real, synthetic=real + shift) == pytest.approx(25)


def test_fid_of_a_scaling_about_the_mean_is_the_squared_change_of_spread(rng):
    real = mixed(rng, 60, 6, mean=5.0)
    mean = real.mean(axis=0)
    trace = np.trace(np.cov(real, rowvar=False))
    wider = mean + 3 * (real - mean)
    assert metrics.frechet_distance(real=real, synthetic=wider) == pytest.approx(4 * trace)


def test_fid_of_diagonal_covariances_is_a_sum_over_axes():
    axes = np.vstack([np.eye(3), -np.eye(3)])
    real, synthetic = axes * [1, 2, 3], axes * [2, 2, 1]
    variance = 2 / 5  # of one axis: two of six points at +-1, divisor 5
    expected = variance * (1 + 0 + 4)
    assert metrics.frechet_distance(real=real, synthetic=synthetic) == pytest.approx(expected)


def test_fid_of_equal_sets_is_zero_also_with_fewer_images_than_features(rng):
    for count in (5, 200):
        real = mixed(rng, count, 50)
        trace = np.trace(np.cov(real, rowvar=False))
        assert metrics.frechet_distance(real=real, synthetic=real[::-1]) < 1e-9 * trace


def test_fid_of_a_shift_with_fewer_images_than_features_is_its_squared_length(rng):
    real = mixed(rng, 10, 300)
    shift = np.full(300, 0.1)
    assert metrics.frechet_distance(real=real, synthetic=real + shift) == pytest.approx(3.0)


def test_fid_of_two_images_each_is_finite_and_symmetric(rng):
    first, second = mixed(rng, 2, 64), mixed(rng, 2, 64)
    there = metrics.frechet_distance(real=first, synthetic=second)
    assert np.isfinite(there)
    assert metrics.frechet_distance(real=second, synthetic=first) == pytest.approx(there)


@pytest.mark.parametrize(("count_r", "count_s", "dim"), [(300, 200, 32), (30, 50, 100)])
def test_fid_agrees_with_torch_fidelity(rng, count_r, count_s, dim):
    real = mixed(rng, count_r, dim).astype(np.float32)
    synthetic = mixed(rng, count_s, dim, mean=0.3).astype(np.float32)
    reference = fid_statistics_to_metric(
        fid_features_to_statistics(torch.from_numpy(real)),
        fid_features_to_statistics(torch.from_numpy(synthetic)),
        False,
    )["frechet_inception_distance"]
    ours = metrics.frechet_distance(real=real, synthetic=synthetic)
    assert ours == pytest.approx(reference, rel=1e-4)


@pytest.mark.parametrize(("count_r", "count_s", "dim"), [(300, 200, 32), (90, 30, 60)])
def test_fid_agrees_with_pytorch_fid(rng, count_r, count_s, dim):
    real, synthetic = mixed(rng, count_r, dim), mixed(rng, count_s, dim, mean=0.3)
    gaussians = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (real, synthetic)]
    reference = calculate_frechet_distance(*gaussians[0], *gaussians[1])
    ours = metrics.frechet_distance(real=real, synthetic=synthetic)
    assert ours == pytest.approx(reference, rel=1e-4)


def square_root_distance(real, synthetic):
    shift = real.mean(axis=0) - synthetic.mean(axis=0)
    cov_r, cov_s = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    root = scipy.linalg.sqrtm(cov_r @ cov_s).real
    return shift @ shift + np.trace(cov_r + cov_s - 2 * root)


def test_fid_agrees_with_the_matrix_square_root(rng):
    real, synthetic = mixed(rng, 400, 12), mixed(rng, 300, 12, mean=1.0)
    expected = square_root_distance(real, synthetic)
    ours = metrics.frechet_distance(real=real, synthetic=synthetic)
    assert ours == pytest.approx(expected, rel=3e-9)


def test_fid_agrees_with_the_matrix_square_root_on_a_steep_spectrum(rng):
    """Rectified features with eigenvalues over eight decades, as those of networks are."""
    mix = rng.normal(size=(200, 200)) * 10.0 ** -np.linspace(0, 4, 200)[:, None]
    real, synthetic = (
        np.maximum(rng.normal(size=(900, 200)) @ mix + shift, 0).astype(np.float32)
        for shift in (0.2, 0.3)
    )
    expected = square_root_distance(real.astype(np.float64), synthetic.astype(np.float64))
    ours = metrics.frechet_distance(real=real, synthetic=synthetic)
    assert ours == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dim", [6, 40])
def test_fid_of_features_that_never_fire_is_that_of_the_others(rng, dim):
    """Singular covariances, of many images and of few."""
    real, synthetic = mixed(rng, 30, dim), mixed(rng, 35, dim, mean=0.5)
    padded = [np.hstack([x, np.zeros((len(x), 4)), x[:, :2]]) for x in (real, synthetic)]
    kept = [np.hstack([np.sqrt(2) * x[:, :2], x[:, 2:]]) for x in (real, synthetic)]
    ours = metrics.frechet_distance(real=padded[0], synthetic=padded[1])
    assert ours == pytest.approx(metrics.frechet_distance(real=kept[0], synthetic=kept[1]))


def test_fid_does_not_depend_on_the_blocks_of_rows(rng, monkeypatch):
    real, synthetic = mixed(rng, 50, 6, mean=9.0), mixed(rng, 41, 6)
    whole = metrics.frechet_distance(real=real, synthetic=synthetic)
    monkeypatch.setattr(frechet, "_BLOCK_ROWS", 7)
    assert metrics.frechet_distance(real=real, synthetic=synthetic) == pytest.approx(whole)


@pytest.mark.parametrize("dim", [5, 30])
def test_fid_weights_count_images_as_if_repeated(rng, dim):
    real, synthetic = mixed(rng, 12, dim), mixed(rng, 9, dim, mean=1.0)
    counts_r, counts_s = rng.integers(0, 4, 12), rng.integers(0, 4, 9)
    weighted = frechet.frechet_of_weights(real, synthetic)(counts_r, counts_s)
    repeated = metrics.frechet_distance(
        real=np.repeat(real, counts_r, axis=0), synthetic=np.repeat(synthetic, counts_s, axis=0)
    )
    assert weighted == pytest.approx(repeated)


@pytest.mark.parametrize(
    ("real", "synthetic", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2)), r"one D"),
        (np.zeros((1, 3)), np.zeros((4, 3)), r"2 real images or more, got 1"),
        (np.zeros((4, 3)), np.zeros((0, 3)), r"2 synthetic images or more, got 0"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), r"synthetic features hold NaN"),
    ],
)
def test_fid_refuses(real, synthetic, message):
    with pytest.raises(ValueError, match=message):
        metrics.frechet_distance(real=real, synthetic=synthetic)


def test_fid_interval_holds_the_value_although_resamples_lie_above_it(rng):
    real, synthetic = rng.normal(size=(30, 60)), rng.normal(size=(30, 60)) + 0.2
    value = metrics.frechet_distance(real=real, synthetic=synthetic)
    low, high = metrics.frechet_interval(real=real, synthetic=synthetic, num_resamples=20, seed=1)
    assert low < value < high
    again = metrics.frechet_interval(real=real, synthetic=synthetic, num_resamples=20, seed=1)
    assert again == (low, high)


def test_fid_interval_is_as_wide_as_the_spread_over_fresh_draws(rng):
    def draw():
        return rng.normal(size=(150, 3)), rng.normal(size=(150, 3)) + np.array([1.0, 0, 0])

    fresh = [metrics.frechet_distance(real=r, synthetic=s) for r, s in (draw() for _ in range(300))]
    real, synthetic = draw()
    low, high = metrics.frechet_interval(real=real, synthetic=synthetic, num_resamples=200, seed=0)
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(fresh), rel=0.25)


def test_fid_interval_is_wider_when_images_of_a_patient_are_alike(rng):
    patients = np.repeat(np.arange(10), 8)
    real = np.repeat(rng.normal(size=(10, 4)), 8, axis=0) + 0.01 * rng.normal(size=(80, 4))
    options = {"real": real, "synthetic": rng.normal(size=(80, 4)), "num_resamples": 60, "seed": 0}
    by_image = np.ptp(metrics.frechet_interval(**options))
    assert np.ptp(metrics.frechet_interval(**options, real_groups=patients)) > 1.5 * by_image


def test_fid_at_equal_n_of_whole_sets_is_the_distance(rng):
    real, synthetic = mixed(rng, 20, 5), mixed(rng, 20, 5, mean=1.0)
    value, std = metrics.frechet_distance_at_equal_n(
        real=real, synthetic=synthetic, size=20, num_draws=3, seed=0
    )
    assert value == pytest.approx(metrics.frechet_distance(real=real, synthetic=synthetic))
    assert std == pytest.approx(0, abs=1e-9)


def test_fid_at_equal_n_compares_sets_of_different_size(rng):
    """All come from one distribution; only the number of images makes the plain distance differ."""
    real, small, large = (rng.normal(size=(n, 20)) for n in (800, 60, 800))
    plain = [metrics.frechet_distance(real=real, synthetic=x) for x in (small, large)]
    options = {"size": 60, "num_draws": 20, "seed": 0}
    (few, _), (many, std) = (
        metrics.frechet_distance_at_equal_n(real=real, synthetic=x, **options)
        for x in (small, large)
    )
    assert plain[0] > 3 * plain[1]
    assert few == pytest.approx(many, rel=0.1)
    assert 0 < std < 0.2 * many
    again = metrics.frechet_distance_at_equal_n(real=real, synthetic=large, **options)
    assert again == (many, std)
    other = metrics.frechet_distance_at_equal_n(
        real=real, synthetic=large, **{**options, "seed": 1}
    )
    assert other[0] != many


def test_fid_at_equal_n_refuses_more_images_than_there_are():
    with pytest.raises(ValueError, match="5 images from 4 real and 9 synthetic"):
        metrics.frechet_distance_at_equal_n(
            real=np.zeros((4, 2)), synthetic=np.zeros((9, 2)), size=5, num_draws=1, seed=0
        )
