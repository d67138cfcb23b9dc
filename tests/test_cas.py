"""CAS: what a classifier learns from synthetic images, seen on simulated scans."""

from collections import Counter
from dataclasses import replace

import pytest

from demo.simulate import simulate
from utils.cas import common_labels, score_cas
from utils.dataset import load_dataset
from utils.label_subsets import draw_stratified
from utils.patient_overlap import without_patients_of

FINDINGS = ("macular edema", "normal", "pigment epithelial detachment")
OPTIONS = {"resolution": 32, "resize_mode": "center_crop", "num_steps": 150}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """300 scans of 32 pixels, two a patient, with three findings in turn."""
    folder = tmp_path_factory.mktemp("clinic")
    options = {"seed": 1, "resolution": 32, "findings": FINDINGS, "looks": ["spectral"]}
    lines = ["file_name,label,patient_id"]
    for index in range(300):
        scan = simulate(index, **options)
        scan.image.save(folder / f"{index}.png")
        lines.append(f"{index}.png,{scan.label},{scan.truth['patient_id']}")
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return list(load_dataset(folder, check_pixels=False))


@pytest.fixture(scope="module")
def scored(clinic):
    """Real scans of other patients in the synthetic images' place."""
    return score_cas(clinic[:90], clinic[90:180], FINDINGS, train=clinic[180:], **OPTIONS)


def swapped(records):
    """Each label replaced by the next."""
    following = dict(zip(FINDINGS, (*FINDINGS[1:], FINDINGS[0])))
    return [replace(record, labels=(following[record.labels[0]],)) for record in records]


def labelled(records, labels):
    return [replace(record, labels=own) for record, own in zip(records, labels)]


def test_right_labels_teach_and_swapped_ones_mislead(clinic, scored):
    overall, per_label = scored
    assert overall["value"] > 0.8
    assert overall["ci95"][0] > 1 / 3
    assert overall["real"] > 0.8
    assert per_label["normal"]["value"] > 0.6
    wrong, _ = score_cas(clinic[:90], swapped(clinic[90:180]), FINDINGS, **OPTIONS)
    assert wrong["value"] < 0.2
    assert wrong["ci95"][1] < 1 / 3
    assert "real" not in wrong
    assert "no real training images were given" in wrong["notes"][0]


def test_the_real_value_has_as_many_training_images(scored):
    overall, per_label = scored
    assert (overall["n_real"], overall["n_synthetic"], overall["real_n"]) == (90, 90, 90)
    assert overall["measure"] == "accuracy"
    assert 0 <= overall["balanced_accuracy"] <= 1
    assert overall["auroc"] > 0.8
    assert overall["real_auroc"] > 0.8
    assert list(per_label) == list(FINDINGS)
    counts = [(entry["n_real"], entry["n_synthetic"]) for entry in per_label.values()]
    assert counts == [(30, 30)] * 3
    shares = [entry["value"] for entry in per_label.values()]
    assert overall["value"] == pytest.approx(sum(shares) / 3)  # equal classes


def test_same_seed_same_entry(clinic):
    def scored(**changes):
        options = {**OPTIONS, "num_steps": 3, **changes}
        return score_cas(clinic[:60], clinic[60:120], FINDINGS, **options)

    assert scored(seed=5) == scored(seed=5, num_workers=2)
    assert scored(seed=5)[0]["auroc"] != scored(seed=6)[0]["auroc"]


def test_labels_of_one_side_are_left_out_by_name(clinic):
    real = labelled(clinic[:60], [("glaucoma",), *[r.labels for r in clinic[1:60]]])
    synthetic = labelled(clinic[60:120], [("drusen",), *[r.labels for r in clinic[61:120]]])
    assert common_labels(real, synthetic)[0] == FINDINGS
    overall, per_label = score_cas(
        real, synthetic, [*FINDINGS, "drusen", "glaucoma"], **OPTIONS | {"num_steps": 3}
    )
    assert overall["notes"][:2] == [
        "left out, only the real set has them: glaucoma",
        "left out, only the synthetic set has them: drusen",
    ]
    assert (overall["n_real"], overall["n_synthetic"]) == (59, 59)
    assert list(per_label) == list(FINDINGS)


