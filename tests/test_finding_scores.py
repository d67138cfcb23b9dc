"""Findings of reports: rightly named, missed, invented; their side, size and number."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from utils.finding_scores import (
    ATTRIBUTE_METRICS,
    FINDING_METRICS,
    NOT_IN_REFERENCE,
    NOT_NAMED,
    NOT_TOLD,
    NOT_WRITTEN,
    count_findings,
    finding_scores,
    named_findings,
    why_undefined,
)

NAMES = ("edema", "drusen", "fluid", "membrane")


@dataclass
class Mention:
    finding: str
    status: str
    attributes: dict = field(default_factory=dict)


class NoteLabeler:
    """Reads notes such as ``edema present side=left; drusen absent``."""

    names = NAMES

    def mentions(self, text):
        parts = [part.split() for part in text.split(";") if part]
        return [Mention(n, s, dict(a.split("=") for a in rest)) for n, s, *rest in parts]

    def findings(self, text):
        order = ("absent", "uncertain", "present")
        found = sorted(self.mentions(text), key=lambda one: order.index(one.status))
        return {one.finding: one.status for one in found}


def counted(references, written):
    labeler = NoteLabeler()
    sides = {"references": references, "written": written}
    return count_findings(
        NAMES,
        **{side: [named_findings(labeler, t) for t in texts] for side, texts in sides.items()},
    )


def scores_of(counts):
    return finding_scores(counts.outcomes.sum(axis=0)[None])


def test_present_and_uncertain_findings_are_named_absent_ones_are_not():
    named = named_findings(
        NoteLabeler(), "edema present;drusen uncertain;fluid absent;membrane absent;edema absent"
    )
    assert set(named) == {"edema", "drusen"}


def test_attributes_of_all_places_count_and_those_of_what_is_absent_do_not():
    text = "drusen present side=left count=2;drusen uncertain side=right;drusen absent side=central"
    assert named_findings(NoteLabeler(), text) == {
        "drusen": {"side": {"left", "right"}, "count": {"2"}}
    }


def test_both_sides_are_the_left_and_the_right():
    twice = "drusen present side=left;drusen present side=right"
    counts = counted(["drusen present side=both", twice], [twice, "drusen present side=left"])
    assert counts.attributes[:, 0, 0].tolist() == [1, 0]


def test_scores_of_a_worked_example():
    counts = counted(
        ["edema present;drusen present", "edema present", "edema uncertain", ""],
        ["edema present", "drusen present", "edema present", "fluid present"],
    )
    found = scores_of(counts)
    # edema: 2 right, 1 missed; drusen: 1 invented, 1 missed; fluid: 1 invented; membrane: none
    np.testing.assert_allclose(found["all"], [[2 / 4, 2 / 4, 2 / 4]])
    expected = [[1, 2 / 3, 0.8], [0, 0, 0], [0, math.nan, 0], [math.nan] * 3]
    np.testing.assert_allclose(found["each"][0], expected)
    np.testing.assert_allclose(found["macro"], [[1 / 3, 1 / 3, 0.8 / 3]])


def test_scores_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="no scikit-learn")
    rng = np.random.default_rng(0)
    truth, claim = rng.random((2, 60, len(NAMES))) < 0.4

    def texts(table):
        return [";".join(f"{n} present" for n, named in zip(NAMES, row) if named) for row in table]

    found = scores_of(counted(texts(truth), texts(claim)))
    for target, average in (("all", "micro"), ("macro", "macro"), ("each", None)):
        expected = metrics.precision_recall_fscore_support(truth, claim, average=average)[:3]
        np.testing.assert_allclose(found[target][0], np.array(expected).T, atol=1e-12)


def test_an_invented_finding_lowers_the_macro_f1():
    honest = counted(["edema present", ""], ["edema present", ""])
    inventive = counted(["edema present", ""], ["edema present", "fluid present"])
    assert scores_of(honest)["macro"][0, 2] == 1
    assert scores_of(inventive)["macro"][0, 2] == 0.5


@pytest.mark.parametrize(
    ("reference", "written", "expected"),
    [
        ("side=left", "side=left", {"attribute_side": 1}),
        ("side=left", "side=right", {"attribute_side": 0}),
        ("side=left", "", {"attribute_side": 0}),
        ("", "side=left", {}),
        ("count=3", "count=3", {"attribute_count": 1}),
        ("size_um=300", "size_um=300", {"attribute_size_um": 1, "attribute_size_um_near": 1}),
        ("size_um=300", "size_um=360", {"attribute_size_um": 0, "attribute_size_um_near": 1}),
        ("size_um=300", "size_um=361", {"attribute_size_um": 0, "attribute_size_um_near": 0}),
        ("size_um=300", "", {"attribute_size_um": 0, "attribute_size_um_near": 0}),
    ],
)
def test_attributes_of_a_finding_named_in_both(reference, written, expected):
    counts = counted([f"drusen present {reference}"], [f"drusen present {written}"])
    right, asked = counts.attributes[0]
    assert dict(zip(ATTRIBUTE_METRICS, asked)) == {m: m in expected for m in ATTRIBUTE_METRICS}
    assert {m: right[ATTRIBUTE_METRICS.index(m)] for m in expected} == expected


def test_attributes_are_compared_of_the_same_finding_only():
    counts = counted(["drusen present side=left"], ["edema present side=left"])
    assert not counts.attributes.any()


def test_what_is_undefined_says_why():
    precision, recall, f1 = FINDING_METRICS
    reasons = why_undefined(counted(["edema present"], ["fluid present"]), NAMES)
    assert reasons["edema", precision] == NOT_WRITTEN
    assert reasons["fluid", recall] == NOT_IN_REFERENCE
    assert reasons["drusen", f1] == NOT_NAMED
    assert reasons["macro", f1].endswith(": drusen, membrane")
    assert reasons["all", "attribute_side"] == NOT_TOLD
    assert ("edema", recall) not in reasons and ("all", f1) not in reasons
    assert why_undefined(counted(["edema present"], [""]), NAMES)["all", precision] == NOT_WRITTEN
