from dataclasses import replace

import numpy as np
import pytest
from improvement_toys import save_classifier, write_clinic

from utils.classifier import Classifier
from utils.cli import UserError
from utils.dataset import load_dataset
from utils.diagnosis_network import DiagnosisNetwork
from utils.features import load_extractor
from utils.metrics import frechet_distance
from utils.round_scores import Judge, compare, judge_round
from utils.scores import score_agreement


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    folder, labels = write_clinic(tmp_path_factory.mktemp("data") / "clinic")
    return load_dataset(folder), labels


@pytest.fixture(scope="module")
def judge(clinic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    path = save_classifier(folder / "classifier", clinic[1], seed=1)
    return Judge(
        extractor=load_extractor(f"classifier:{path}"),
        diagnoses=DiagnosisNetwork(Classifier.load(path)),
        rewards={"reward": lambda data: np.array([float(len(r.text)) for r in data])},
        resolution=64,
        resize_mode="center_crop",
        cache_dir=folder / "cache",
        batch_size=8,
        seed=0,
    )


@pytest.fixture(scope="module")
def parts(clinic):
    """Real scans to be measured against, and two sets to measure."""
    data, _ = clinic
    return data.select(range(14)), data.select(range(14, 27)), data.select(range(27, 40))


@pytest.fixture(scope="module")
def judged(judge, parts):
    real, *others = parts
    real = judge.look_at("real", real)
    return real, [judge_round(judge, real, other) for other in others]


def test_scores_are_those_of_evaluate(judge, judged, parts):
    real, (outcome, _) = judged
    drawn = judge.look_at("synthetic", parts[1])
    pools = {"real": real.features.pool, "synthetic": drawn.features.pool}
    assert outcome.scores["fid"] == frechet_distance(**pools)
    classifier = judge.diagnoses.classifier
    entry, _ = score_agreement(real, drawn, classifier, labels=parts[1].labels)
    assert outcome.scores["agreement"] == entry["value"]
    assert outcome.per_image["agreement"].mean() == pytest.approx(entry["value"])
    assert outcome.scores["reward"] == np.mean([len(record.text) for record in parts[1]])
    assert outcome.scores["recall"] == outcome.per_real["recall"].mean()


def test_a_model_does_not_differ_from_itself(judged):
    real, (outcome, _) = judged
    for found in compare(outcome, outcome, real, seed=0).values():
        assert found["difference"] == 0
        assert found["ci95"] is None or found["ci95"] == pytest.approx((0, 0), abs=1e-9)
        assert found["better"] is None


def same_plan(outcome, like):
    return replace(outcome, names=like.names, prompts=like.prompts)


def test_differences_are_taken_image_by_image(judged):
    real, (first, _) = judged
    rng = np.random.default_rng(0)
    better = first.per_image["reward"] + 2 + rng.normal(0, 0.1, len(first.names))
    other = replace(
        first,
        per_image=first.per_image | {"reward": better},
        scores=first.scores | {"reward": float(better.mean())},
    )
    found = compare(first, other, real, seed=0)["reward"]
    low, high = found["ci95"]
    # The rewards of single images differ by tens, their changes by tenths.
    assert np.ptp(first.per_image["reward"]) > 10
    assert 1.8 < low < found["difference"] < high < 2.2
    assert found["better"]


def test_a_distance_is_better_when_it_falls(judged):
    real, (first, other) = judged
    moved = replace(same_plan(other, first), scores=other.scores | {"fid": 0.0})
    found = compare(first, moved, real, seed=0)["fid"]
    assert found["difference"] == -first.scores["fid"]
    assert found["better"] is (True if found["ci95"][1] < 0 else None)


def test_what_is_shown_to_be_worse_is_told_as_such(judged):
    real, (first, _) = judged
    values = first.per_image["reward"] - 3
    scores = first.scores | {"reward": float(values.mean())}
    other = replace(first, per_image=first.per_image | {"reward": values}, scores=scores)
    assert compare(first, other, real, seed=0)["reward"]["better"] is False


def test_images_that_only_one_round_has_are_left_out_of_the_differences(judged):
    real, (first, _) = judged
    fewer = replace(
        first,
        names=first.names[3:],
        prompts=first.prompts[3:],
        per_image={name: values[3:] for name, values in first.per_image.items()},
        features=first.features[3:],
    )
    found = compare(first, fewer, real, seed=0)
    assert found["reward"]["ci95"] == pytest.approx((0, 0))
    assert found["fid"]["ci95"] == pytest.approx((0, 0), abs=1e-6)


def test_ms_ssim_has_no_better_side(judged):
    real, (first, other) = judged
    found = compare(first, same_plan(other, first), real, seed=0)["ms_ssim"]
    assert found["ci95"] is None
    assert found["better"] is None


def test_too_few_images_are_told_with_the_way_out(judge, parts):
    real = judge.look_at("real", parts[0])
    with pytest.raises(UserError, match=r"5 drawn images: more than 5 of each .*--num_eval_images"):
        judge_round(judge, real, parts[1].select(range(5)))
