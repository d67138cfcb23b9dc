"""Arms that write reports: values, nulls, power, what has no interval, and verdicts in words."""

import math
from dataclasses import replace

import numpy as np
import pytest
from report_pairs import FINDINGS, a_report, fixed_pairs, spoiled
from scipy.stats import t as student
from test_report_scores import WordLabeler

from utils.arm_estimates import AGREEMENT, CONSTANT, NO_ERROR, ONE_SEED, TOO_FEW_DEFINED
from utils.intervals import mean_share_interval, wilson_interval
from utils.report_scores import METRIC_NAMES, NO_DISTINCT_INTERVAL, ReportScorer
from utils.report_statistics import FEW_PATIENTS, TOO_FEW, compare, estimate, score_arm
from utils.verdicts import correct_by_holm, sentence

REFERENCES, WRITTEN = fixed_pairs()
PATIENTS = [f"p{row // 2}" for row in range(200)]


@pytest.fixture(scope="module")
def scorer():
    return ReportScorer(REFERENCES, labeler=WordLabeler())


def scored(statistics, patients=PATIENTS, **changes):
    return score_arm(statistics, patients, **{"num_resamples": 100, "seed": 0} | changes)


def by_key(found):
    return {(one.target, one.metric): one for one in found}


def spoiled_reports(scorer, seed, num_seeds=3):
    rng = np.random.default_rng(seed)
    texts = [[spoiled(rng, text) if text else "" for text in WRITTEN] for _ in range(num_seeds)]
    return [scorer.statistics(one) for one in texts]


def test_values_are_means_over_seeds_inside_their_intervals(scorer):
    seeds = spoiled_reports(scorer, 0)
    values = np.mean([one.figures(np.ones((1, 200)))[0] for one in seeds], axis=0)
    found = by_key(estimate(scored(seeds)))
    assert tuple(found) == scorer.keys
    np.testing.assert_allclose([one.value for one in found.values()], values)
    inside = [one for one in found.values() if not math.isnan(one.low)]
    assert len(inside) > 30 and all(one.low < one.value < one.high for one in inside)
    assert found["all", "cider"].high > 2  # its scale ends at 10


def test_the_covariance_of_a_mean_is_that_of_patients_drawn_together(scorer):
    seeds = spoiled_reports(scorer, 1)
    of_reports = np.array([one.table[:, one.means.index("rouge_l")] for one in seeds])
    order = np.argsort(of_reports.mean(axis=0))  # the scans of a patient are alike
    patients = [f"p{rank // 2}" for rank in np.argsort(order)]
    arm = scored(seeds, patients, num_resamples=4000)
    drawn = arm.draws[:, :, scorer.keys.index(("all", "rouge_l"))]
    of_patients = of_reports[:, order].reshape(3, 100, 2).mean(axis=2)
    expected = np.cov(of_patients, ddof=0) / 100
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), expected, rtol=0.12)


def test_an_arm_against_itself_is_no_difference(scorer):
    arm = scored(spoiled_reports(scorer, 2))
    for one in compare(reference=arm, other=arm):
        if not math.isnan(one.p):
            assert (one.difference, one.low, one.high, one.p) == (0, 0, 0, 1)
            assert one.reason.endswith(AGREEMENT)
    assert by_key(compare(reference=arm, other=arm))["all", "finding_f1"].p == 1


def test_one_seed_has_the_interval_of_the_patients_and_says_so(scorer):
    arm = scored(spoiled_reports(scorer, 3, num_seeds=1), num_resamples=500)
    one = by_key(estimate(arm))["all", "rouge_1"]
    spread = arm.draws[:, 0, scorer.keys.index(("all", "rouge_1"))].std(ddof=1)
    quantile = student.ppf(0.975, arm.num_patients - 1)
    assert (one.high - one.low) / 2 == pytest.approx(quantile * spread, rel=1e-5)
    assert one.reason == ONE_SEED
    other = scored([scorer.statistics(WRITTEN)], num_resamples=500)
    one = by_key(compare(reference=arm, other=other))["all", "rouge_1"]
    spread = (other.draws - arm.draws)[:, 0, scorer.keys.index(("all", "rouge_1"))].std(ddof=1)
    assert (one.high - one.low) / 2 == pytest.approx(quantile * spread, rel=1e-4)


