"""DeLong's covariance: the paper's data and definition, patients, and the bootstrap."""

import numpy as np
import pytest

from utils.classification_metrics import auroc
from utils.classification_scores import bootstrap_weights
from utils.delong import auroc_covariance, macro_auroc_covariance

# Ovarian cancer, the data of DeLong, DeLong and Clarke-Pearson 1988 without missing values, as in
# SAS/STAT's user guide, "Comparing Receiver Operating Characteristic Curves": albumin, total
# protein, K-G score, 1 where surgery did not help.
OVARIAN_CANCER = """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
    1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
    4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
    3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
    3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
    3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
    3.6 6.6 5 1"""


def simulate(seed, *, num_patients=60, per_patient=1, num_classifiers=3, ties=False):
    """Scores (K, N), targets (N,) and patients (N,); classifiers and a patient's images alike."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), per_patient)
    targets = rng.random(len(patients)) < 0.4
    common = rng.normal(size=num_patients)[patients] + 0.5 * rng.normal(size=len(patients))
    own = rng.normal(size=(num_classifiers, len(patients)))
    scores = targets + common + 0.7 * own
    return (scores.round() if ties else scores), targets, patients


def covariance_by_definition(scores, targets, groups):
    """Obuchowski 1997, equations for theta, S10, S01 and S11, by loops over all pairs."""
    groups = np.asarray(groups)
    positives, negatives = np.flatnonzero(targets), np.flatnonzero(~targets)
    m, n, names = len(positives), len(negatives), np.unique(groups)
    v10, v01 = np.zeros((len(scores), m)), np.zeros((len(scores), n))
    for k, row in enumerate(scores):
        for i, one in enumerate(positives):
            for j, other in enumerate(negatives):
                won = 1.0 if row[one] > row[other] else 0.5 if row[one] == row[other] else 0.0
                v10[k, i] += won / n
                v01[k, j] += won / m
    areas = v10.mean(axis=1)
    sums = []
    for members, components in ((positives, v10), (negatives, v01)):
        mine = groups[members]
        sums.append(
            np.stack([(components[:, mine == g] - areas[:, None]).sum(axis=1) for g in names], 1)
        )
    i10, i01, i = len(set(groups[positives])), len(set(groups[negatives])), len(names)
    s10 = i10 / (i10 - 1) / m * sums[0] @ sums[0].T
    s01 = i01 / (i01 - 1) / n * sums[1] @ sums[1].T
    s11 = i / (i - 1) * sums[0] @ sums[1].T
    return areas, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


def test_the_papers_data_give_the_published_areas_errors_and_test():
    albumin, protein, kg_score, failed = np.array(OVARIAN_CANCER.split(), float).reshape(-1, 4).T
    areas, covariance = auroc_covariance(np.stack([albumin, 10 - kg_score, protein]), failed)
    np.testing.assert_allclose(areas, [0.7366, 0.7258, 0.6478], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1028, 0.1000], atol=5e-5)
    contrast = np.array([[1, -1, 0], [0, -1, 1]])  # both against the K-G score
    differences, spread = contrast @ areas, contrast @ covariance @ contrast.T
    np.testing.assert_allclose(differences, [0.0108, -0.0780], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(spread)), [0.0953, 0.1046], atol=5e-5)
    chi_square = differences @ np.linalg.solve(spread, differences)
    assert chi_square == pytest.approx(2.5340, abs=5e-4)


@pytest.mark.parametrize("ties", [False, True])
def test_covariance_is_that_of_the_definition(ties):
    scores, targets, _ = simulate(0, ties=ties)
    expected_areas, expected = covariance_by_definition(scores, targets, range(len(targets)))
    areas, covariance = auroc_covariance(scores, targets)
    np.testing.assert_allclose(areas, expected_areas, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=1e-10)
    assert areas[1] == pytest.approx(auroc(scores[1], targets), abs=1e-12)


def test_of_patients_with_both_kinds_of_images_it_is_obuchowskis():
    scores, targets, patients = simulate(1, num_patients=25, per_patient=5, ties=True)
    targets[::5], targets[1::5] = True, False
    _, expected = covariance_by_definition(scores, targets, patients)
    _, covariance = auroc_covariance(scores, targets, groups=patients)
    np.testing.assert_allclose(covariance, expected, rtol=1e-10)


def test_of_other_patients_it_is_obuchowskis_within_two_percent():
    scores, targets, patients = simulate(2, num_patients=40, per_patient=3)
    _, expected = covariance_by_definition(scores, targets, patients)
    _, covariance = auroc_covariance(scores, targets, groups=[f"p{p}" for p in patients])
    np.testing.assert_allclose(covariance, expected, rtol=0.02)


def test_it_agrees_with_a_bootstrap_over_patients():
    scores, targets, patients = simulate(3, num_patients=300, per_patient=4)
    drawn = np.stack(
        [
            np.concatenate(
                [
                    auroc(row, targets, weights=weights)
                    for weights in bootstrap_weights(
                        patients, len(patients), num_resamples=3000, seed=0
                    )
                ]
            )
            for row in scores
        ]
    )
    _, covariance = auroc_covariance(scores, targets, groups=patients)
    np.testing.assert_allclose(covariance, np.cov(drawn), rtol=0.1)


def test_equal_images_of_a_patient_tell_no_more_than_one():
    scores, targets, patients = simulate(7)
    _, once = auroc_covariance(scores, targets)
    five = [np.repeat(values, 5, axis=-1) for values in (scores, targets, patients)]
    np.testing.assert_allclose(auroc_covariance(*five[:2], groups=five[2])[1], once, rtol=1e-10)
    assert (np.diag(auroc_covariance(*five[:2])[1]) < np.diag(once) / 4).all()


def test_macro_area_is_the_mean_and_its_covariance_that_of_the_bootstrap():
    rng = np.random.default_rng(4)
    patients = np.repeat(np.arange(200), 2)
    targets = np.eye(3, dtype=bool)[np.r_[[0, 1, 2], rng.integers(3, size=397)]]
    common = rng.normal(size=(200, 3))[patients]
    probs = targets + common + 0.7 * rng.normal(size=(2, 400, 3))
    (weights,) = bootstrap_weights(patients, 400, num_resamples=2000, seed=0)

    def macro(table):
        return np.mean(
            [[auroc(p[:, k], targets[:, k], weights=table) for k in range(3)] for p in probs],
            axis=1,
        )

    areas, covariance = macro_auroc_covariance(probs, targets, groups=patients)
    np.testing.assert_allclose(areas, macro(None), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(macro(weights)), rtol=0.12)


def test_macro_leaves_out_labels_without_positives():
    rng = np.random.default_rng(5)
    targets = np.c_[rng.random(50) < 0.5, np.zeros(50, bool)]
    probs = rng.random((2, 50, 2))
    areas, covariance = macro_auroc_covariance(probs, targets)
    alone = auroc_covariance(probs[:, :, 0], targets[:, 0])
    np.testing.assert_allclose(areas, alone[0])
    np.testing.assert_allclose(covariance, alone[1])


def test_what_is_undefined_is_nan():
    scores = np.random.default_rng(6).random((2, 6))
    areas, covariance = auroc_covariance(scores, np.ones(6))
    assert np.isnan(areas).all() and np.isnan(covariance).all()
    areas, covariance = auroc_covariance(scores, [1, 0, 0, 0, 0, 0])  # one positive: no variance
    assert np.isfinite(areas).all() and np.isnan(covariance).all()
    areas, covariance = auroc_covariance(scores, [1, 1, 0, 0, 0, 0], groups=list("aabcde"))
    assert np.isfinite(areas).all() and np.isnan(covariance).all()
    areas, covariance = macro_auroc_covariance(scores[:, :, None], np.zeros((6, 1), bool))
    assert np.isnan(areas).all() and np.isnan(covariance).all()


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="differ"):
        auroc_covariance(np.zeros((2, 3)), [1, 0])
    with pytest.raises(ValueError, match="not finite"):
        auroc_covariance(np.array([[0.1, np.nan]]), [1, 0])
    with pytest.raises(ValueError, match="2 groups for 3 images"):
        auroc_covariance(np.zeros((1, 3)), [1, 0, 1], groups=["a", "b"])
