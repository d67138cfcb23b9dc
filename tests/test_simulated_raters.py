"""Simulated doctors: an opinion that can be checked, and errors as far apart as asked."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from test_evaluate import save_classifier

from demo import simulated_answers as answers
from demo import simulated_raters
from demo.simulated_answers import compare, draw_errors, find_noise, judge_image, to_ratings
from demo.simulated_truth import Opinion, Truth, strangeness
from utils.cli import UserError
from utils.finding_labeler import load_labeler
from utils.rating_shown import StudyImage
from utils.rating_store import IMAGES_DIR, Store

QUESTIONS = ("turing", "quality", "agreement", "diagnosis", "errors")
NONE = answers.Errors(dict.fromkeys(answers.SCALES, 0.0), np.zeros(2), np.zeros(2))


def opinion(agreement=4.6, quality=4.0, realness=4.0, odds=(3.0, -3.0), asked=("drusen",)):
    return Opinion(agreement, quality, realness, ("drusen", "normal"), np.array(odds), asked)


def kappa_of(points, errors, noise):
    """As scikit-learn computes it."""
    ratings = to_ratings(points, errors, noise)
    pairs = combinations(ratings, 2)
    return np.mean([cohen_kappa_score(*pair, weights="quadratic") for pair in pairs])


@pytest.mark.parametrize("kappa", [0.3, 0.6, 0.85])
def test_raters_agree_as_asked_by_scikit_learn(kappa):
    rng = np.random.default_rng(0)
    points = np.where(rng.random(200) < 0.5, 1.3, 4.7) + rng.normal(0, 0.3, 200)
    errors = rng.normal(size=(4, 200)) + 0.5 * rng.normal(size=(4, 1))
    noise = find_noise(points, errors, kappa=kappa)
    assert abs(kappa_of(points, errors, noise) - kappa) < 0.01


def test_images_that_do_not_differ_are_refused():
    with pytest.raises(UserError, match="much the same"):
        find_noise([3.9, 4.1] * 20, np.ones((2, 40)), kappa=0.6)


def test_agreement_is_the_oracles_certainty_of_what_the_text_asks():
    odds = np.array([[6.0, -6.0], [0.0, 0.0], [-3.0, 3.0]])
    truth = Truth(("drusen", "normal"), odds, np.array([0.0, 1.5, -9.0]), load_labeler("oct"))
    found = [truth.opinion(row, "Several drusen.", "normal") for row in range(3)]
    assert [one.agreement for one in found] == [5.0, 3.0, 2.0]
    assert [one.quality for one in found] == [4.0, 2.5, 5.0]
    assert [one.realness for one in found] == [4.0, 2.5, 13.0]
    assert truth.opinion(2, "Normal macula.", "drusen").agreement == 4.0
    assert truth.opinion(2, "left eye", "normal").asked == ("normal",)  # by the label
    with pytest.raises(UserError, match="neither the text 'left eye'"):
        truth.opinion(0, "left eye", "glaucoma")


def test_an_image_unlike_the_real_ones_is_strange():
    rng = np.random.default_rng(0)
    real = rng.normal(0, (1, 100), (60, 2))
    others = np.array([[0.0, 0.0], [30.0, 0.0]])
    features = np.concatenate([real, others])
    found = strangeness(features, [True] * 60 + [False] * 2)
    low, middle, high = np.percentile(found[:60], (25, 50, 75))
    np.testing.assert_allclose([middle, high - low], [0, 1], atol=1e-12)
    assert found[60] < 1 and found[61] > 10
    assert strangeness(features * [1, 1000], [True] * 60 + [False] * 2) == pytest.approx(found)
    with pytest.raises(UserError, match="9 real images"):
        strangeness(features, [True] * 9 + [False] * 53)


def test_without_errors_the_answers_are_the_opinion():
    said = judge_image(opinion(), NONE, 1.0)
    assert said == {
        "turing": "real",
        "quality": 4,
        "agreement": 5,
        "diagnosis": "drusen",
        "errors": [],
    }
    bad = opinion(agreement=1.4, quality=1.2, realness=-3.0, odds=(-3.0, 3.0))
    assert judge_image(bad, NONE, 1.0) == {
        "turing": "synthetic",
        "quality": 1,
        "agreement": 1,
        "diagnosis": "normal",
        "errors": ["omission", "commission", "artifact"],
    }
    assert judge_image(opinion(odds=(0.0, 0.0)), NONE, 1.0)["diagnosis"] == "drusen"
    unsure = replace(opinion(), diagnoses=("a", "b", "c"), odds=np.zeros(3))
    three = answers.Errors(NONE.scales, np.zeros(3), np.zeros(2))
    assert judge_image(unsure, three, 1.0)["diagnosis"] == "unsure"


def test_the_better_one_is_preferred():
    better, worse = opinion(agreement=4.6), opinion(agreement=3.6)
    assert compare(better, worse, NONE, 1.0) == "first"
    assert compare(worse, better, NONE, 1.0) == "second"
    assert compare(better, replace(better, quality=4.3), NONE, 1.0) == "tie"
    pulled = answers.Errors(NONE.scales, NONE.odds, np.array([-2.0, 0.0]))
    assert compare(better, worse, pulled, 1.0) == "second"


def test_errors_are_of_the_showing_and_leniency_of_the_rater():
    def drawn(rater, item, is_repeat=False):
        return draw_errors(seed=1, rater=rater, item=item, is_repeat=is_repeat, num_diagnoses=2)

    assert drawn(0, 3).scales == drawn(0, 3).scales
    assert drawn(0, 3).scales != drawn(0, 3, is_repeat=True).scales
    means = [np.mean([drawn(r, i).scales["quality"] for i in range(600)]) for r in range(4)]
    assert np.std(means) > 0.15  # of leniency 0.5; errors alone give 0.04


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle") / "classifier"
    return save_classifier(folder, labels=("drusen", "normal"))


def make_study(folder, *, questions=QUESTIONS, num_real=16):
    """Squares of all brightnesses in two arms, and four pairs."""
    rng = np.random.default_rng(0)
    (folder / IMAGES_DIR).mkdir(parents=True)
    images, texts = [], {"drusen": "Several drusen.", "normal": "Normal macula."}
    for n in range(32):
        arm, label = ("real", "gan")[n >= num_real], ("drusen", "normal")[n % 2]
        pixels = rng.normal(8 * n, 6, (32, 32)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / IMAGES_DIR / f"{n:x}.png")
        images.append(StudyImage(n, f"{n:x}.png", arm, label, texts[label], f"set/{n}.png"))
    items = [(n, None, images[n].text, questions) for n in range(32)]
    items += [(n, n + 2, images[n].text, ("preference",)) for n in range(0, 8, 2)]
    facts = {
        "title": "t",
        "diagnoses": ["drusen", "normal"],
        "repeat_share": 0.1,
        "seed": 3,
        "questions": [*questions, "preference"],
    }
    return Store.create(folder, facts=facts, images=images, items=items)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The classifier is of random weights: its odds are spread out, so that images differ."""
    from utils.classifier import Classifier

    def spread_out(self, images, **_):
        gray = np.array([np.asarray(image).mean() / 255 for image in images])
        chances = 1 / (1 + np.exp(-12 * (gray - 0.5)))
        return np.stack([1 - chances, chances], 1), gray[:, None]

    monkeypatch.setattr(Classifier, "predict_and_features", spread_out)
    with make_study(tmp_path / "study"):
        pass
    return tmp_path / "study"


