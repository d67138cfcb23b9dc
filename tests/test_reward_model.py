"""The reward's model: the right minimum, what was planted, ratings and comparisons, one folder."""

import json
from dataclasses import replace

import numpy as np
import pytest
from accelerate import PartialState
from planted_ratings import answer, export_of, inputs_of, planted
from scipy.stats import spearmanr
from test_evaluate import save_classifier

from utils import ordinal_model
from utils.cli import UserError
from utils.ordinal_model import fit_path, level_probs
from utils.rating_table import write_answers
from utils.reward_design import make_design
from utils.reward_features import MAX_LOGIT, Inputs, asked_figures, load_networks
from utils.reward_fit import fit_reward, folds_of, image_groups
from utils.reward_model import RewardModel, expected_ratings
from utils.reward_ratings import read_ratings
from utils.reward_training import load_rated, train_reward


def only_ratings(told):
    return told.keep(np.ones(told.num_images, bool)).__class__(
        **vars(told)
        | {"pair": told.pair[:0], "pair_rater": told.pair_rater[:0], "win": told.win[:0]}
    )


def only_comparisons(told):
    empty = {name: getattr(told, name)[:0] for name in ("image", "rater", "question", "level")}
    return replace(told, questions=(), **empty)


def fit(told, features, l2):
    return next(fit_path(features, told, strengths=(l2,)))


def test_without_penalty_it_is_the_proportional_odds_model_of_statsmodels(monkeypatch):
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    monkeypatch.setattr(ordinal_model, "PSEUDO_RATINGS", 0.0)
    monkeypatch.setattr(ordinal_model, "LENIENCY_PRECISION", 1e-7)
    inputs, told, *_ = planted(questions=("quality",), num_pairs=0, num_images=80)
    found = fit(told, inputs.image, 1e-8)
    dummies = (told.rater[:, None] == [1, 2]).astype(float)
    model = OrderedModel(told.level, np.hstack([inputs.image[told.image], dummies]), distr="logit")
    reference = model.fit(method="bfgs", disp=False, gtol=1e-7, maxiter=500)
    np.testing.assert_allclose(found.weight, reference.params[:4], atol=2e-3)
    leniency = found.leniency[:, 0]
    np.testing.assert_allclose(leniency[1:] - leniency[0], reference.params[4:6], atol=2e-3)
    wanted = model.transform_threshold_params(reference.params)[1:-1]
    np.testing.assert_allclose(found.thresholds[0] - leniency[0], wanted, atol=2e-3)


