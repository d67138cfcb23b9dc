"""What is made of doctors' answers: inference over raters and images, and every figure."""

import math

import numpy as np
import pytest
from rating_answers import answer, says, study
from scipy.stats import binomtest
from scipy.stats import t as student

from utils import rater_inference, turing_figures
from utils.agreement_statistics import NO_OVERLAP, ONE_RATER
from utils.cli import UserError
from utils.kappas import cohen_kappa
from utils.rater_agreement import NO_REPEATS
from utils.rater_inference import contrast, mean_covariance
from utils.rating_analysis import analyze
from utils.rating_figures import find
from utils.rating_matrix import anonymous_names, collect, score_table

# Against chance: half of the images' difference of "says synthetic", and 1/2.
BALANCED = {"real": -0.5, "synthetic": 0.5}


def guesses(rng, *, num_raters, num_real, num_synthetic, image_sd=1.0, bias=0.6, effect=0.0):
    """Says-synthetic tables of raters who are prone to say it, of images that look more or less so.

    With ``effect`` 0 nobody can tell: images of both arms look synthetic equally often.
    """
    prone = bias + 0.7 * rng.normal(size=(num_raters, 1))
    tables = {}
    for arm, count in (("real", num_real), ("synthetic", num_synthetic)):
        looks = image_sd * rng.normal(size=count) + effect * (arm == "synthetic")
        said = prone + looks + rng.normal(size=(num_raters, count)) > 0
        tables[arm] = said.astype(float)
    return tables


@pytest.mark.parametrize(
    ("num_raters", "num_real", "num_synthetic"),
    [(1, 30, 30), (3, 30, 30), (3, 20, 60), (6, 30, 30)],
)
def test_raters_who_cannot_tell_are_said_to_tell_in_one_study_of_twenty_at_most(
    num_raters, num_real, num_synthetic
):
    rng = np.random.default_rng(num_raters)
    sizes = {"num_raters": num_raters, "num_real": num_real, "num_synthetic": num_synthetic}
    found = [
        contrast(guesses(rng, image_sd=2.0, **sizes), BALANCED, null=0.5, offset=0.5)
        for _ in range(400)
    ]
    rejected = sum(one.p < 0.05 for one in found)
    covered = sum(one.low <= 0.5 <= one.high for one in found)
    assert rejected <= 0.07 * 400
    assert covered >= 0.93 * 400
    assert rejected >= 0.01 * 400  # or the test would never say anything


def test_a_binomial_test_of_the_same_answers_would_be_wrong_several_times_as_often():
    rng = np.random.default_rng(3)
    naive = 0
    for _ in range(400):
        tables = guesses(rng, num_raters=3, num_real=20, num_synthetic=60, image_sd=2.0)
        right = int(tables["synthetic"].sum() + (1 - tables["real"]).sum())
        naive += binomtest(right, 3 * 80, 0.5).pvalue < 0.05
    assert naive > 0.25 * 400


def test_raters_who_can_tell_are_found():
    rng = np.random.default_rng(0)
    sizes = {"num_raters": 3, "num_real": 30, "num_synthetic": 30}
    found = [
        contrast(guesses(rng, effect=1.5, **sizes), BALANCED, null=0.5, offset=0.5)
        for _ in range(100)
    ]
    assert sum(one.p < 0.05 for one in found) > 50
    assert all(one.low > 0.5 for one in found if one.p < 0.05)


@pytest.mark.parametrize("num_raters", [2, 5])
def test_of_these_raters_alone_guessing_is_found_out_in_one_study_of_twenty(num_raters):
    rng = np.random.default_rng(num_raters)
    sizes = {"num_raters": num_raters, "num_real": 30, "num_synthetic": 30}
    rejected = 0
    for _ in range(600):
        tables = guesses(rng, image_sd=1.0, **sizes)
        one = contrast(tables, BALANCED, null=0.5, offset=0.5, fixed_raters=True)
        rejected += one.p < 0.05
    assert 0.03 * 600 <= rejected <= 0.07 * 600


def test_of_these_raters_alone_the_variance_is_that_of_their_mean():
    tables = guesses(np.random.default_rng(0), num_raters=3, num_real=20, num_synthetic=30)
    one = contrast(tables, BALANCED, null=0.5, offset=0.5, fixed_raters=True)
    sizes = {arm: table.shape[1] for arm, table in tables.items()}
    parts = [np.var(table.mean(axis=0), ddof=1) / sizes[arm] / 4 for arm, table in tables.items()]
    half = student.ppf(0.975, 19) * math.sqrt(sum(parts))
    assert (one.low, one.high) == pytest.approx((one.value - half, one.value + half))


