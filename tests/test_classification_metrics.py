"""Classification metrics: closed forms first, then scikit-learn, then the bootstrap."""

import math

import numpy as np
import pytest

from utils.calibration import expected_calibration_error
from utils.classification_metrics import (
    accuracy,
    auprc,
    auroc,
    balanced_accuracy,
    confusion_matrix,
    f1,
    predicted_labels,
    roc_curve,
    sensitivity_at_95_specificity,
)
from utils.classification_scores import (
    MACRO,
    bootstrap_weights,
    metric_table,
    score_classification,
)


@pytest.fixture(scope="module")
def sklearn_metrics():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


def random_task(seed, *, count=120, num_labels=4, multi_label=False, ties=False):
    """Probabilities (N, L) that carry some signal, and targets (N, L) with every label present."""
    rng = np.random.default_rng(seed)
    if multi_label:
        targets = rng.random((count, num_labels)) < 0.3
        targets[:num_labels] |= np.eye(num_labels, dtype=bool)
    else:
        names = np.r_[np.arange(num_labels), rng.integers(num_labels, size=count - num_labels)]
        targets = np.eye(num_labels, dtype=bool)[names]
    logits = 1.2 * targets + rng.normal(size=targets.shape)
    probs = 1 / (1 + np.exp(-logits)) if multi_label else np.exp(logits)
    probs = probs if multi_label else probs / probs.sum(axis=1, keepdims=True)
    return (probs.round(1) if ties else probs), targets


def by_key(scores):
    return {(score.target, score.metric): score for score in scores}


def test_auroc_of_a_perfect_order_is_one_and_of_its_reverse_zero():
    targets = np.array([0, 0, 1, 1])
    assert auroc(np.array([1, 2, 3, 4]), targets) == 1.0
    assert auroc(np.array([4, 3, 2, 1]), targets) == 0.0


def test_auroc_counts_a_tie_as_half():
    assert auroc(np.array([0.5, 0.5]), np.array([0, 1])) == 0.5
    # Pairs: 0.2 < 0.5 won, 0.2 < 0.9 won, 0.5 = 0.5 half, 0.5 < 0.9 won: 3.5 of 4.
    assert auroc(np.array([0.2, 0.5, 0.5, 0.9]), np.array([0, 0, 1, 1])) == 3.5 / 4


def test_auroc_of_a_single_class_is_nan():
    assert math.isnan(auroc(np.array([0.1, 0.2]), np.array([1, 1])))
    assert math.isnan(auroc(np.array([0.1, 0.2]), np.array([0, 0])))
    assert math.isnan(auroc(np.array([]), np.array([])))


def test_auroc_refuses_scores_that_are_not_finite_and_lengths_that_differ():
    with pytest.raises(ValueError, match="NaN"):
        auroc(np.array([0.1, np.nan]), np.array([0, 1]))
    with pytest.raises(ValueError, match="shapes differ"):
        auroc(np.array([0.1, 0.2, 0.3]), np.array([0, 1]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_auroc_agrees_with_scikit_learn(sklearn_metrics, seed, ties):
    probs, targets = random_task(seed, ties=ties)
    for k in range(targets.shape[1]):
        expected = sklearn_metrics.roc_auc_score(targets[:, k], probs[:, k])
        assert auroc(probs[:, k], targets[:, k]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_auprc_agrees_with_scikit_learn(sklearn_metrics, seed, ties):
    probs, targets = random_task(seed, ties=ties)
    counts = np.random.default_rng(seed).integers(0, 3, size=len(probs))
    for k in range(targets.shape[1]):
        for weights in (None, counts):
            expected = sklearn_metrics.average_precision_score(
                targets[:, k], probs[:, k], sample_weight=weights
            )
            found = auprc(probs[:, k], targets[:, k], weights=weights)
            assert found == pytest.approx(expected, abs=1e-12)


def test_auprc_steps_and_is_nan_without_positives():
    # Thresholds 0.9 and 0.5: sensitivity 1/2 at precision 1, then 1 at precision 2/3.
    assert auprc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0])) == pytest.approx(5 / 6)
    assert math.isnan(auprc(np.array([0.1, 0.2]), np.array([0, 0])))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_sensitivity_at_95_specificity_is_the_best_of_scikit_learns_curve(
    sklearn_metrics, seed, ties
):
    probs, targets = random_task(seed, count=300, ties=ties)
    counts = np.random.default_rng(seed).integers(0, 3, size=len(probs))
    for k in range(targets.shape[1]):
        for weights in (None, counts):
            false, true, _ = sklearn_metrics.roc_curve(
                targets[:, k], probs[:, k], drop_intermediate=False, sample_weight=weights
            )
            found = sensitivity_at_95_specificity(probs[:, k], targets[:, k], weights=weights)
            assert found == pytest.approx(true[false <= 0.05].max())


