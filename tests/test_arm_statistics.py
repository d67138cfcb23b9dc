"""Arms against arms: the published example, planted nulls, power, and what cannot be told."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from utils.arm_estimates import AGREEMENT, CONSTANT, NO_ERROR, ONE_SEED, Difference
from utils.arm_statistics import compare_arms, estimate_arm, score_arm
from utils.classification_scores import MACRO, ONE_PATIENT, score_classification
from utils.delong import auroc_covariance
from utils.seed_variance import infer_mean
from utils.verdicts import correct_by_holm, holm, is_gain, sentence

# AUROCs of five readers with two ways of imaging (rows), Van Dyke et al. 1993, and what OR-DBM
# MRMC 2.51 (Hillis and colleagues) prints for them: covariances, standard errors, degrees, p.
VAN_DYKE = np.array(
    [
        [0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066],
        [0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169],
    ]
)
VARIANCE, COV1, COV2, COV3 = 0.00080229, 0.00034661, 0.00034407, 0.00023903
LABELS = ["a", "b", "c"]


def equal_covariance(variance, covariance, num_seeds=5):
    """A covariance matrix (S, S) with these entries."""
    unit = np.eye(num_seeds)
    return variance * unit + covariance * (1 - unit)


def simulate_arm(rng, common, targets, *, strength=1.5, num_seeds=3):
    """Probabilities (S, N, L) of models that share the patients' errors and differ by luck."""
    luck = strength + 0.4 * rng.normal(size=(num_seeds, 1, 1))
    own = 0.6 * rng.normal(size=(num_seeds, *targets.shape))
    powers = np.exp(luck * targets + common + own)
    return powers / powers.sum(axis=-1, keepdims=True)


def simulate_clinic(rng, *, num_patients=60, per_patient=2, num_labels=3):
    """Targets (N, L), errors that all models make (N, L), and patients (N,)."""
    patients = np.repeat(np.arange(num_patients), per_patient)
    kinds = np.r_[np.arange(num_labels), rng.integers(num_labels, size=num_patients - num_labels)]
    targets = np.eye(num_labels, dtype=bool)[kinds[patients]]
    common = rng.normal(size=(num_patients, num_labels))[patients]
    return targets, common + 0.5 * rng.normal(size=common.shape), [f"p{p}" for p in patients]


def scored(probs, targets, patients, *, labels=LABELS, multi_label=False, **changes):
    options = {"multi_label": multi_label, "patients": patients, "num_resamples": 100} | changes
    return score_arm(probs, targets, labels, **options)


def by_key(found):
    return {(one.target, one.metric): one for one in found}


def a_difference(**changes):
    one = Difference(MACRO, "auroc", 0.861, 0.912, 0.051, 0.02, 0.082, 0.001, 0.003, 5, "")
    return replace(one, **changes)


def test_difference_of_the_published_reading_study():
    found = infer_mean(
        VAN_DYKE[0] - VAN_DYKE[1], equal_covariance(2 * (VARIANCE - COV1), 2 * (COV2 - COV3))
    )
    assert found.mean == pytest.approx(-0.04380032, abs=1e-8)
    assert math.sqrt(found.variance) == pytest.approx(0.02075, abs=5e-6)
    assert found.degrees == pytest.approx(15.26, abs=0.005)
    assert found.p == pytest.approx(0.0517, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-0.08796, 0.00036), abs=5e-6)


@pytest.mark.parametrize(
    ("row", "variance", "cov2", "error", "degrees", "interval"),
    [
        (0, 0.00101410, 0.00048396, 0.03317360, 12.74, (0.82522360, 0.96885048)),
        (1, 0.00059047, 0.00020419, 0.02156637, 12.71, (0.89413783, 0.98753689)),
    ],
)
def test_single_arms_of_the_published_reading_study(row, variance, cov2, error, degrees, interval):
    found = infer_mean(VAN_DYKE[row], equal_covariance(variance, cov2))
    assert math.sqrt(found.variance) == pytest.approx(error, abs=1e-6)
    assert found.degrees == pytest.approx(degrees, abs=0.005)
    assert (found.low, found.high) == pytest.approx(interval, abs=2e-6)


def test_a_negative_covariance_counts_as_none():
    """Then it is the paired t test of the study's third analysis: t = -2.95, 4 df, p = .0420."""
    found = infer_mean(VAN_DYKE[0] - VAN_DYKE[1], equal_covariance(0.0005, -0.0001))
    assert found.degrees == pytest.approx(4)
    assert found.p == pytest.approx(0.0420, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-0.08502, -0.00258), abs=5e-6)


