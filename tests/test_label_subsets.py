"""Nested, stratified parts of a set."""

import itertools
from collections import Counter

import pytest

from utils.dataset import Record
from utils.label_subsets import draw_stratified, labelled_subset

LABELS = ("a", "b", "rare")


def clinic(num_patients=100, *, images=2):
    """Patients with several images: the first tenth has the rare label beside its own."""
    rows = []
    for patient in range(num_patients):
        labels = (LABELS[patient % 2],) + (("rare",) if patient < num_patients // 10 else ())
        for image in range(images):
            name = f"{patient}-{image}.png"
            rows.append(Record(name, "", labels, str(patient), "train", {}, "m.csv:2", name))
    return rows


def patients(records, places):
    return {records[place].patient_id for place in places}


def test_a_smaller_share_is_part_of_every_larger_one():
    records = clinic()
    parts = [labelled_subset(records, LABELS, share=s, seed=3) for s in (1, 5, 10, 20, 50, 100)]
    for smaller, larger in itertools.pairwise(parts):
        assert set(smaller) < set(larger)
    assert parts[-1] == list(range(len(records)))


def test_whole_patients_are_taken_in_the_share_asked_for():
    records = clinic()
    places = labelled_subset(records, LABELS, share=20, seed=0)
    assert len(patients(records, places)) == 20
    assert len(places) == 40 and places == sorted(places)


def test_every_label_is_there_even_in_the_smallest_share():
    records = clinic()
    for seed in range(10):
        places = labelled_subset(records, LABELS, share=0.1, seed=seed)
        assert {label for place in places for label in records[place].labels} == set(LABELS)
        assert len(patients(records, places)) == 2  # one patient has two of the labels


def test_labels_keep_their_shares():
    records = clinic(400)
    places = labelled_subset(records, LABELS, share=25, seed=1)
    counts = Counter(label for place in places for label in records[place].labels)
    assert counts["rare"] == pytest.approx(20, abs=2)
    assert counts["a"] == pytest.approx(100, abs=4)


def test_another_seed_is_another_subset_and_the_order_of_the_table_is_none_of_its_business():
    records = clinic()
    first = patients(records, labelled_subset(records, LABELS, share=10, seed=0))
    assert first != patients(records, labelled_subset(records, LABELS, share=10, seed=1))
    turned = records[::-1]
    assert first == patients(turned, labelled_subset(turned, LABELS, share=10, seed=0))


def test_an_image_without_patient_is_one_of_its_own():
    records = [Record(f"{n}.png", "", ("a",), None, None, {}, "", "") for n in range(50)]
    assert len(labelled_subset(records, ("a",), share=10, seed=0)) == 5


def test_draws_of_one_seed_are_nested():
    records = clinic()
    few, more = (draw_stratified(records, count, seed=2) for count in (20, 60))
    assert set(few) < set(more) and len(more) == 60
