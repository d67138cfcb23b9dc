"""Precision, recall, density, coverage: closed forms, the reference package, limits."""

import numpy as np
import prdc as reference_package
import pytest

from utils import metrics
from utils import prdc as prdc_module


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def line(*places):
    return np.array(places, np.float64)[:, None]


def test_prdc_on_a_line_by_hand():
    """k = 1. Real balls (-1, 1), (0, 2), (1, 9); synthetic (0, 0.5), (0.25, 0.75), (0.5, 17.5).

    They are open: the real 0 and the synthetic 9 lie on a border and count as outside.
    """
    scores = metrics.prdc(real=line(0, 1, 5), synthetic=line(0.25, 0.5, 9), k=1)
    assert scores.precision.tolist() == [True, True, False]
    assert scores.density.tolist() == [2, 2, 0]
    assert scores.recall.tolist() == [False, True, True]
    assert scores.coverage.tolist() == [True, True, False]


def test_prdc_of_equal_sets_is_one(rng):
    real = rng.normal(size=(40, 5)).astype(np.float32)
    scores = metrics.prdc(real=real, synthetic=real.copy())
    assert scores.precision.all()
    assert scores.recall.all()
    assert scores.coverage.all()


def test_one_image_repeated_has_no_recall_and_little_coverage(rng):
    real = rng.normal(size=(60, 4)).astype(np.float32)
    synthetic = np.repeat(real[:1] + np.float32(0.01), 50, axis=0)
    scores = metrics.prdc(real=real, synthetic=synthetic)
    assert scores.precision.all()
    assert not scores.recall.any()
    assert scores.coverage.mean() < 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("count_r", "count_s", "dim", "k"),
    [(200, 150, 4, 5), (30, 170, 64, 3), (300, 300, 2048, 5), (150, 8, 16, 5), (40, 40, 2, 1)],
)
def test_prdc_agrees_with_its_package_exactly(rng, monkeypatch, dtype, count_r, count_s, dim, k):
    monkeypatch.setattr(prdc_module, "_BLOCK_ROWS", 64)
    mix = rng.normal(size=(3, dim))  # in all dimensions at once, most neighbourhoods would be empty
    real = (rng.normal(size=(count_r, 3)) @ mix).astype(dtype)
    synthetic = ((0.5 + 0.9 * rng.normal(size=(count_s, 3))) @ mix).astype(dtype)
    reference = reference_package.compute_prdc(real, synthetic, k)
    scores = metrics.prdc(real=real, synthetic=synthetic, k=k)
    ours = {name: values.mean() for name, values in scores._asdict().items()}
    assert ours == pytest.approx(reference, rel=1e-15, abs=0)
    assert sum(0 < value < 1 for value in ours.values()) >= 2  # or ties would not show


def test_prdc_refuses_sets_without_enough_neighbours():
    with pytest.raises(ValueError, match="5th of an image's neighbours needs 6 synthetic images"):
        metrics.prdc(real=np.ones((9, 2)), synthetic=np.ones((5, 2)))
    with pytest.raises(ValueError, match="k must be 1 or more"):
        metrics.prdc(real=np.ones((9, 2)), synthetic=np.ones((9, 2)), k=0)
    metrics.prdc(real=np.eye(6), synthetic=np.eye(6))