@pytest.mark.parametrize("num_raters", [2, 3, 6])
def test_intervals_of_a_difference_of_points_cover_the_true_one(num_raters):
    rng = np.random.default_rng(num_raters)
    inside = 0
    for _ in range(300):
        bias = 0.5 * rng.normal(size=(num_raters, 1))
        leaning = 0.3 * rng.normal(size=(num_raters, 1))  # a rater's own liking of the new arm
        tables = {
            "old": 3 + bias + rng.normal(size=30) + 0.7 * rng.normal(size=(num_raters, 30)),
            "new": 3.5
            + bias
            + leaning
            + rng.normal(size=40)
            + 0.7 * rng.normal(size=(num_raters, 40)),
        }
        one = contrast(tables, {"new": 1.0, "old": -1.0}, limits=(-9, 9))
        inside += one.low <= 0.5 <= one.high
    assert inside >= 0.93 * 300


def test_the_figure_of_one_rater_is_students_interval_of_the_images():
    tables = {"a": np.array([[1.0, 2.0, 4.0, 5.0]])}
    one = contrast(tables, {"a": 1.0}, null=2.0, limits=(0, 9))
    error = np.std([1, 2, 4, 5], ddof=1) / 2
    half = student.ppf(0.975, 3) * error
    assert (one.value, one.low, one.high) == pytest.approx((3, 3 - half, 3 + half))
    assert one.p == pytest.approx(2 * student.sf(1 / error, 3))
    assert one.reason == f"{rater_inference.ONE_RATER}; {rater_inference.FEW_IMAGES}"


def test_many_raters_of_few_images_do_not_make_the_images_more():
    """Twelve raters of one mind on eight images are told about as well as one rater."""
    row = np.array([1.0, 1, 1, 0, 1, 1, 1, 0])
    table = np.tile(row, (12, 1))
    table[np.arange(8), np.arange(8)] = 1 - row  # so that raters differ at all
    many = contrast({"a": table}, {"a": 1.0}, null=0.5)
    images = np.cov(table).mean() / 8  # nearly all of the variance
    half = student.ppf(0.975, 7) * math.sqrt(images)
    assert many.high - many.value >= min(half, 1 - many.value) > 0
    assert many.value - many.low >= 0.95 * half
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(600):
        looks = 2 * rng.normal(size=12)
        won = looks + rng.normal(size=(12, 12)) + 0.3 * rng.normal(size=(12, 1)) > 0
        rejected += contrast({"a": won.astype(float)}, {"a": 1.0}, null=0.5).p < 0.05
    assert rejected <= 0.075 * 600


def test_covariance_of_raters_means_is_that_of_many_draws_of_images():
    rng = np.random.default_rng(0)
    images = rng.normal(size=100_000)
    answers = images + 0.5 * rng.normal(size=(3, 100_000))
    table = answers[:, :60].copy()
    table[0, :20] = math.nan  # one rater has not judged a third
    draws = np.stack([answers[:, n : n + 60] for n in range(0, 60_000, 60)])
    means = np.stack([draws[:, 0, 20:].mean(1), draws[:, 1].mean(1), draws[:, 2].mean(1)])
    expected = np.mean(
        [mean_covariance(np.where(np.isnan(table), math.nan, draw)) for draw in draws], axis=0
    )
    assert expected == pytest.approx(np.cov(means), rel=0.15)


def test_raters_without_two_images_of_each_arm_do_not_count():
    tables = {
        "real": np.array([[0.0, 1.0, 1.0], [1.0, math.nan, math.nan]]),
        "synthetic": np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]),
    }
    assert contrast(tables, BALANCED).num_raters == 1
    nobody = {arm: table[1:] for arm, table in tables.items()}
    assert contrast(nobody, BALANCED).reason == rater_inference.TOO_FEW_IMAGES
    assert math.isnan(contrast(nobody, BALANCED).value)


def test_who_is_always_right_is_no_guesser_and_has_an_interval():
    tables = {"real": np.zeros((2, 10)), "synthetic": np.ones((2, 10))}
    one = contrast(tables, BALANCED, null=0.5, offset=0.5)
    assert one.value == one.high == 1
    assert 0.75 < one.low < 0.95
    assert one.p == pytest.approx(2 / 2**20)
    assert rater_inference.EXTREME in one.reason