def test_sensitivity_at_95_specificity_allows_exactly_one_error_in_twenty_and_splits_no_tie():
    negatives = np.linspace(0, 0.4, 20)
    targets = np.r_[np.zeros(20), np.ones(3)]

    def found(highest, positives):
        scores = np.r_[negatives, positives]
        scores[19 - len(highest) + 1 : 20] = highest
        return sensitivity_at_95_specificity(scores, targets)

    assert found([0.9], [0.95, 0.8, 0.7]) == 1  # one of twenty above: specificity 0.95
    assert found([0.85, 0.9], [0.95, 0.87, 0.7]) == pytest.approx(2 / 3)
    assert found([0.9, 0.9], [0.9, 0.9, 0.7]) == 0  # only together, at specificity 0.9
    assert found([0.9, 0.9], [0.95, 0.9, 0.7]) == pytest.approx(1 / 3)
    assert math.isnan(sensitivity_at_95_specificity(np.array([0.1, 0.2]), np.array([1, 1])))
    assert math.isnan(sensitivity_at_95_specificity(np.array([0.1, 0.2]), np.array([0, 0])))


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    # Bins (0.6, 0.667]: 0.62 and 0.66, one of two right; (0.933, 1]: 1.0 and 0.95, both right.
    probs = np.array([[0.62, 0.38], [0.34, 0.66], [1.0, 0.0], [0.05, 0.95]])
    targets = np.eye(2, dtype=bool)[[0, 0, 0, 1]]
    expected = (abs(0.62 + 0.66 - 1) + abs(1.95 - 2)) / 4
    once = np.ones((1, 4))
    (found,) = expected_calibration_error(probs, targets, once, multi_label=False)
    assert found == pytest.approx(expected)
    weights = np.array([[2.0, 0, 1, 0]])
    (found,) = expected_calibration_error(probs, targets, weights, multi_label=False)
    assert found == pytest.approx(2 * (1 - 0.62) / 3)
    _, macro = metric_table(probs, targets, once, multi_label=False)
    assert macro["ece"] == pytest.approx(expected)


def test_multi_label_calibration_error_is_the_mean_over_labels_of_the_binary_one():
    probs = np.array([[0.1, 0.9], [0.1, 0.9], [0.12, 0.5], [0.8, 0.5]])
    targets = np.array([[0, 1], [1, 0], [0, 1], [1, 1]], bool)
    first = (abs(1 - 0.32) + abs(1 - 0.8)) / 4  # 0.1, 0.1 and 0.12 share (0.067, 0.133]
    second = (abs(1 - 1.8) + abs(2 - 1.0)) / 4
    (found,) = expected_calibration_error(probs, targets, np.ones((1, 4)), multi_label=True)
    assert found == pytest.approx((first + second) / 2)


def test_a_bin_of_confidence_contains_its_upper_end():
    probs = np.array([[0.59], [0.6]])  # both in (0.533, 0.6], so the errors meet
    targets = np.array([[True], [False]])
    (found,) = expected_calibration_error(probs, targets, np.ones((1, 2)), multi_label=True)
    assert found == pytest.approx(abs(1 - 1.19) / 2)