def run(study, oracle, *flags):
    argv = ["--study_dir", str(study), "--classifier", str(oracle), "--device", "cpu"]
    argv += ["--num_raters", "2", *flags]
    assert simulated_raters.main(argv) == 0
    with Store.open(study) as store:
        return store.answers()


def said(rows):
    names = ("rater", "item", "is_repeat", "question", "value", "image", "other_image")
    return sorted(tuple(getattr(row, name) for name in names) for row in rows)


def test_every_item_is_answered_and_raters_agree_as_asked(study, oracle, capsys):
    with Store.open(study) as store:
        store.add_rater("Dr A")
    rows = run(study, oracle, "--num_raters", "3", "--kappa", "0.5")
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((study / "simulated_raters.json").read_text())
    assert {row.rater for row in rows} == {f"simulated {n}" for n in (1, 2, 3)}
    with Store.open(study) as store:
        for rater in store.raters():
            wanted = 0 if rater.name == "Dr A" else store.num_shown(rater)
            assert store.num_done(rater) == wanted
    table = {
        (row.rater, row.item): int(row.value)
        for row in rows
        if row.question == "agreement" and not row.is_repeat
    }
    given = [[table[f"simulated {n}", item] for item in range(32)] for n in (1, 2, 3)]
    pairs = combinations(given, 2)
    kappa = np.mean([cohen_kappa_score(*pair, weights="quadratic") for pair in pairs])
    assert abs(kappa - result["kappa"]["agreement"]) < 1e-9
    assert abs(kappa - 0.5) < 0.06  # 32 images: one rating more or less is a step


def test_answers_do_not_depend_on_order_and_sides_and_go_on(study, oracle, tmp_path, monkeypatch):
    with make_study(tmp_path / "again"):
        pass
    first = said(run(study, oracle))
    original, calls = Store.record, []

    def breaks(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Store, "record", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", oracle)
    monkeypatch.setattr(Store, "record", original)
    assert said(run(tmp_path / "again", oracle)) == first
    assert said(run(tmp_path / "again", oracle)) == first
    assert {row[4] for row in first if row[3] == "preference"} >= {"image", "other"}


def test_a_study_is_answered_with_one_setting(study, oracle):
    run(study, oracle)
    with pytest.raises(UserError, match=r"other settings .*seed"):
        run(study, oracle, "--seed", "1")


def test_a_study_without_ratings_is_refused(tmp_path, study, oracle):
    with make_study(tmp_path / "turing", questions=("turing",)):
        pass
    with pytest.raises(UserError, match="asks for neither agreement nor quality"):
        run(tmp_path / "turing", oracle)


@pytest.mark.parametrize("flags", [["--kappa", "1"], ["--kappa", "0"], ["--num_raters", "1"]])
def test_bad_flags_end_with_status_2(flags, tmp_path, capsys):
    where = ["--study_dir", str(tmp_path), "--classifier", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        simulated_raters.main([*where, *flags])
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_the_oracle_itself_is_asked(tmp_path, oracle):
    """No stand-in: the classifier's own probabilities and features."""
    from demo.simulated_study import SimulatedStudy
    from utils.classifier import Classifier
    from utils.reward_features import log_odds

    with make_study(tmp_path / "study") as store:
        classifier = Classifier.load(oracle)
        study = SimulatedStudy(store, classifier, load_labeler("oct"), seed=0)
        pictures = [Image.open(store.folder / IMAGES_DIR / i.file) for i in store.images()]
        chances, features = classifier.predict_and_features(pictures)
    np.testing.assert_array_equal(study.truth.odds, log_odds(chances))
    wanted = strangeness(features, [n < 16 for n in range(32)])
    np.testing.assert_array_equal(study.truth.strangeness, wanted)