def test_who_calls_everything_synthetic_tells_nothing():
    tables = {"real": np.ones((3, 10)), "synthetic": np.ones((3, 30))}
    one = contrast(tables, BALANCED, null=0.5, offset=0.5)
    assert (one.value, one.p) == (0.5, 1)
    assert one.low < 0.5 < one.high


def test_equal_points_everywhere_have_no_interval_and_say_why():
    one = contrast({"a": np.full((2, 5), 4.0)}, {"a": 1.0}, limits=(1, 5))
    assert one.value == 4
    assert math.isnan(one.low)
    assert rater_inference.ONE_ANSWER_EACH in one.reason


def hand_made():
    """Two raters, 4 real and 8 synthetic images; both call 6 of the synthetic ones so.

    Real images taken for synthetic: 1 by Ann, 3 by Bob.
    """
    r, s = "real", "synthetic"
    return [
        *says("Ann", "real", [s, r, r, r]),
        *says("Ann", "gan", [s, s, s, s, s, s, r, r], start=4, label="normal"),
        *says("Bob", "real", [s, s, s, r]),
        *says("Bob", "gan", [s, s, s, s, s, r, s, r], start=4, label="normal"),
    ]


def value_of(analysis, *key, **named):
    (one,) = find(analysis.figures, *key, **named)
    return one.found.value


def test_figures_of_the_turing_test_are_those_counted_by_hand():
    found = analyze(hand_made(), num_resamples=10)
    assert value_of(found, "turing", "sensitivity", "overall") == pytest.approx(6 / 8)
    assert value_of(found, "turing", "specificity", "overall") == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert value_of(found, "turing", "balanced_accuracy", "overall") == pytest.approx(5 / 8)
    assert value_of(found, "turing", "accuracy", "overall") == pytest.approx((9 + 7) / 24)
    assert value_of(found, "turing", "taken_for_real", "arm", name="gan") == pytest.approx(2 / 8)
    assert value_of(found, "turing", "taken_for_real", "arm", name="real") == pytest.approx(4 / 8)
    assert value_of(found, "turing", "balanced_accuracy", "rater", name="Ann") == pytest.approx(
        3 / 4
    )
    assert value_of(found, "turing", "balanced_accuracy", "rater", name="Bob") == pytest.approx(
        1 / 2
    )


def test_d_prime_and_bias_are_those_of_the_corrected_shares():
    from scipy.stats import norm

    found = analyze(hand_made(), num_resamples=10)
    hits, alarms = norm.ppf(6.5 / 9), norm.ppf(3.5 / 5)
    d_prime = value_of(found, "turing", "d_prime", "rater", name="Bob")
    assert d_prime == pytest.approx(hits - alarms)
    assert value_of(found, "turing", "bias_c", "rater", name="Bob") == pytest.approx(
        -(hits + alarms) / 2
    )


def test_a_bias_without_sight_is_right_often_but_not_beyond_chance():
    said = ["synthetic"] * 3 + ["real"]
    rows = [
        *(row for rater in "AB" for row in says(rater, "real", said * 3)),
        *(row for rater in "AB" for row in says(rater, "gan", said * 12, start=12)),
    ]
    found = analyze(rows, num_resamples=10)
    assert value_of(found, "turing", "accuracy", "overall") == pytest.approx(0.65)
    (tested,) = find(found.figures, "turing", "balanced_accuracy", "overall")
    assert tested.found.value == pytest.approx(0.5)
    assert tested.found.p > 0.9


def test_repeats_change_no_figure():
    rows = study()
    first = [one for one in rows if not one.is_repeat]
    everything, without = analyze(rows, num_resamples=10), analyze(first, num_resamples=10)
    assert len(rows) > len(first)
    assert str([one.row() for one in everything.figures]) == str(
        [one.row() for one in without.figures]
    )
    assert everything.agreement == without.agreement
    assert everything.self_agreement != without.self_agreement