def test_probabilities_that_are_frequencies_have_a_small_calibration_error():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), size=20_000)
    targets = (rng.random(20_000)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    targets = np.eye(3, dtype=bool)[targets]
    once = np.ones((1, 20_000))
    assert expected_calibration_error(probs, targets, once, multi_label=False)[0] < 0.015
    sharper = probs**2 / (probs**2).sum(axis=1, keepdims=True)
    assert expected_calibration_error(sharper, targets, once, multi_label=False)[0] > 0.08


def test_calibration_error_has_a_value_but_no_percentile_interval():
    probs, targets = random_task(3)
    found = by_key(score_classification(probs, targets, list("abcd"), multi_label=False))
    score = found[MACRO, "ece"]
    assert 0 < score.value < 1 and math.isnan(score.low) and "no interval" in score.reason
    assert ("a", "ece") not in found


def test_a_weight_is_the_same_as_a_repetition():
    probs, targets = random_task(0, ties=True)
    counts = np.random.default_rng(1).integers(0, 4, size=len(probs))
    repeated = np.repeat(np.arange(len(probs)), counts)
    scores, positive, called = probs[:, 0], targets[:, 0], probs[:, 0] > 0.3
    for metric in (auroc, auprc, sensitivity_at_95_specificity):
        assert metric(scores, positive, weights=counts) == pytest.approx(
            metric(scores[repeated], positive[repeated]), abs=1e-12
        )
    for metric in (accuracy, f1, balanced_accuracy):
        assert metric(called, positive, weights=counts) == pytest.approx(
            metric(called[repeated], positive[repeated]), abs=1e-12
        )


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_scores_agree_with_scikit_learn(sklearn_metrics, seed):
    probs, targets = random_task(seed)
    said, true = probs.argmax(axis=1), targets.argmax(axis=1)
    labels = list("abcd")
    found = by_key(score_classification(probs, targets, labels, multi_label=False, num_resamples=0))
    f1_each = sklearn_metrics.f1_score(true, said, average=None)
    recall_each = sklearn_metrics.recall_score(true, said, average=None)
    for k, name in enumerate(labels):
        assert found[name, "f1"].value == pytest.approx(f1_each[k])
        assert found[name, "sensitivity"].value == pytest.approx(recall_each[k])
        specificity = sklearn_metrics.recall_score(true != k, said != k)
        assert found[name, "specificity"].value == pytest.approx(specificity)
        assert found[name, "accuracy"].value == pytest.approx(((said == k) == (true == k)).mean())
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(true, said),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(true, said),
        "f1": f1_each.mean(),
        "auroc": sklearn_metrics.roc_auc_score(true, probs, multi_class="ovr"),
    }
    for metric, value in expected.items():
        assert found[MACRO, metric].value == pytest.approx(value), metric
    assert accuracy(said, true) == pytest.approx(expected["accuracy"])
    assert balanced_accuracy(said, true) == pytest.approx(expected["balanced_accuracy"])
    assert f1(said == 1, true == 1) == pytest.approx(f1_each[1])


def test_multilabel_scores_agree_with_scikit_learn(sklearn_metrics):
    probs, targets = random_task(5, multi_label=True)
    said = probs >= 0.5
    found = by_key(
        score_classification(probs, targets, list("abcd"), multi_label=True, num_resamples=0)
    )
    expected = {
        "auroc": sklearn_metrics.roc_auc_score(targets, probs),
        "f1": sklearn_metrics.f1_score(targets, said, average="macro"),
        "exact_match": sklearn_metrics.accuracy_score(targets, said),
        "sensitivity": sklearn_metrics.recall_score(targets, said, average="macro"),
        "accuracy": (said == targets).mean(),
    }
    for metric, value in expected.items():
        assert found[MACRO, metric].value == pytest.approx(value), metric
    balanced = sklearn_metrics.balanced_accuracy_score(targets[:, 2], said[:, 2])
    assert found["c", "balanced_accuracy"].value == pytest.approx(balanced)


def test_confusion_matrix_and_roc_curve_agree_with_scikit_learn(sklearn_metrics):
    probs, targets = random_task(2, ties=True)
    said, true = probs.argmax(axis=1), targets.argmax(axis=1)
    expected = sklearn_metrics.confusion_matrix(true, said, labels=range(4))
    np.testing.assert_array_equal(confusion_matrix(said, true, 4), expected)
    false, true_rate = roc_curve(probs[:, 0], targets[:, 0])
    want_false, want_true, _ = sklearn_metrics.roc_curve(
        targets[:, 0], probs[:, 0], drop_intermediate=False
    )
    np.testing.assert_allclose(false, want_false)
    np.testing.assert_allclose(true_rate, want_true)


def test_area_under_the_roc_curve_is_the_auroc():
    probs, targets = random_task(3, ties=True)
    false, true = roc_curve(probs[:, 1], targets[:, 1])
    assert np.trapezoid(true, false) == pytest.approx(auroc(probs[:, 1], targets[:, 1]))


def test_roc_curve_of_a_single_class_is_refused():
    with pytest.raises(ValueError, match="one positive and one negative"):
        roc_curve(np.array([0.1, 0.2]), np.array([1, 1]))


def test_f1_is_nan_where_a_label_neither_occurs_nor_is_predicted_and_zero_where_only_predicted():
    nothing = np.zeros(3, bool)
    assert math.isnan(f1(nothing, nothing))
    assert f1(np.array([True, False, False]), nothing) == 0.0


