"""Agreement of raters: published worked examples, the reference packages, and what is undefined."""

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from utils import agreement_statistics as agreement
from utils import kappas
from utils.intraclass import NO_SPREAD, TOO_FEW, intraclass_correlations

WEIGHTINGS = {"none": None, "linear": "linear", "quadratic": "quadratic"}

# Fleiss 1971, table 1: 30 patients, 6 psychiatrists; depression, personality disorder,
# schizophrenia, neurosis, other.
FLEISS_1971 = """
    00060 03003 01401 00006 03030 20400 00402 20310 20040 00006
    10050 11040 03300 10050 02031 00501 30012 51000 02040 10203
    00006 01050 02013 20040 10041 05010 40002 02040 10500 00006"""

# Krippendorff 2011, section C: four observers, twelve units, missing data.
KRIPPENDORFF_2011 = """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 ."""

# Shrout and Fleiss 1979, table 2: four judges (columns), six targets.
SHROUT_FLEISS_1979 = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
).T


def krippendorffs_codes():
    rows = [line.split() for line in KRIPPENDORFF_2011.strip().splitlines()]
    return np.array([[-1 if cell == "." else int(cell) - 1 for cell in row] for row in rows])


def simulated(seed, *, num_raters=3, num_items=50, num_answers=5, missing=0.0):
    """(R, N) codes of raters who see the same signal with noise."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=num_items)
    seen = signal + 0.7 * rng.normal(size=(num_raters, num_items))
    edges = np.quantile(seen, np.linspace(0, 1, num_answers + 1)[1:-1])
    codes = np.searchsorted(edges, seen)
    codes[rng.random(codes.shape) < missing] = -1
    return codes


def test_fleiss_kappa_of_fleiss_1971_is_published():
    counts = np.array([[int(digit) for digit in row] for row in FLEISS_1971.split()])
    assert counts.sum(axis=0).tolist() == [26, 26, 30, 55, 43]
    (value,) = kappas.fleiss_of_counts(counts)
    assert round(float(value), 3) == 0.430
    assert value == pytest.approx(inter_rater.fleiss_kappa(counts))


@pytest.mark.parametrize("seed", range(3))
def test_fleiss_kappa_is_that_of_statsmodels(seed):
    codes = simulated(seed, num_raters=4, num_answers=3)
    counts, _ = inter_rater.aggregate_raters(codes.T)
    found = kappas.fleiss_kappa(codes, num_resamples=200)
    assert found.value == pytest.approx(inter_rater.fleiss_kappa(counts))
    assert found.low < found.value < found.high


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_cohens_kappa_and_its_interval_are_those_of_the_packages(weighting, seed):
    one, other = simulated(seed, num_raters=2)
    found = kappas.cohen_kappa(one, other, weighting=weighting)
    table = np.zeros((5, 5))
    np.add.at(table, (one, other), 1)
    reference = inter_rater.cohens_kappa(table, wt={"none": None}.get(weighting, weighting))
    assert found.value == pytest.approx(
        cohen_kappa_score(one, other, weights=WEIGHTINGS[weighting])
    )
    assert found.value == pytest.approx(reference.kappa)
    assert (found.low, found.high) == pytest.approx((reference.kappa_low, reference.kappa_upp))


def test_cohens_kappa_leaves_out_what_one_rater_lacks():
    one, other = np.array([0, 1, 1, 0, -1, 1]), np.array([0, 1, 0, 0, 1, -1])
    found = kappas.cohen_kappa(one, other)
    assert found.num_items == 4
    assert found.value == pytest.approx(cohen_kappa_score(one[:4], other[:4]))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_lights_kappa_is_the_mean_of_the_pairs(weighting):
    codes = simulated(5, missing=0.2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    singles = [kappas.cohen_kappa(codes[i], codes[j], weighting=weighting).value for i, j in pairs]
    found = kappas.light_kappa(codes, weighting=weighting, num_resamples=200)
    assert found.value == pytest.approx(np.mean(singles))
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_of_krippendorffs_example_is_published(level, published):
    found = agreement.krippendorff_alpha(krippendorffs_codes(), level=level)
    assert found.value == pytest.approx(published, abs=6e-4)
    assert found.num_items == 11  # the twelfth unit was coded once


@pytest.mark.parametrize("level", agreement.LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_that_of_the_package_with_missing_answers(level, seed):
    codes = simulated(seed, num_raters=4, missing=0.3)
    data = np.where(codes < 0, np.nan, codes.astype(float))
    reference = krippendorff.alpha(reliability_data=data, level_of_measurement=level)
    found = agreement.krippendorff_alpha(codes, level=level, num_resamples=200)
    assert found.value == pytest.approx(reference)
    assert found.low < found.value < found.high


def test_a_resample_of_alpha_is_alpha_of_the_drawn_items():
    codes = simulated(3, num_raters=3, missing=0.2)
    drawn = np.random.default_rng(0).integers(0, codes.shape[1], codes.shape[1])
    weights = np.bincount(drawn, minlength=codes.shape[1])[None].astype(float)
    answers = np.arange(5)
    counts = (codes[:, :, None] == answers).sum(axis=0)
    counted = counts.sum(axis=1) >= 2
    ordered = counts[:, :, None] * (counts[:, None, :] - np.eye(5))
    coincidences = ordered[counted] / (counts.sum(axis=1) - 1)[counted, None, None]
    table = np.tensordot(weights[:, counted], coincidences, axes=1)
    data = np.where(codes < 0, np.nan, codes.astype(float))[:, drawn]
    assert agreement.alpha_of_tables(table, "ordinal")[0] == pytest.approx(
        krippendorff.alpha(reliability_data=data, level_of_measurement="ordinal")
    )


def test_an_interval_of_alpha_covers_the_alpha_of_many_items():
    everything = simulated(11, num_raters=3, num_items=20_000, num_answers=3)
    truth = agreement.krippendorff_alpha(everything, num_resamples=2).value
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(300):
        some = everything[:, rng.choice(20_000, 60, replace=False)]
        found = agreement.krippendorff_alpha(some, num_resamples=300, seed=seed)
        inside += found.low <= truth <= found.high
    assert 0.91 * 300 <= inside <= 0.98 * 300


def test_intraclass_correlations_of_shrout_and_fleiss_are_published():
    found = intraclass_correlations(SHROUT_FLEISS_1979)
    assert [one.name for one in found] == [
        *("ICC(1,1)", "ICC(2,1)", "ICC(3,1)"),
        *("ICC(1,4)", "ICC(2,4)", "ICC(3,4)"),
    ]
    assert [round(one.value, 2) for one in found] == [0.17, 0.29, 0.71, 0.44, 0.62, 0.91]


def test_intervals_of_shrout_and_fleiss_are_those_that_r_psych_prints():
    found = {one.name: one for one in intraclass_correlations(SHROUT_FLEISS_1979)}
    published = {
        "ICC(1,1)": (-0.133, 0.723),
        "ICC(2,1)": (0.019, 0.761),
        "ICC(3,1)": (0.342, 0.946),
        "ICC(1,4)": (-0.884, 0.912),
        "ICC(2,4)": (0.071, 0.927),
        "ICC(3,4)": (0.676, 0.986),
    }
    for name, (low, high) in published.items():
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=6e-4), name


def test_a_constant_bias_lowers_icc_2_and_not_icc_3():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 40)) + 0.2 * rng.normal(size=(3, 40))
    biased = base + np.array([[0.0], [1.0], [2.0]])
    plain = {one.name: one.value for one in intraclass_correlations(base)}
    shifted = {one.name: one.value for one in intraclass_correlations(biased)}
    assert shifted["ICC(3,1)"] == pytest.approx(plain["ICC(3,1)"])
    assert shifted["ICC(2,1)"] < plain["ICC(2,1)"] - 0.2


@pytest.mark.parametrize("model", [1, 2, 3])
def test_intervals_of_intraclass_correlations_cover_the_truth(model):
    rng = np.random.default_rng(model)
    bias = 0.0 if model == 1 else 0.5
    truth = 1 / (1 + (bias**2 if model == 2 else 0) + 1)
    inside = 0
    for _ in range(300):
        raters = bias * rng.normal(size=(6, 1))
        points = rng.normal(size=30) + raters + rng.normal(size=(6, 30))
        one = intraclass_correlations(points)[model - 1]
        inside += one.low <= truth <= one.high
    assert 0.92 <= inside / 300 <= 0.98


def test_one_answer_only_is_named():
    codes = np.zeros((3, 10), int)
    for found in (
        kappas.cohen_kappa(codes[0], codes[1]),
        kappas.light_kappa(codes),
        kappas.fleiss_kappa(codes),
        agreement.krippendorff_alpha(codes),
    ):
        assert np.isnan(found.value)
        assert found.reason == agreement.ONE_ANSWER
    assert {one.reason for one in intraclass_correlations(codes.astype(float))} == {NO_SPREAD}


def test_one_rater_is_named():
    codes = np.array([[0, 1, 0, 1], [-1, -1, -1, -1]])
    for function in (kappas.light_kappa, kappas.fleiss_kappa, agreement.krippendorff_alpha):
        assert function(codes).reason == agreement.ONE_RATER
    assert intraclass_correlations(codes[:1].astype(float))[0].reason == TOO_FEW


def test_raters_of_different_items_are_named():
    codes = np.array([[0, 1, -1, -1], [-1, -1, 0, 1]])
    for function in (kappas.light_kappa, kappas.fleiss_kappa, agreement.krippendorff_alpha):
        assert function(codes).reason == agreement.NO_OVERLAP
    assert kappas.cohen_kappa(*codes).reason == agreement.NO_OVERLAP


def test_items_that_not_all_judged_are_named_for_fleiss_only():
    codes = np.array([[0, 1, 0, 1, -1, -1], [0, 1, -1, -1, 0, 1], [-1, -1, 0, 1, 0, 1]])
    assert kappas.fleiss_kappa(codes).reason == kappas.NOT_BY_ALL
    assert agreement.krippendorff_alpha(codes).value == pytest.approx(1)


def test_perfect_agreement_has_no_interval_and_says_why():
    codes = np.tile([0, 1, 2, 0, 1, 2], (3, 1))
    for found in (
        kappas.cohen_kappa(codes[0], codes[1]),
        kappas.light_kappa(codes, weighting="quadratic"),
        kappas.fleiss_kappa(codes),
        agreement.krippendorff_alpha(codes, level="ordinal"),
    ):
        assert found.value == pytest.approx(1)
        assert np.isnan(found.low)
        assert found.reason == agreement.NO_DISAGREEMENT


def test_a_rater_of_one_answer_has_kappa_0_and_it_says_so():
    found = kappas.cohen_kappa(np.zeros(10, int), np.array([0] * 9 + [1]))
    assert found.value == pytest.approx(0)
    assert found.reason == kappas.CONSTANT
    assert np.isnan(found.low)


def test_few_items_have_no_interval_and_say_why():
    codes = np.array([[0, 1, 1], [0, 1, 0]])
    assert agreement.krippendorff_alpha(codes).reason == agreement.FEW_ITEMS


def test_unknown_weightings_and_levels_are_refused():
    with pytest.raises(ValueError, match="cubic"):
        kappas.cohen_kappa(np.array([0, 1]), np.array([1, 0]), weighting="cubic")
    with pytest.raises(ValueError, match="ratio"):
        agreement.krippendorff_alpha(np.array([[0, 1], [1, 0]]), level="ratio")
    with pytest.raises(ValueError, match="same number"):
        kappas.fleiss_of_counts(np.array([[2, 1], [1, 1]]))