def test_points_shares_and_differences_of_arms_are_those_counted_by_hand():
    rows = [
        *says("Ann", "real", [5, 4, 4, 3], question="quality"),
        *says("Ann", "gan", [2, 3, 4, 3], question="quality", start=4),
        *says("Bob", "real", [5, 5, 4, 4], question="quality"),
        *says("Bob", "gan", [1, 2, 3, 2], question="quality", start=4),
    ]
    found = analyze(rows, num_resamples=10)
    assert value_of(found, "quality", "mean", "arm", name="real") == pytest.approx(34 / 8)
    assert value_of(found, "quality", "share_4_5", "arm", name="gan") == pytest.approx(1 / 8)
    (apart,) = find(found.figures, "quality", "mean", "arms")
    assert apart.name == "gan − real"
    assert apart.found.value == pytest.approx((20 - 34) / 8)
    assert apart.found.low < apart.found.value < apart.found.high


def test_unsure_is_counted_apart_from_wrong():
    values = ["drusen", "unsure", "normal", "drusen"]
    rows = says("Ann", "gan", values, question="diagnosis")
    rows += says("Ann", "gan", ["normal"], question="diagnosis", start=9, label="")
    found = analyze(rows, num_resamples=10)
    assert value_of(found, "diagnosis", "right", "arm") == pytest.approx(2 / 4)
    assert value_of(found, "diagnosis", "right_of_decided", "arm") == pytest.approx(2 / 3)
    assert value_of(found, "diagnosis", "unsure", "arm") == pytest.approx(1 / 4)


def test_one_of_several_diagnoses_of_an_image_is_right():
    rows = says("Ann", "gan", ["normal", "drusen"], question="diagnosis", label="edema; drusen")
    assert value_of(analyze(rows), "diagnosis", "right", "arm") == pytest.approx(0.5)


def test_errors_are_counted_kind_by_kind():
    rows = says("Ann", "gan", ["omission;artifact", "none", "artifact", "none"], question="errors")
    found = analyze(rows, num_resamples=10)
    shares = {
        kind: value_of(found, "errors", kind, "arm") for kind in ("any", "artifact", "context")
    }
    assert shares == {"any": 0.5, "artifact": 0.5, "context": 0.0}


def test_a_win_counts_for_the_arm_on_whichever_side_it_was():
    pair = {"question": "preference", "rater": "Ann"}
    new_old = {"arm": "new", "other_arm": "old"}
    old_new = {"arm": "old", "other_arm": "new"}
    rows = [
        answer(item=0, value="image", **pair, **new_old),
        answer(item=1, value="other", **pair, **old_new),
        answer(item=2, value="tie", **pair, **old_new),
        answer(item=3, value="image", **pair, **old_new),
        answer(item=4, value="image", **pair, arm="new", other_arm="new"),
    ]
    found = analyze(rows, num_resamples=10)
    (share,) = find(found.figures, "preference", "win_share", "arms")
    assert (share.name, share.found.num_images) == ("old over new", 4)
    assert share.found.value == pytest.approx(1.5 / 4)
    assert value_of(found, "preference", "tie_share", "arms") == pytest.approx(1 / 4)


def test_comparisons_of_a_family_are_corrected_by_holm():
    found = analyze(study(), num_resamples=10)
    apart = [one.found for one in find(found.figures, "quality", "mean", "arms")]
    assert len(apart) == 3
    ordered = sorted(apart, key=lambda one: one.p)
    assert ordered[0].p_holm == pytest.approx(min(3 * ordered[0].p, 1))
    assert all(one.p_holm >= one.p for one in apart)
    (main,) = find(found.figures, "turing", "balanced_accuracy", "overall")
    assert math.isnan(main.found.p_holm)  # the main question is one test


def test_better_arms_are_rated_better():
    found = analyze(study(per_arm=40), num_resamples=10)
    points = {one.name: one.found.value for one in find(found.figures, "quality", "mean", "arm")}
    assert points["real"] > points["new"] > points["old"]
    (win,) = find(found.figures, "preference", "win_share", "arms")
    assert win.name == "old over new"
    assert win.found.high < 0.5


