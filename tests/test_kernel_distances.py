"""KID and CMMD: closed forms first, then the reference packages, then limits."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from utils import kernel_distances, metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_kid_of_two_images_each_by_hand():
    """D = 1: k(1, 2) = 27 within real, k(0, 3) = 1 within synthetic, 1 + 64 + 1 + 343 between."""
    real, synthetic = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    value, std = metrics.kernel_inception_distance(
        real=real, synthetic=synthetic, subset_size=2, num_subsets=3, seed=0
    )
    assert value == pytest.approx(27 + 1 - 2 * (1 + 64 + 1 + 343) / 4)
    assert std == pytest.approx(0, abs=1e-9)


def test_kid_of_one_distribution_is_zero_on_average_and_may_be_negative(rng):
    options = {"subset_size": 20, "num_subsets": 1, "seed": 0}
    values = [
        metrics.kernel_inception_distance(
            real=rng.normal(size=(20, 6)), synthetic=rng.normal(size=(20, 6)), **options
        )[0]
        for _ in range(300)
    ]
    assert min(values) < 0
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("count_r", "count_s", "size"), [(60, 50, 20), (60, 50, 50), (900, 40, 20)]
)
def test_kid_agrees_with_torch_fidelity_draw_by_draw(rng, dtype, count_r, count_s, size):
    """The third case is too large for one kernel and goes subset by subset."""
    real = rng.normal(size=(count_r, 16)).astype(dtype)
    synthetic = (0.5 + rng.normal(size=(count_s, 16))).astype(dtype)
    reference = kid_features_to_metric(
        *map(torch.from_numpy, (real, synthetic)),
        kid_subsets=30,
        kid_subset_size=size,
        rng_seed=7,
        verbose=False,
    )
    value, std = metrics.kernel_inception_distance(
        real=real, synthetic=synthetic, subset_size=size, num_subsets=30, seed=7
    )
    assert value == pytest.approx(reference["kernel_inception_distance_mean"], rel=1e-4)
    assert std == pytest.approx(reference["kernel_inception_distance_std"], rel=1e-4)


def test_kid_agrees_with_torchmetrics(rng):
    real, synthetic = rng.normal(size=(40, 12)), 0.3 + rng.normal(size=(40, 12))
    reference = poly_mmd(torch.from_numpy(real), torch.from_numpy(synthetic)).item()
    value, _ = metrics.kernel_inception_distance(
        real=real, synthetic=synthetic, subset_size=40, num_subsets=2, seed=0
    )
    assert value == pytest.approx(reference, rel=1e-9)


def test_kernel_distances_do_not_depend_on_the_blocks_of_rows(rng, monkeypatch):
    sets = {"real": rng.normal(size=(30, 4)), "synthetic": 1 + rng.normal(size=(25, 4))}
    options = {"subset_size": 20, "num_subsets": 10, "seed": 0}
    kid, distance = metrics.kernel_inception_distance(**sets, **options), metrics.cmmd(**sets)
    monkeypatch.setattr(kernel_distances, "_BLOCK_ELEMENTS", 7 * 30)
    assert metrics.kernel_inception_distance(**sets, **options) == pytest.approx(kid)
    assert metrics.cmmd(**sets) == pytest.approx(distance)


@pytest.mark.parametrize(
    ("size", "subsets", "message"),
    [
        (1, 5, "needs 2 images or more, got 1"),
        (6, 5, "6 images from 5 real and 9 synthetic"),
        (3, 0, "cannot draw 0 times"),
    ],
)
def test_kid_refuses(size, subsets, message):
    options = {"subset_size": size, "num_subsets": subsets, "seed": 0}
    with pytest.raises(ValueError, match=message):
        metrics.kernel_inception_distance(
            real=np.ones((5, 2)), synthetic=np.ones((9, 2)), **options
        )


def test_cmmd_of_opposite_embeddings_by_hand():
    """|x - y| = 2: 1000 (1 + 1 - 2 exp(-4 / 200)), whatever the lengths."""
    value = metrics.cmmd(real=np.array([[3.0, 0.0]]), synthetic=np.array([[-0.5, 0.0]]))
    assert value == pytest.approx(2000 * (1 - np.exp(-0.02)), rel=1e-12)


def test_cmmd_of_equal_sets_is_zero(rng):
    real = rng.normal(size=(30, 8)).astype(np.float32)
    assert metrics.cmmd(real=real, synthetic=real[::-1]) == pytest.approx(0, abs=1e-9)


def test_cmmd_is_the_definition_written_out(rng):
    real, synthetic = rng.normal(size=(15, 6)), 0.5 + rng.normal(size=(11, 6))
    r, s = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (real, synthetic))

    def mean(first, second):
        squares = np.square(first[:, None] - second[None]).sum(axis=-1)
        return np.exp(-squares / (2 * 10**2)).mean()

    expected = 1000 * (mean(r, r) + mean(s, s) - 2 * mean(r, s))
    assert metrics.cmmd(real=real, synthetic=synthetic) == pytest.approx(expected, rel=1e-9)


def test_cmmd_refuses_an_embedding_without_direction():
    with pytest.raises(ValueError, match="a synthetic embedding is zero"):
        metrics.cmmd(real=np.ones((2, 3)), synthetic=np.array([[1.0, 0, 0], [0, 0, 0]]))