def test_true_reports_have_a_lower_bound_and_no_zero_interval(scorer):
    found = by_key(estimate(scored([scorer.statistics(REFERENCES)] * 2)))
    one = found["all", "finding_f1"]
    assert (one.value, one.high, one.reason) == (1, 1, NO_ERROR)
    assert one.low == pytest.approx(wilson_interval(100, 100)[0])
    naming = {PATIENTS[row] for row in range(200) if "drusen" in REFERENCES[row].lower()}
    assert found["drusen", "finding_f1"].low == pytest.approx(
        wilson_interval(len(naming), len(naming))[0]
    )
    units = np.array(
        [
            len({PATIENTS[row] for row in range(200) if name in REFERENCES[row].lower()})
            for name in FINDINGS
        ]
    )
    expected = mean_share_interval(units, units)[0]
    assert found["macro", "finding_f1"].low == pytest.approx(expected)


def test_what_has_no_interval_says_why(scorer):
    seeds = spoiled_reports(scorer, 4)
    found = by_key(estimate(scored(seeds)))
    assert found["all", "distinct_2"].reason == NO_DISTINCT_INTERVAL
    assert found["all", "distinct_2"].value > 0 and math.isnan(found["all", "distinct_2"].low)
    assert "no reference" in found["macular hole", "finding_f1"].reason
    assert found["macro", "finding_f1"].reason.endswith("macular hole")
    assert not math.isnan(found["macro", "finding_f1"].low)
    few = by_key(estimate(scored(seeds, [f"p{row % 4}" for row in range(200)])))
    assert few["all", "cider"].reason == FEW_PATIENTS and math.isnan(few["all", "cider"].low)
    nothing = by_key(estimate(scored([scorer.statistics([""] * 200)] * 3)))
    assert nothing["all", "bleu_1"].reason == CONSTANT and math.isnan(nothing["all", "bleu_1"].low)
    alone = ["p" if "drusen" in text.lower() else f"q{row}" for row, text in enumerate(REFERENCES)]
    rare = by_key(estimate(scored(seeds, alone)))
    assert rare["drusen", "finding_recall"].reason == TOO_FEW


def test_what_few_resamples_have_has_no_interval(scorer):
    texts = [[""] * 200, [""] * 200]
    texts[0][20], texts[1][40] = "drusen", "drusen"  # another patient in each seed
    found = by_key(estimate(scored([scorer.statistics(one) for one in texts])))
    one = found["drusen", "finding_precision"]
    assert not math.isnan(one.value) and math.isnan(one.low) and one.reason == TOO_FEW_DEFINED


def test_what_is_undefined_in_one_arm_has_no_difference_and_says_why(scorer):
    silent = scored([scorer.statistics([""] * 200)] * 3)
    found = by_key(compare(reference=silent, other=scored(spoiled_reports(scorer, 5))))
    one = found["drusen", "finding_precision"]
    assert math.isnan(one.difference) and math.isnan(one.p)
    assert one.reason == "no written report names it"


def test_arms_that_do_not_fit_are_refused(scorer):
    seeds = spoiled_reports(scorer, 6)
    with pytest.raises(ValueError, match="the same figures, seeds"):
        compare(reference=scored(seeds), other=scored(seeds[:2]))
    with pytest.raises(ValueError, match="not a report for each patient"):
        scored(seeds, PATIENTS[:-1])
    with pytest.raises(ValueError, match="the same figures"):
        scored([seeds[0], ReportScorer(REFERENCES).statistics(WRITTEN)])


def test_a_verdict_on_reports_in_words(scorer):
    arms = [scored([scorer.statistics(WRITTEN)] * 3), scored(spoiled_reports(scorer, 7))]
    (found,) = correct_by_holm([compare(reference=arms[1], other=arms[0])])
    told = {
        target: sentence(
            by_key(found)[target, metric],
            arm="real + synthetic",
            reference_arm="real",
            label_share=5,
            names=METRIC_NAMES,
            share_of="pairs",
        )
        for target, metric in (
            ("all", "cider_d"),
            ("macro", "finding_f1"),
            ("drusen", "finding_f1"),
        )
    }
    start = "With 5 % of the pairs, real + synthetic is better than real: CIDEr-D "
    assert told["all"].startswith(start) and told["all"][len(start)].isdigit()
    assert ": macro finding F1 " in told["macro"] and ": finding F1 of drusen " in told["drusen"]


