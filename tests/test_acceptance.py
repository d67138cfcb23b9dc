import tracemalloc
from collections import Counter

import pytest

from utils.acceptance import MIN_ATTEMPTS, Acceptance, describe_low
from utils.metrics import wilson_interval


def row(index, attempt=0, status="accepted", label="drusen", reason="", score="0.9"):
    if status != "accepted":
        reason = reason or "class"
    return {
        "index": str(index),
        "attempt": str(attempt),
        "status": status,
        "label": label,
        "reason": reason,
        "score": score,
    }


def image(index, refused, label="drusen", *, failed=False):
    """The rows of one image: so many refused attempts, then one that passes, or none."""
    rows = [row(index, attempt, "rejected", label) for attempt in range(refused)]
    if failed:
        return [*rows[:-1], rows[-1] | {"status": "failed"}]
    return [*rows, row(index, refused, label=label)]


def test_counts_of_a_small_manifest():
    rows = [
        *image(0, 0),
        *image(1, 2),
        *image(2, 3, failed=True),
        *image(3, 1, label="scar"),
        row(4, 0, "rejected"),  # of a run that is not over
    ]
    found = Acceptance.count(rows)
    drusen = found.per_label["drusen"]
    assert (drusen.asked, drusen.accepted, drusen.failed, drusen.attempts) == (4, 2, 1, 8)
    assert drusen.rate == 2 / 8
    assert drusen.interval == wilson_interval(2, 8)
    assert list(found.per_label) == ["drusen", "scar"]
    whole = found.overall
    assert (whole.asked, whole.accepted, whole.failed, whole.attempts) == (5, 3, 1, 10)


def test_the_order_of_the_rows_does_not_matter():
    rows = [*image(0, 2), *image(1, 3, failed=True), *image(2, 1, label="scar")]
    assert Acceptance.count(rows).as_dict() == Acceptance.count(reversed(rows)).as_dict()


def test_several_reasons_of_one_attempt_count_in_each():
    rows = [
        row(0, 0, "rejected", reason="class;duplicate"),
        row(0, 1, "failed", reason="class"),
    ]
    assert Acceptance.count(rows).overall.reasons == Counter({"class": 2, "duplicate": 1})


def test_labels_of_one_image_count_as_their_combination():
    found = Acceptance.count([row(0, label="edema;cyst"), row(1, label="edema"), row(2, label="")])
    assert list(found.per_label) == ["(none)", "edema", "edema;cyst"]


def test_the_mean_score_is_of_accepted_images_that_have_one():
    rows = [row(0, score="0.5"), row(1, score="1.0"), row(2, score="")]
    rows.append(row(3, 0, "rejected", score="0.1"))
    found = Acceptance.count(rows)
    assert found.overall.mean_score == 0.75
    assert Acceptance.count([row(0, score="")]).overall.mean_score is None
    assert found.scores["accepted"][10] == 1
    assert found.scores["accepted"][-1] == 1  # a score of 1 is in the last bin
    assert found.scores["refused"][2] == 1


def test_a_label_is_low_under_five_percent_of_enough_attempts():
    few = [*image(0, MIN_ATTEMPTS - 1, "few", failed=True)]
    none = [*image(1, MIN_ATTEMPTS, "none", failed=True)]
    at_limit = [*image(2, MIN_ATTEMPTS - 1, "at the limit")]
    under = [*image(3, MIN_ATTEMPTS, "under")]
    found = Acceptance.count([*few, *none, *at_limit, *under])
    assert found.low() == ["none", "under"]
    assert found.missing() == ["few", "none"]
    sentences = describe_low(found)
    assert [sentence.split(":")[0] for sentence in sentences] == ["none", "under", "few"]
    assert "only 1 of 21 attempts were accepted, 4.8 % (95 % interval" in sentences[1]


def test_nothing_was_drawn_yet():
    found = Acceptance.count([]).as_dict()
    assert found["per_label"] == {}
    assert found["overall"]["rate"] is None
    assert found["overall"]["ci95"] is None


def test_a_status_that_no_manifest_has_is_an_error():
    with pytest.raises(AssertionError, match="open"):
        Acceptance.count([row(0, 0, "open")])


def test_memory_does_not_grow_with_the_manifest():
    peaks = []
    for num_images in (1_000, 20_000):
        tracemalloc.start()
        Acceptance.count(row(index) for index in range(num_images))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 4096