def test_comparisons_are_logistic_regression_on_differences():
    from sklearn.linear_model import LogisticRegression

    inputs, told, *_ = planted()
    told = only_comparisons(told)
    told.win[:5] = 0.5
    found = fit(told, inputs.image, 0.7)
    first, second = told.pair.T
    differences = np.concatenate([inputs.image[first] - inputs.image[second]] * 2)
    wins = np.repeat([1, 0], len(told.win))
    weights = np.concatenate([told.win, 1 - told.win])
    model = LogisticRegression(C=1 / 0.7, fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(differences, wins, sample_weight=weights)
    np.testing.assert_allclose(found.weight, model.coef_[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["both", "ratings", "comparisons"])
def test_a_planted_reward_is_found_from_either_kind_of_answer(kind):
    inputs, told, reward, leniency = planted(num_images=120, num_pairs=150)
    told = {"both": told, "ratings": only_ratings(told), "comparisons": only_comparisons(told)}[
        kind
    ]
    found = fit_reward(inputs, told, np.arange(120), seed=0)
    score = expected_ratings(found, inputs)
    assert spearmanr(score, reward).statistic > (0.9 if kind == "comparisons" else 0.97)
    assert score.min() >= 1 and score.max() <= 5
    if kind != "comparisons":
        centred = leniency - leniency.mean(axis=0)
        np.testing.assert_allclose(found.latent.leniency, centred, atol=0.5)


def test_ratings_and_comparisons_together_beat_either_alone():
    inputs, told, reward, _ = planted(num_images=60, dim=8, num_pairs=120, seed=3)
    few = told.keep(np.ones(60, bool), np.array([True, False, False]))

    def right(ratings):
        latent = fit(ratings, inputs.image, 1.0)
        return spearmanr(latent.scores(inputs.image).mean(axis=1), reward).statistic

    alone = right(only_ratings(few))
    together = right(replace(few, pair=told.pair, pair_rater=told.pair_rater, win=told.win))
    assert together > alone


def test_expected_ratings_rise_with_the_score():
    scores = np.linspace(-8, 8, 50)[:, None]
    chances = level_probs(scores, np.array([[-1.0, 0.0, 0.1, 3.0]]))
    np.testing.assert_allclose(chances.sum(axis=2), 1)
    assert (np.diff(chances[:, 0] @ np.arange(1, 6)) > 0).all()


def test_ties_alone_tell_no_image_from_another():
    inputs, told, *_ = planted()
    found = fit(only_comparisons(replace(told, win=np.full(len(told.win), 0.5))), inputs.image, 1.0)
    np.testing.assert_allclose(found.weight, 0, atol=1e-9)


def test_a_level_that_nobody_used_keeps_a_chance():
    inputs, told, *_ = planted()
    found = fit(replace(told, level=told.level.clip(1, 3)), inputs.image, 1.0)
    chances = found.level_probs(inputs.image)
    assert (chances > 0).all() and chances[..., [0, 4]].max() < 0.05
    assert np.isfinite(found.thresholds).all()


def test_two_questions_may_differ():
    inputs, told, *_ = planted(num_images=150, num_pairs=0)
    rng = np.random.default_rng(1)
    levels = told.level.copy()  # quality follows feature 0, agreement feature 1
    for question in (0, 1):
        rows = told.question == question
        values = 2 * inputs.image[told.image[rows], question] + rng.logistic(size=rows.sum())
        levels[rows] = np.searchsorted([-2, -0.7, 0.7, 2], values)
    found = fit(replace(told, level=levels), inputs.image, 1.0)
    weights = found.weight + found.deviations
    assert (np.abs(weights).argmax(axis=1) == [0, 1]).all()


def test_the_same_picture_is_worth_less_beside_another_text():
    rng = np.random.default_rng(0)
    shown, asked = rng.integers(0, 2, (2, 120))
    x = rng.normal(0, 0.5, (120, 3))
    x[:, 0] += 4 * shown
    inputs = inputs_of(x, np.eye(2)[asked])
    _, told, *_ = planted(num_images=120, num_pairs=0)
    levels = np.where(shown == asked, 3, 1)[told.image] + rng.integers(-1, 2, len(told.image))
    found = fit_reward(inputs, replace(told, level=levels), np.arange(120), seed=0)
    swapped = inputs_of(x, np.eye(2)[1 - asked])
    difference = expected_ratings(found, inputs) - expected_ratings(found, swapped)
    assert (np.sign(difference) == np.where(shown == asked, 1, -1)).mean() > 0.95


def test_blocks_count_the_same_whatever_their_columns_and_units():
    rng = np.random.default_rng(0)
    asked = np.where(rng.random((50, 2)) < 0.2, np.nan, rng.normal(3, 0.01, (50, 2)))
    findings = np.eye(3)[rng.integers(0, 3, 50)]
    inputs = Inputs(rng.normal(9, 1000, (50, 40)), findings, asked)
    columns = make_design(inputs, np.ones(50, bool))(inputs)
    parts = np.split(columns, np.cumsum([40, 3, 2]), axis=1)
    np.testing.assert_allclose([part.var(axis=0).sum() for part in parts], 1)
    np.testing.assert_allclose(columns.mean(axis=0), 0, atol=1e-9)


def test_the_design_does_not_see_the_other_images():
    inputs, *_ = planted()
    rows = np.arange(60) < 40
    changed = inputs_of(np.where(rows[:, None], inputs.image, 1e6))
    for name, value in vars(make_design(inputs, rows)).items():
        np.testing.assert_array_equal(value, getattr(make_design(changed, rows), name))


def test_images_that_nobody_judged_change_nothing():
    inputs, told, *_ = planted()
    seen = np.arange(60) < 40
    told = told.keep(seen)
    changed = inputs_of(np.where(seen[:, None], inputs.image, 1e6))
    fits = [fit_reward(one, told, np.arange(60), seed=0) for one in (inputs, changed)]
    np.testing.assert_array_equal(fits[0].latent.weight, fits[1].latent.weight)
    np.testing.assert_array_equal(fits[0].design.image_mean, fits[1].design.image_mean)


def test_compared_images_and_those_of_one_report_are_held_out_together():
    _, told, *_ = planted(num_images=60, num_pairs=10)
    groups, by_text = image_groups(told, [f"report {n // 2}" for n in range(60)])
    assert by_text and (groups[::2] == groups[1::2]).all()
    groups_of_captions, by_text = image_groups(told, [f"class {n % 6}" for n in range(60)])
    assert not by_text and len(set(groups_of_captions)) > 40
    for found in (groups, groups_of_captions):
        assert (found[told.pair[:, 0]] == found[told.pair[:, 1]]).all()
        folds = folds_of(found, 5, seed=1)
        assert all(len(set(folds[found == group])) == 1 for group in set(found))
        assert np.ptp(np.bincount(folds, minlength=5)) <= np.bincount(found).max()


def test_what_the_classifier_says_of_the_asked_diagnoses():
    chances = np.array([0.5, 0.2, 0.3])
    expected = [0.35, np.log(0.2 / 0.8), 0.3, np.log(0.3 / 0.7)]
    np.testing.assert_allclose(asked_figures(chances, [True, True, False]), expected)
    assert asked_figures(np.array([1.0, 0.0]), [False, True]) == [0, -MAX_LOGIT, 1, MAX_LOGIT]
    assert np.isnan(asked_figures(chances, [False] * 3)).all()


@pytest.fixture(scope="module")
def rated_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rated")
    export, _ = export_of(folder / "export")
    name = f"classifier:{save_classifier(folder / 'classifier', labels=('drusen', 'normal'))}"
    return export, load_networks([name]), folder / "cache"


@pytest.fixture
def looked(rated_folder):
    """An export folder, networks, and how to look; the state is each test's own."""
    export, networks, cache_dir = rated_folder
    return export, networks, {"cache_dir": cache_dir, "state": PartialState(cpu=True)}


def test_same_ratings_give_the_same_bytes_and_the_folder_the_same_scores(looked, tmp_path):
    export, networks, options = looked
    models = [train_reward(load_rated(export, networks, **options), networks) for _ in range(2)]
    for number, model in enumerate(models):
        model.save(tmp_path / str(number))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    loaded = RewardModel.load(tmp_path / "0")
    dataset, _ = read_ratings(export)
    scores = loaded.score(dataset, **options)
    np.testing.assert_array_equal(scores, models[0].score(dataset, **options))
    assert loaded.sha256 == models[0].sha256 and scores.dtype == np.float64
    assert scores.shape == (24,) and ((scores > 1) & (scores < 5)).all()


def test_it_knows_a_brighter_image_where_raters_like_them(looked):
    export, networks, options = looked
    rated = load_rated(export, networks, **options)
    bright = [np.asarray(record.image()).mean() for record in rated.dataset]
    assert spearmanr(train_reward(rated, networks).rate(rated.inputs), bright).statistic > 0.8


def test_a_folder_refuses_other_networks_and_broken_files(looked, tmp_path):
    export, networks, options = looked
    train_reward(load_rated(export, networks, **options), networks).save(tmp_path)
    other = save_classifier(tmp_path / "other", labels=("drusen", "normal", "other"))
    with pytest.raises(UserError, match="other weights"):
        RewardModel.load(tmp_path, networks=load_networks([f"classifier:{other}"]))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        RewardModel.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(UserError, match=r"config\.json"):
        RewardModel.load(tmp_path)


def test_repeats_and_other_questions_are_not_learnt_from(tmp_path):
    export, answers = export_of(tmp_path / "export", repeats=5)
    told = read_ratings(export)[1]
    once = [a for a in answers if not a.is_repeat and a.question != "turing"]
    assert len(told.level) == len(once) == 24 * 2 * 2
    assert told.level.tolist() == [int(a.value) - 1 for a in once]
    assert told.raters == ("Dr A", "Dr B") and told.questions == ("quality", "agreement")


def test_chosen_raters_alone_are_read(tmp_path):
    export, _ = export_of(tmp_path / "export")
    assert read_ratings(export, raters=["Dr B"])[1].raters == ("Dr B",)
    with pytest.raises(UserError, match="nothing of Dr C"):
        read_ratings(export, raters=["Dr C"])


def test_preferences_are_between_images(tmp_path):
    export, answers = export_of(tmp_path / "export")
    other = "images/000003.png"
    pairs = [answer("Dr A", 1, "preference", v, other=other) for v in ("image", "other", "tie")]
    write_answers(export / "answers.csv", [*answers, *pairs])
    told = read_ratings(export)[1]
    assert told.win.tolist() == [1, 0, 0.5] and told.pair.tolist() == [[1, 3]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[: 19 * 6], "19 images"),
        (lambda a: [*a, answer("Dr A", 99, "quality", "3")], "000099.png"),
        (lambda a: [*a, answer("Dr A", 3, "quality", "6")], "quality is '6'"),
        (lambda a: [*a, answer("Dr A", 3, "preference", "left", other=a[0].image)], "'left'"),
    ],
)
def test_too_little_or_unknown_answers_are_refused(tmp_path, change, message):
    export, answers = export_of(tmp_path / "export", repeats=0)
    write_answers(export / "answers.csv", change(answers))
    with pytest.raises(UserError, match=message):
        read_ratings(export)


def test_a_folder_without_answers_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"answers\.csv is missing"):
        read_ratings(tmp_path)