def test_the_figures_of_the_whole_test_set_are_a_family_of_their_own(scorer):
    table = [
        compare(
            reference=scored(spoiled_reports(scorer, 8)), other=scored(spoiled_reports(scorer, 9))
        )
    ]
    found = by_key(correct_by_holm(table)[0])
    for target in ("all", "macro"):
        one = found[target, "finding_f1"]
        assert one.p_holm == one.p < 1
    findings = [
        one for (t, m), one in found.items() if m == "finding_f1" and t not in ("all", "macro")
    ]
    smallest = min(findings, key=lambda one: math.inf if math.isnan(one.p) else one.p)
    assert smallest.p_holm == pytest.approx(min(5 * smallest.p, 1))


class Clinic:
    """Models that write reports: the true one, or the same wrong one of five, more or less often.

    A report is hard for all models alike; a model has luck of its own.
    """

    def __init__(self, seed, *, num_reports=600):
        rng = np.random.default_rng(seed)
        references = [a_report(rng) for _ in range(num_reports)]
        scorer = ReportScorer(references, labeler=WordLabeler())
        variants = [references]
        variants += [[spoiled(rng, a_report(rng)) for _ in references] for _ in range(5)]
        self._statistics = [scorer.statistics(written) for written in variants]
        self._tables = np.stack([one.table for one in self._statistics])
        self._rng = rng

    def arms(self, *, gains, luck=1.0, num_patients=60, num_seeds=3):
        """Figures of an arm for each gain in skill, on one draw of patients with two scans each."""
        rng, num_reports = self._rng, 2 * num_patients
        rows = rng.integers(self._tables.shape[1], size=num_reports)
        ease = np.repeat(rng.normal(size=num_patients), 2) + 0.5 * rng.normal(size=num_reports)
        patients = np.repeat(np.arange(num_patients), 2)
        found = []
        for gain in gains:
            skill = gain + luck * rng.normal(size=(num_seeds, 1))
            right = rng.random((num_seeds, num_reports)) < 1 / (1 + np.exp(-ease - skill))
            wrong = rng.integers(1, len(self._tables), size=right.shape)
            seeds = [
                replace(self._statistics[0], table=self._tables[chosen, rows])
                for chosen in np.where(right, 0, wrong)
            ]
            found.append(scored(seeds, patients, num_resamples=50))
        return found


@pytest.fixture(scope="module")
def clinic():
    return Clinic(0)


TESTED = (
    ("all", "finding_f1"),
    ("macro", "finding_f1"),
    ("all", "bleu_4"),
    ("all", "cider"),
    ("drusen", "finding_f1"),
)


def rejections(clinic, *, gain, count, **options):
    """How many of ``count`` comparisons reject, by figure."""
    found = np.zeros(len(TESTED), int)
    for _ in range(count):
        reference, other = clinic.arms(gains=(0, gain), **options)
        differences = by_key(compare(reference=reference, other=other))
        found += [differences[key].p < 0.05 for key in TESTED]
    return found


def test_arms_of_one_population_of_models_differ_in_about_5_percent_of_comparisons(clinic):
    found = rejections(clinic, gain=0, count=200)
    # 200 x 0.05 = 10; the binomial's 0.3 and 99.8 percentiles are 3 and 19. Of one finding, which
    # half of the patients do not have, the test is more cautious.
    assert (found <= 19).all() and (found[:-1] >= 3).all(), dict(zip(TESTED, found))


def test_models_without_luck_of_their_own_are_hardly_ever_told_apart(clinic):
    assert rejections(clinic, gain=0, count=50, luck=0.0).max() <= 2


def test_a_real_gain_is_found(clinic):
    assert rejections(clinic, gain=3, count=10, luck=0.3).min() >= 8
