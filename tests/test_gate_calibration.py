"""Thresholds for a chosen precision: known answers, brute force, and a real classifier."""

from fractions import Fraction

import numpy as np
import pytest
from test_classifier import classifier

from utils.cli import UserError
from utils.dataset import load_dataset
from utils.diagnosis_data import targets_of
from utils.gate_calibration import Calibrated, calibrate, calibrate_on
from utils.metrics import wilson_interval

TOY_LABELS = ("drusen", "macular edema", "normal")


def _column(values):
    return np.array(values, np.float32)[:, None]


def _one(scores, truth, precision):
    targets = np.array(truth, bool)[:, None]
    return calibrate(_column(scores), targets, labels=["edema"], precision=precision)["edema"]


def test_a_threshold_lets_as_many_pass_as_the_precision_allows():
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    truth = [1, 1, 0, 1, 1, 0, 0]
    assert _one(scores, truth, 0.8) == Calibrated(
        threshold=0.5,
        precision=0.8,
        precision_ci95=wilson_interval(4, 5),
        recall=1.0,
        num_positive=4,
        num_accepted=5,
    )
    strict = _one(scores, truth, 0.81)
    assert (strict.threshold, strict.recall) == (np.float32(0.8), 0.5)


def test_images_of_equal_probability_pass_together():
    result = _one([0.9, 0.6, 0.6, 0.6, 0.1], [1, 1, 1, 0, 0], 0.9)
    assert (result.threshold, result.num_accepted) == (np.float32(0.9), 1)


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_of_enough_precision_has_more_recall(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(60) < 0.4
    scores = np.round(rng.random(60) * 0.6 + truth * 0.4, rng.integers(1, 4)).astype(np.float32)
    scores = np.nextafter(scores, np.float32(rng.integers(0, 2)))
    for tenths in (5, 6, 7, 8, 9):
        reached = {
            float(level): int(truth[scores >= level].sum())
            for level in np.unique(scores)
            if Fraction(int(truth[scores >= level].sum()), int((scores >= level).sum()))
            >= Fraction(tenths, 10)
        }
        if not max(reached.values(), default=0):
            with pytest.raises(UserError, match="beyond the classifier"):
                _one(scores, truth, tenths / 10)
            continue
        result = _one(scores, truth, tenths / 10)
        assert reached[result.threshold] == max(reached.values())
        assert result.num_accepted == (scores >= result.threshold).sum()
        assert result.precision >= tenths / 10


def test_what_no_threshold_reaches_is_told_with_the_best_that_is_reached():
    scores = np.stack([[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.9, 0.8], [0.5] * 4], axis=1)
    targets = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]], bool).T
    with pytest.raises(UserError, match=r"precision 0\.9 .* reaches: a 0\.667, c 0\.250\. Ask"):
        calibrate(scores.astype(np.float32), targets, labels=["a", "b", "c"], precision=0.9)


def test_a_label_without_images_cannot_be_calibrated():
    with pytest.raises(UserError, match="no image of edema"):
        _one([0.2, 0.3], [0, 0], 0.5)


@pytest.mark.parametrize(("count", "is_told"), [(34, True), (35, False)])
def test_too_few_images_to_show_the_precision_are_told(capsys, count, is_told):
    _one([0.9] * count + [0.1], [1] * count + [0], 0.9)
    assert (f"edema {count}" in capsys.readouterr().err) == is_told


def test_real_images_are_judged_as_the_gate_judges_the_synthetic(toy_dataset, capsys):
    judge = classifier(labels=TOY_LABELS)
    records = load_dataset(toy_dataset, require_label=True).records
    labels = ["normal", "drusen"]
    found = calibrate_on(judge, records, labels=labels, precision=0.2, num_workers=2)
    probs = judge.predict(record.image() for record in records)[:, [2, 0]]
    assert found == calibrate(probs, targets_of(records, labels), labels=labels, precision=0.2)
    for column, label in enumerate(labels):
        assert (probs[:, column] >= found[label].threshold).sum() == found[label].num_accepted
    assert "calibrating" in capsys.readouterr().err