def test_agreement_is_given_for_every_question_and_each_two_raters():
    found = analyze(study(), num_resamples=50)
    rows = {(row["question"], row["coefficient"], row["raters"]): row for row in found.agreement}
    alpha = rows["quality", "Krippendorff's alpha, ordinal", "all"]
    assert 0.2 < alpha["low"] < alpha["value"] < alpha["high"] < 1
    assert ("quality", "ICC(2,3)", "all") in rows
    assert ("turing", "Cohen's kappa", "Dr Alba, Dr Cruz") in rows
    assert ("errors: artifact", "Fleiss' kappa", "all") in rows
    raters = collect(study()).raters
    points = score_table(collect(study()).of("quality"), raters, lambda one: int(one.value) - 1)
    kappas = [
        cohen_kappa(points[i].astype(int), points[j].astype(int), weighting="quadratic").value
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    mean = rows["quality", "mean of Cohen's kappas, quadratic weights", "all"]
    assert mean["value"] == pytest.approx(np.mean(kappas))
    pair = rows["quality", "Cohen's kappa, quadratic weights", "Dr Alba, Dr Bock"]
    assert pair["value"] == pytest.approx(kappas[0])
    equal = rows["turing", "share of equal answers", "all"]
    said = score_table(
        collect(study()).of("turing"), collect(study()).raters, lambda one: one.value == "real"
    )
    by_hand = np.mean([(said[i] == said[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))])
    assert equal["value"] == pytest.approx(by_hand)


def test_one_rater_has_no_agreement_and_it_says_so():
    found = analyze(study(raters=("Dr Alba",)), num_resamples=10)
    reasons = {row["reason"] for row in found.agreement if row["coefficient"].startswith("Kripp")}
    assert reasons == {ONE_RATER}


def test_raters_of_different_images_have_no_agreement_and_it_says_so():
    rows = says("Ann", "gan", ["real"] * 3) + says("Bob", "gan", ["real"] * 3, start=3)
    reasons = [row["reason"] for row in analyze(rows, num_resamples=10).agreement]
    assert NO_OVERLAP in reasons


def test_self_agreement_compares_a_repeat_with_the_first_answer_of_the_same_rater():
    rows = says("Ann", "gan", [1, 2, 3, 4], question="quality")
    rows += says("Bob", "gan", [5, 5, 5, 5], question="quality")
    rows += says("Ann", "gan", [1, 3], question="quality", is_repeat=True)
    by_rater = {row["rater"]: row for row in analyze(rows, num_resamples=10).self_agreement}
    assert by_rater["Ann"]["num_repeats"] == 2
    assert by_rater["Ann"]["equal"] == 0.5
    assert by_rater["Ann"]["mean_shift"] == 0.5
    weighted = cohen_kappa(np.array([1, 2]), np.array([1, 3]), weighting="quadratic")
    assert by_rater["Ann"]["kappa"] == pytest.approx(weighted.value)
    assert by_rater["Bob"]["reason"] == NO_REPEATS


def test_time_of_an_item_counts_once_however_many_questions_it_has():
    rows = says("Ann", "gan", [1, 2], question="quality", seconds=30.0)
    rows += says("Ann", "gan", ["real", "real"], seconds=30.0)
    (row,) = analyze(rows, num_resamples=10).times
    assert (row["num_items"], row["median_seconds"], row["total_minutes"]) == (2, 30, 1)


def test_a_study_without_real_images_has_shares_but_no_test():
    found = analyze(says("Ann", "gan", ["real", "synthetic"]), num_resamples=10)
    assert value_of(found, "turing", "taken_for_real", "arm") == 0.5
    assert not find(found.figures, "turing", "balanced_accuracy", "overall")


def test_diagnoses_are_tested_apart_and_corrected_together():
    found = analyze(study(per_arm=30), num_resamples=10)
    tested = find(found.figures, "turing", "balanced_accuracy", "diagnosis")
    assert [one.name for one in tested] == ["drusen", "macular edema", "normal"]
    assert max(one.found.num_images for one in tested) == 30
    assert all(one.found.p_holm >= one.found.p for one in tested)


def test_the_first_two_answers_of_one_showing_and_impossible_values_are_refused():
    one = answer("Ann", 3, "quality", "4")
    with pytest.raises(UserError, match="Ann, item 3, question quality: two answers"):
        analyze([one, one])
    with pytest.raises(UserError, match="'6' is none of 1, 2, 3, 4, 5"):
        analyze([answer("Ann", 3, "quality", "6")])
    with pytest.raises(UserError, match="no answers"):
        analyze([])


def test_numbers_stand_for_names():
    assert anonymous_names(study()) == {
        "Dr Alba": "rater 1",
        "Dr Bock": "rater 2",
        "Dr Cruz": "rater 3",
    }


def test_the_module_of_the_turing_test_pools_synthetic_arms():
    tables = {"real": np.zeros((2, 3)), "a": np.ones((2, 2)), "b": np.ones((2, 4))}
    both = turing_figures.pooled(tables)
    assert both["synthetic"].shape == (2, 6)