def test_seeds_that_agree_by_accident_have_at_least_the_variance_of_the_patients():
    found = infer_mean(np.full(4, 0.02), equal_covariance(0.0005, 0.0001, num_seeds=4))
    assert found.variance == pytest.approx((0.0005 + 3 * 0.0001) / 4)
    assert found.degrees == pytest.approx(3 * (0.0002 / 0.0001) ** 2)


def test_auroc_of_two_arms_is_compared_by_the_formulas_of_obuchowski_and_rockette():
    rng = np.random.default_rng(0)
    targets, common, patients = simulate_clinic(rng)
    arms = [simulate_arm(rng, common, targets, num_seeds=4) for _ in range(2)]
    found = compare_arms(
        reference=scored(arms[0], targets, patients), other=scored(arms[1], targets, patients)
    )
    one = by_key(found)["b", "auroc"]
    areas, covariance = auroc_covariance(
        np.concatenate(arms)[:, :, 1], targets[:, 1], groups=patients
    )
    blocks = covariance.reshape(2, 4, 2, 4)
    apart = ~np.eye(4, dtype=bool)
    cov2 = (blocks[0, :, 0][apart].mean() + blocks[1, :, 1][apart].mean()) / 2
    cov3 = blocks[0, :, 1][apart].mean()
    table = areas.reshape(2, 4)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    mean_square = (rest**2).sum() / 3  # MS(T*R)
    error_term = mean_square + 4 * max(cov2 - cov3, 0)
    degrees = error_term**2 / (mean_square**2 / 3)
    half = student.ppf(0.975, degrees) * math.sqrt(2 / 4 * error_term)
    difference = table[1].mean() - table[0].mean()
    assert one.difference == pytest.approx(difference, abs=1e-12)
    assert (one.low, one.high) == pytest.approx((difference - half, difference + half), abs=1e-9)
    assert (one.reference_value, one.value) == pytest.approx(tuple(table.mean(axis=1)))


def test_covariance_of_other_metrics_is_that_of_the_same_resampled_patients():
    rng = np.random.default_rng(1)
    targets, common, patients = simulate_clinic(rng)
    probs = [simulate_arm(rng, common, targets) for _ in range(2)]
    arms = [scored(table, targets, patients, num_resamples=4000) for table in probs]
    index = arms[0].keys.index((MACRO, "accuracy"))  # has a closed form
    right = np.concatenate(probs).argmax(axis=2) == targets.argmax(axis=1)
    expected = np.cov(right.reshape(6, 60, 2).mean(axis=2), ddof=0) / 60
    drawn = np.concatenate([arm.draws[:, :, index] for arm in arms], axis=1)
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), expected, rtol=0.1, atol=3e-5)


def test_an_arm_against_itself_is_no_difference():
    rng = np.random.default_rng(3)
    targets, common, patients = simulate_clinic(rng)
    arm = scored(simulate_arm(rng, common, targets), targets, patients)
    for one in compare_arms(reference=arm, other=arm):
        assert (one.difference, one.low, one.high, one.p) == (0, 0, 0, 1)
        assert one.reason == AGREEMENT and math.isnan(one.p_holm)


def test_values_are_the_means_over_seeds_of_the_table_of_scores():
    rng = np.random.default_rng(4)
    targets, common, patients = simulate_clinic(rng)
    probs = simulate_arm(rng, common, targets)
    tables = [
        by_key(score_classification(p, targets, LABELS, multi_label=False, num_resamples=2))
        for p in probs
    ]
    found = by_key(estimate_arm(scored(probs, targets, patients)))
    assert set(found) == set(tables[0])
    for key, one in found.items():
        assert one.value == pytest.approx(np.mean([table[key].value for table in tables]))
        assert 0 <= one.low <= one.value <= one.high <= 1 and one.num_seeds == 3


def test_one_seed_has_the_interval_of_the_patients_and_says_so():
    rng = np.random.default_rng(5)
    targets, common, patients = simulate_clinic(rng)
    probs = simulate_arm(rng, common, targets, num_seeds=1)
    one = by_key(estimate_arm(scored(probs, targets, patients)))["a", "auroc"]
    area, covariance = auroc_covariance(probs[:, :, 0], targets[:, 0], groups=patients)
    half = 1.959964 * math.sqrt(covariance[0, 0])
    assert (one.low, one.high) == pytest.approx((area[0] - half, min(area[0] + half, 1)), abs=1e-6)
    assert one.reason == ONE_SEED


