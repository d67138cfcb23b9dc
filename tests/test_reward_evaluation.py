"""What is told of a reward: only of unseen images and raters, and figures that are right."""

from dataclasses import replace

import numpy as np
import pytest
from planted_ratings import export_of, inputs_of, planted
from scipy.stats import linregress, pearsonr, spearmanr

from utils import reward_holdout
from utils.dataset import load_dataset
from utils.html_report import Page
from utils.reward_ceiling import ceiling_correlations, grades_of, group_correlations
from utils.reward_evaluation import NOT_SHOWN, ONE_RATER, report_held_out
from utils.reward_holdout import num_rewards, predict_held_out
from utils.reward_page import NAMES, add_reward_section
from utils.weighted_statistics import weighted_line, weighted_pearson, weighted_spearman


def evaluate(inputs, told, groups=None, seed=0):
    groups = np.arange(told.num_images) if groups is None else groups
    held_out = predict_held_out(inputs, told, groups, seed=seed)
    return held_out, report_held_out(held_out, groups, by_text=False, seed=seed)


@pytest.fixture(scope="module")
def judged():
    """A planted reward, without leniency, as many ratings as an afternoon gives."""
    inputs, told, reward, _ = planted(num_images=100, leniency_std=0.0, num_pairs=120, seed=2)
    groups = np.arange(100) // 2  # what a pair of one report would be
    told = replace(
        told, pair=np.stack([2 * (told.pair[:, 0] // 2), 2 * (told.pair[:, 0] // 2) + 1], 1)
    )
    margin = np.subtract(*reward[told.pair].T)
    noise = np.random.default_rng(5).logistic(size=len(margin))
    told = replace(told, win=(margin + noise > 0).astype(float))
    return (*evaluate(inputs, told, groups), told)


def test_a_planted_reward_foresees_held_out_raters_as_well_as_can_be(judged):
    entries = judged[1].entries
    assert entries["spearman"]["ci95"][0] > 0.5
    assert entries["spearman"]["value"] > entries["spearman_ceiling"]["value"]
    assert entries["log_loss_gain"]["ci95"][0] > 0.2
    assert entries["comparison_accuracy"]["ci95"][0] > 0.6
    assert entries["comparison_log_loss"]["ci95"][1] < np.log(2)
    assert NOT_SHOWN not in judged[1].warnings


def test_its_ratings_mean_what_they_say(judged):
    entries, bins = judged[1].entries, judged[1].bins
    low, high = entries["calibration_slope"]["ci95"]
    assert low < 1 < high and high - low < 0.3
    assert abs(entries["calibration_intercept"]["value"]) < 0.4
    assert entries["calibration_error"]["value"] < 0.2
    inside = [row["low"] <= row["predicted"] <= row["high"] for row in bins]
    assert len(bins) == 8 and sum(inside) >= 6


def test_figures_are_those_of_scipy(judged):
    held_out, report, told = judged
    rows = [told.rater == number for number in range(3)]
    means = [
        np.bincount(told.image[own], told.level[own] + 1.0) / np.bincount(told.image[own])
        for own in rows
    ]
    scores = [
        np.bincount(told.image[own], held_out.score[own]) / np.bincount(told.image[own])
        for own in rows
    ]
    each = [spearmanr(*pair).statistic for pair in zip(scores, means)]
    np.testing.assert_allclose([row["spearman"] for row in report.raters], each)
    np.testing.assert_allclose(report.entries["spearman"]["value"], np.mean(each))
    others = [
        np.mean([pearsonr(means[a], means[b]).statistic for b in range(3) if b != a])
        for a in range(3)
    ]
    np.testing.assert_allclose(report.entries["pearson_ceiling"]["value"], np.mean(others))
    expected = held_out.probs @ np.arange(1, 6)
    line = linregress(expected, told.level + 1)
    np.testing.assert_allclose(report.entries["calibration_slope"]["value"], line.slope)
    np.testing.assert_allclose(report.entries["calibration_intercept"]["value"], line.intercept)
    chosen = held_out.probs[np.arange(len(told.level)), told.level]
    np.testing.assert_allclose(report.entries["log_loss"]["value"], -np.log(chosen).mean())
    foreseen = (held_out.margin > 0) == (told.win == 1)
    np.testing.assert_allclose(report.entries["comparison_accuracy"]["value"], foreseen.mean())


def test_a_mark_that_names_the_image_helps_on_no_held_out_image():
    _, told, *_ = planted(num_images=60, num_raters=2, num_pairs=0)
    likes = np.random.default_rng(1).integers(0, 5, 60)  # has nothing to do with the image
    told = replace(told, level=likes[told.image])
    marks = np.eye(60)
    report = evaluate(inputs_of(marks), told)[1]
    assert report.entries["spearman"]["ci95"][0] < 0
    assert report.entries["log_loss_gain"]["value"] < 0.02
    assert NOT_SHOWN in report.warnings
    together = np.arange(60)
    seen = reward_holdout.fit_reward(inputs_of(marks), told, together, seed=0)
    known = reward_holdout.expected_ratings(seen, inputs_of(marks))
    assert spearmanr(known, likes).statistic > 0.9  # what training sees says nothing


def test_groups_of_images_are_held_out_whole():
    _, told, *_ = planted(num_images=60, num_raters=2, num_pairs=0)
    likes = np.random.default_rng(1).integers(0, 5, 20)
    groups = np.arange(60) % 20  # three images of each group look and are liked alike
    told = replace(told, level=likes[groups][told.image])
    marks = inputs_of(np.eye(20)[groups])
    assert evaluate(marks, told, np.arange(60))[1].entries["spearman"]["value"] > 0.8
    assert evaluate(marks, told, groups)[1].entries["spearman"]["ci95"][0] < 0


def test_raters_are_held_out():
    inputs, told, *_ = planted(num_images=60, num_raters=2, num_pairs=0, leniency_std=0.0)
    contrary = told.rater == 1
    told = replace(told, level=np.where(contrary, 4 - told.level, told.level))
    report = evaluate(inputs, told)[1]
    assert all(row["spearman"] < -0.4 for row in report.raters)
    assert [row["raters"] for row in report.raters] == ["rater 1", "rater 2"]


def test_ratings_by_chance_are_told_to_be_worth_nothing():
    inputs, told, *_ = planted(num_images=80, num_raters=2)
    rng = np.random.default_rng(0)
    told = replace(
        told,
        level=rng.integers(0, 5, len(told.level)),
        win=rng.integers(0, 2, len(told.win)).astype(float),
    )
    report = evaluate(inputs, told)[1]
    assert NOT_SHOWN in report.warnings
    assert report.entries["comparison_accuracy"]["ci95"][0] < 0.5
    assert report.entries["log_loss_gain"]["ci95"][0] < 0.01


def test_one_rater_is_warned_of():
    inputs, told, *_ = planted(num_images=40, num_raters=1, num_pairs=0)
    steps = []
    groups = np.arange(40)
    held_out = predict_held_out(inputs, told, groups, seed=0, progress=steps.append)
    report = report_held_out(held_out, groups, by_text=False, seed=0)
    assert report.warnings == (ONE_RATER, "only 40 images were judged: better 100 or more")
    assert report.entries["spearman"]["ci95"][0] > 0  # images alone are held out
    assert (
        report.entries["spearman_ceiling"]["value"] != report.entries["spearman_ceiling"]["value"]
    )
    assert len(steps) == num_rewards(told) == 5


def test_comparisons_alone_have_a_report():
    inputs, told, *_ = planted(num_images=60, num_pairs=150)
    empty = {name: getattr(told, name)[:0] for name in ("image", "rater", "question", "level")}
    told = replace(told, questions=(), pair=told.pair // 2 * 2 + [0, 1], **empty)
    groups = np.arange(60) // 2
    report = evaluate(inputs, told, groups)[1]
    assert set(report.entries) == {"comparison_accuracy", "comparison_log_loss"}
    assert report.bins == []


def test_drawing_an_image_twice_is_having_it_twice():
    rng = np.random.default_rng(0)
    x, y = np.round(rng.normal(size=(2, 40)), 1)
    weights = rng.integers(0, 4, (3, 40)).astype(float)
    for row, weight in enumerate(weights.astype(int)):
        pair = np.repeat(x, weight), np.repeat(y, weight)
        found = weighted_spearman(x, y, weights)[row], weighted_pearson(x, y, weights)[row]
        wanted = spearmanr(*pair).statistic, pearsonr(*pair).statistic
        np.testing.assert_allclose(found, wanted)
        line = linregress(*pair)
        slopes = [part[row] for part in weighted_line(x, y, weights)]
        np.testing.assert_allclose(slopes, [line.slope, line.intercept])


def test_correlations_leave_out_what_one_side_lacks(judged):
    held_out, _, told = judged
    some = told.keep(np.arange(100) < 90, None)
    absent = replace(held_out, ratings=some, score=held_out.score[told.image < 90])
    grades = grades_of(absent)
    ones = np.ones((1, 100))
    assert np.isnan(grades.by_rater[:, 90:]).all()
    for function in (group_correlations, ceiling_correlations):
        assert np.isfinite(function(grades, ones, weighted_spearman)).all()


def test_the_page_tells_figures_and_warnings_and_shows_images_if_asked(judged, tmp_path):
    export, _ = export_of(tmp_path / "export")
    report = judged[1]
    report = replace(report, score=report.score[:24], observed=report.observed[:24])
    report = replace(report, warnings=("only few images",))
    dataset = load_dataset(export, allow_duplicates=True, num_workers=0)
    for shown in (False, True):
        page = Page("Reward")
        add_reward_section(page, report, dataset, show_images=shown)
        html = page.html()
        assert ("Several drusen." in html) == shown
        assert "only few images" in html
        assert all(NAMES[name] in html for name in report.entries)
    assert set(judged[1].entries) == set(NAMES)