def test_what_cannot_be_trained_has_no_value_and_a_reason(clinic):
    normal = [record for record in clinic if record.labels == ("normal",)]
    entry, per_label = score_cas(clinic[:60], normal[:20], FINDINGS, **OPTIONS)
    assert entry["value"] is None
    assert "1 label(s) in common: 2 are needed" in entry["notes"][0]
    assert per_label == {}
    edema = [record for record in clinic if record.labels == ("macular edema",)]
    entry, _ = score_cas(clinic[:60], [*normal[:20], *edema[:3]], FINDINGS, **OPTIONS)
    assert entry["value"] is None
    assert "fewer than 4 synthetic images to train on: macular edema (3)" in entry["notes"][0]
    one_patient = [replace(record, patient_id="same") for record in clinic[60:120]]
    entry, _ = score_cas(clinic[:60], one_patient, FINDINGS, **OPTIONS)
    assert entry["value"] is None
    assert "patients are too few" in entry["notes"][0]


def test_training_patients_of_the_real_set_are_left_out(clinic):
    options = OPTIONS | {"num_steps": 3}
    entry, _ = score_cas(
        clinic[:60], clinic[60:120], FINDINGS, train=[*clinic[:60], *clinic[120:150]], **options
    )
    assert entry["real_n"] == 30
    assert entry["notes"][0].startswith("60 training images left out")
    assert "the real value is of 30 training images, the synthetic of 60" in entry["notes"][1]
    entry, _ = score_cas(clinic[:60], clinic[60:120], FINDINGS, train=clinic[:60], **options)
    assert "real" not in entry
    assert "no real value: in the real training images, fewer than 4" in entry["notes"][1]


def test_several_labels_of_an_image_are_scored_by_auroc(clinic):
    both = [("normal", "seen") if i % 2 else r.labels for i, r in enumerate(clinic[:180])]
    records = labelled(clinic[:180], [own if own != ("normal",) else ("seen",) for own in both])
    labels = ["macular edema", "normal", "pigment epithelial detachment", "seen"]
    overall, per_label = score_cas(records[:90], records[90:], labels, **OPTIONS)
    assert overall["measure"] == "auroc"
    assert 0 < overall["value"] < 1
    assert "auroc" not in overall
    assert per_label["seen"]["measure"] == "sensitivity"


def test_a_stratified_draw_keeps_the_shares(clinic):
    uneven = [r for i, r in enumerate(clinic) if r.labels != ("normal",) or i % 4 == 0]
    every = Counter(record.labels for record in uneven)
    drawn = draw_stratified(uneven, 60, seed=0)
    assert len(set(drawn)) == 60 and drawn == sorted(drawn)
    for label, count in Counter(uneven[place].labels for place in drawn).items():
        assert count == pytest.approx(60 * every[label] / len(uneven), abs=1)
    assert draw_stratified(uneven, 60, seed=0) == drawn != draw_stratified(uneven, 60, seed=1)
    assert set(draw_stratified(uneven, 30, seed=0)) < set(drawn)
    assert draw_stratified(uneven, 1000, seed=0) == list(range(len(uneven)))


def test_of_several_sets_the_real_value_is_trained_once(clinic):
    references = {}
    options = {"train": clinic[180:], "references": references, **OPTIONS | {"num_steps": 5}}
    first, _ = score_cas(clinic[:30], clinic[90:120], FINDINGS, **options)
    kept = dict(references)
    assert len(kept) == 1
    second, _ = score_cas(clinic[:30], clinic[120:150], FINDINGS, **options)
    assert second["real"] == first["real"]
    assert references == kept


def test_images_that_are_judged_are_not_trained_on_even_without_patients(clinic):
    bare = [replace(record, patient_id=None) for record in clinic[:40]]
    kept, notes = without_patients_of(bare[:30], bare[20:])
    assert kept == bare[30:]
    assert notes[0].startswith("10 training images left out: they or their patients")