def test_a_perfect_score_has_a_lower_bound_and_no_zero_interval():
    targets = np.eye(2, dtype=bool)[np.arange(20) % 2]
    probs = np.where(targets, 0.9, 0.1) + np.zeros((3, 20, 2))
    found = by_key(estimate_arm(scored(probs, targets, None, labels=["a", "b"])))
    one = found["a", "auroc"]
    assert (one.value, one.high, one.reason) == (1, 1, NO_ERROR)
    assert one.low == pytest.approx(10 / (10 + 1.959964**2))  # Wilson's of 10 of 10
    assert one.low < found[MACRO, "auroc"].low < 1
    ece = found[MACRO, "ece"]
    assert ece.value == pytest.approx(0.1) and math.isnan(ece.low) and ece.reason == CONSTANT


def test_what_has_no_interval_says_why():
    rng = np.random.default_rng(6)
    targets, common, patients = simulate_clinic(rng)
    probs = simulate_arm(rng, common, targets)
    alone = estimate_arm(scored(probs, targets, ["p"] * len(targets)))
    assert all(math.isnan(one.low) and one.reason == ONE_PATIENT for one in alone)
    absent = np.c_[targets[:, :2], np.zeros(len(targets), bool)]
    absent[targets[:, 2], 0] = True
    found = by_key(estimate_arm(scored(probs, absent, patients)))
    assert math.isnan(found["c", "auroc"].value)
    assert found["c", "auroc"].reason == "no image of the test set has this label"
    assert not math.isnan(found["c", "specificity"].low)
    assert "left out of the mean: c" in found[MACRO, "auroc"].reason
    single = np.zeros(len(targets), bool)
    single[:2] = True  # one patient
    pair = scored(probs[:, :, :2], np.c_[single, ~single], patients, labels=["a", "b"])
    found = by_key(estimate_arm(pair))
    assert math.isnan(found["a", "auroc"].low) and "two patients" in found["a", "auroc"].reason
    assert "from the bootstrap" in found[MACRO, "auroc"].reason
    assert not math.isnan(found[MACRO, "auroc"].low)


def test_arms_that_do_not_fit_and_wrong_shapes_are_refused():
    rng = np.random.default_rng(7)
    targets, common, patients = simulate_clinic(rng)
    probs = simulate_arm(rng, common, targets)
    arm = scored(probs, targets, patients)
    with pytest.raises(ValueError, match="the same labels, seeds"):
        compare_arms(reference=arm, other=scored(probs[:2], targets, patients))
    with pytest.raises(ValueError, match="do not belong together"):
        scored(probs[0], targets, patients)


@pytest.mark.parametrize("seed", range(3))
def test_holm_agrees_with_statsmodels(seed):
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="no statsmodels")
    p = np.random.default_rng(seed).random(12) ** 3
    expected = multitest.multipletests(p, method="holm")[1]
    np.testing.assert_allclose(holm(p), expected, rtol=1e-12)
    with_gaps = np.insert(p, [0, 5], np.nan)
    np.testing.assert_allclose(holm(with_gaps), np.insert(expected, [0, 5], np.nan), rtol=1e-12)


def test_holm_of_a_worked_example():
    # 0.01 x 4, 0.02 x 3, max(0.03 x 2, 0.06), max(0.2, 0.06)
    np.testing.assert_allclose(holm(np.array([0.2, 0.01, 0.03, 0.02])), [0.2, 0.04, 0.06, 0.06])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert holm(np.array([])).size == 0


def test_a_family_is_a_metric_and_macro_apart_from_the_labels():
    rows = [
        [
            a_difference(p=0.01),
            a_difference(target="a", p=0.01),
            a_difference(target="b", p=0.02),
            a_difference(metric="f1", p=0.03),
        ],
        [a_difference(p=0.04), a_difference(target="a", p=math.nan)],
    ]
    filled = correct_by_holm(rows)
    assert [one.p_holm for one in filled[0]] == pytest.approx([0.02, 0.02, 0.02, 0.03])
    assert filled[1][0].p_holm == pytest.approx(0.04) and math.isnan(filled[1][1].p_holm)