def test_multilabel_decides_at_one_half_inclusive():
    said = predicted_labels(np.array([[0.5, 0.49]]), multi_label=True)
    assert said.tolist() == [[True, False]]


def test_a_label_without_positives_is_nan_with_a_reason_and_left_out_of_the_macro_mean():
    probs, targets = random_task(4, num_labels=3)
    probs = np.c_[probs, np.zeros(len(probs))]
    targets = np.c_[targets, np.zeros(len(targets), bool)]
    found = by_key(score_classification(probs, targets, list("abcd"), multi_label=False))
    absent = found["d", "auroc"]
    assert math.isnan(absent.value) and math.isnan(absent.low)
    assert absent.reason == "no image of the test set has this label"
    mean = np.mean([found[name, "auroc"].value for name in "abc"])
    assert found[MACRO, "auroc"].value == pytest.approx(mean)
    assert "d" in found[MACRO, "auroc"].reason
    assert found["a", "auroc"].reason == ""


def test_resamples_draw_whole_patients():
    patients = ["p1", "p1", "p2", "p3", "p3", "p3"]
    (weights,) = bootstrap_weights(patients, 6, num_resamples=200, seed=0)
    assert weights.shape == (200, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    np.testing.assert_array_equal(weights[:, [0, 2, 3]].sum(axis=1), 3)  # three patients drawn


def test_chunks_do_not_change_the_resamples(monkeypatch):
    whole = np.concatenate(list(bootstrap_weights(None, 7, num_resamples=50, seed=3)))
    monkeypatch.setattr("utils.classification_scores._CHUNK_ELEMENTS", 21)
    chunks = list(bootstrap_weights(None, 7, num_resamples=50, seed=3))
    assert len(chunks) == 17
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_intervals_are_the_percentiles_of_the_resampled_metric():
    probs, targets = random_task(6)
    (weights,) = bootstrap_weights(None, len(probs), num_resamples=300, seed=9)
    table, _ = metric_table(probs, targets, weights, multi_label=False)
    found = by_key(
        score_classification(
            probs, targets, list("abcd"), multi_label=False, num_resamples=300, seed=9
        )
    )
    low, high = np.percentile(table["auroc"][:, 2], [2.5, 97.5])
    assert (found["c", "auroc"].low, found["c", "auroc"].high) == (low, high)


def test_intervals_over_patients_are_wider_than_over_their_images():
    probs, targets = random_task(7, count=60)
    probs, targets = np.repeat(probs, 5, axis=0), np.repeat(targets, 5, axis=0)
    patients = [f"p{index // 5}" for index in range(len(probs))]
    widths = []
    for groups in (None, patients):
        scores = score_classification(
            probs, targets, list("abcd"), multi_label=False, patients=groups, num_resamples=400
        )
        score = by_key(scores)[MACRO, "accuracy"]
        widths.append(score.high - score.low)
    assert widths[1] > 1.8 * widths[0]  # five equal images tell no more than one: about sqrt(5)


def test_the_95_percent_interval_of_accuracy_covers_the_truth_about_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    true_accuracy, covered, runs = 0.8, 0, 200
    for run in range(runs):
        right = rng.random(80) < true_accuracy
        targets = np.tile([True, False], (80, 1))
        probs = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        scores = score_classification(
            probs, targets, ["a", "b"], multi_label=False, num_resamples=300, seed=run
        )
        score = by_key(scores)[MACRO, "accuracy"]
        covered += score.low <= true_accuracy <= score.high
    assert 0.89 <= covered / runs <= 0.985


def test_a_single_patient_has_no_interval():
    probs, targets = random_task(8)
    scores = score_classification(
        probs, targets, list("abcd"), multi_label=False, patients=["p"] * len(probs)
    )
    assert all(math.isnan(score.low) and math.isnan(score.high) for score in scores)
    reasons = {score.reason for score in scores if score.metric != "ece"}
    assert reasons == {"one patient only: no interval"}


def test_shapes_that_do_not_belong_together_are_refused():
    probs, targets = random_task(9)
    with pytest.raises(ValueError, match="do not belong together"):
        score_classification(probs, targets, ["a", "b"], multi_label=False)
    with pytest.raises(ValueError, match="no image"):
        score_classification(probs[:0], targets[:0], list("abcd"), multi_label=False)
    with pytest.raises(ValueError, match="macro"):
        score_classification(probs, targets, ["a", "b", "c", MACRO], multi_label=False)