@pytest.mark.parametrize(
    ("changes", "share", "expected"),
    [
        (
            {},
            5,
            "With 5 % of the labels, real+synthetic is better than real: macro AUROC 0.912 "
            "against 0.861, difference +0.051 [0.020, 0.082], p = 0.003 after Holm's correction, "
            "5 seeds.",
        ),
        ({"p_holm": 0.06}, 5, "no difference between real+synthetic and real is shown: macro"),
        ({"p_holm": 0.0004}, 0, "Without real labels, real+synthetic is better than real"),
        ({"p_holm": 0.0004}, 5, "p < 0.001 after"),
        ({"difference": -0.05}, 5, "real+synthetic is worse than real"),
        ({"metric": "ece"}, 5, "real+synthetic is worse than real: macro calibration error"),
        ({"metric": "ece", "difference": -0.05}, 5, "real+synthetic is better than real"),
        ({"target": "drusen"}, 5, "AUROC of drusen 0.912 against"),
        ({"num_seeds": 1}, 5, "one seed: the luck of training is not in the interval."),
        (
            {"p_holm": math.nan, "reason": ONE_PATIENT},
            5,
            "cannot be compared by macro AUROC: one patient only",
        ),
    ],
)
def test_a_sentence_says_what_was_found(changes, share, expected):
    one = a_difference(**changes)
    assert expected in sentence(one, arm="real+synthetic", reference_arm="real", label_share=share)


def test_a_gain_is_significant_after_correction_and_in_the_better_direction():
    assert is_gain(a_difference(p_holm=0.049))
    assert not is_gain(a_difference(p=0.01, p_holm=0.05))
    assert not is_gain(a_difference(p_holm=math.nan))
    assert not is_gain(a_difference(difference=-0.05))


def rejections(seed, *, gain, count, metrics):
    """How many of ``count`` comparisons reject, by metric."""
    rng = np.random.default_rng(seed)
    found = np.zeros(len(metrics), int)
    for _ in range(count):
        targets, common, patients = simulate_clinic(rng, num_labels=2)
        arms = [
            scored(
                simulate_arm(rng, common, targets, strength=strength, num_seeds=5),
                targets,
                patients,
                labels=["a", "b"],
                num_resamples=50,
            )
            for strength in (1.5, 1.5 + gain)
        ]
        differences = by_key(compare_arms(reference=arms[0], other=arms[1]))
        found += [differences[MACRO, metric].p < 0.05 for metric in metrics]
    return found


def test_arms_of_one_population_of_models_differ_in_about_5_percent_of_comparisons():
    metrics = ("auroc", "accuracy", "auprc")
    found = rejections(0, gain=0, count=200, metrics=metrics)
    # 200 x 0.05 = 10; the binomial's 0.3 and 99.8 percentiles are 3 and 19.
    assert (found >= 3).all() and (found <= 19).all(), dict(zip(metrics, found))


def test_a_real_gain_is_found():
    found = rejections(1, gain=1.6, count=30, metrics=("auroc", "accuracy"))
    assert (found >= 24).all()


@pytest.mark.parametrize("weight", [1.0, 0.03])
def test_random_labels_are_not_called_a_gain(weight):
    """Real arm: few real points. Other arm: the same and many points with random labels.

    With full weight they harm, with a small one they change nothing but luck.
    """
    rng = np.random.default_rng(8)
    gains = worse = 0
    for _ in range(200):
        direction = rng.normal(size=(8, 2)) / 2

        def draw(count, labels=None, direction=direction):
            labels = rng.integers(2, size=count) if labels is None else labels
            return direction.T[labels] + rng.normal(size=(count, 8)), np.eye(2)[labels]

        test, targets = draw(120)
        probs = {"real": [], "real+synthetic": []}
        for _ in range(3):
            points, labels = draw(24, np.arange(24) % 2)
            more = draw(100)[0], np.eye(2)[rng.integers(2, size=100)]
            for arm, extra in (("real", 0.0), ("real+synthetic", weight)):
                inputs, wanted = np.r_[points, more[0]], np.r_[labels, more[1]]
                share = np.r_[np.ones(24), np.full(100, extra)][:, None]
                matrix = inputs.T @ (share * inputs) + np.eye(8)
                solution = np.linalg.solve(matrix, inputs.T @ (share * (wanted - 0.5)))
                powers = np.exp(3 * test @ solution)
                probs[arm].append(powers / powers.sum(axis=1, keepdims=True))
        arms = {
            name: scored(np.array(found), targets > 0, None, labels=["a", "b"], num_resamples=20)
            for name, found in probs.items()
        }
        table = [compare_arms(reference=arms["real"], other=arms["real+synthetic"])]
        (found,) = correct_by_holm(table)
        one = by_key(found)[MACRO, "auroc"]
        gains += is_gain(one)
        worse += one.p_holm < 0.05 and not is_gain(one)
    assert gains <= 10
    assert worse > 20 or weight < 1  # they do harm, and that is seen
