"""Retrieval: ranks and chance by hand, scores of embeddings whose answer is known."""

from itertools import combinations

import numpy as np
import pytest

from utils import retrieval
from utils.image_text import Embedded
from utils.retrieval import (
    chance_median_rank,
    chance_recall,
    first_relevant_ranks,
    median_rank,
    median_rank_interval,
)
from utils.retrieval_scores import absent_scores, choose_relevance, score_retrieval

LABELS = ("cnv", "dme", "normal")


def unit(vectors):
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def on_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def ranks_of(queries, gallery, query_groups, gallery_groups):
    return first_relevant_ranks(
        queries, gallery, query_groups=query_groups, gallery_groups=gallery_groups
    )


def test_rank_is_the_place_of_the_nearest_relevant_item():
    gallery = on_circle(10, 20, 40, 80)
    found = ranks_of(on_circle(0, 90), gallery, [["b"], ["a"]], [["a"], ["b"], ["b"], ["c"]])
    assert found.ranks.tolist() == [2, 4]
    assert found.num_relevant.tolist() == [2, 1]


def test_one_common_label_of_several_is_enough():
    found = ranks_of(on_circle(0), on_circle(10, 20), [("x", "y")], [("z",), ("y", "z")])
    assert found.ranks.tolist() == [2]
    assert found.num_relevant.tolist() == [1]


def test_ties_stand_before_the_relevant_item():
    same = np.repeat(on_circle(30), 6, axis=0)
    found = ranks_of(on_circle(0), same, ["a"], [*"bbaabb"])
    assert found.ranks.tolist() == [5]


def test_a_query_without_relevant_item_never_succeeds():
    found = ranks_of(on_circle(0, 0), on_circle(1, 2), [["a"], []], [["b"], []])
    assert found.ranks.tolist() == [3, 3]
    assert found.num_relevant.tolist() == [0, 0]


def test_an_empty_gallery_answers_nothing():
    found = ranks_of(on_circle(0), np.empty((0, 2), np.float32), [["a"]], [])
    assert found.ranks.tolist() == [1]
    assert found.num_relevant.tolist() == [0]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    queries, gallery = unit(rng.normal(size=(37, 8))), unit(rng.normal(size=(23, 8)))
    groups = [[int(k)] for k in rng.integers(0, 4, 37)], [[int(k)] for k in rng.integers(0, 4, 23)]
    whole = ranks_of(queries, gallery, *groups)
    similar = queries.astype(np.float64) @ gallery.T
    for i, row in enumerate(similar):
        right = np.array([own == groups[0][i] for own in groups[1]])
        assert whole.ranks[i] == 1 + (row[~right] >= row[right].max()).sum()
    monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", 60)  # two queries a block
    assert ranks_of(queries, gallery, *groups).ranks.tolist() == whole.ranks.tolist()


def test_broken_input_is_refused():
    with pytest.raises(ValueError, match="do not belong together"):
        ranks_of(on_circle(0), on_circle(1), [["a"], ["b"]], [["a"]])
    with pytest.raises(ValueError, match="NaN"):
        ranks_of(on_circle(np.nan), on_circle(1), [["a"]], [["a"]])


def test_chance_is_that_of_every_order():
    for size, relevant, k in ((5, 2, 1), (5, 3, 2), (6, 3, 2), (6, 1, 6), (4, 3, 2), (3, 1, 10)):
        places = list(combinations(range(size), relevant))
        share = np.mean([min(own) < k for own in places])
        chance = chance_recall(k, gallery_size=size, num_relevant=np.array([relevant]))
        assert chance == pytest.approx([share], abs=1e-12)
        firsts = sorted(1 + min(own) for own in places)
        median = chance_median_rank(gallery_size=size, num_relevant=np.array([relevant]))
        assert median == median_rank(np.array(firsts))


def test_chance_of_a_large_gallery_stays_exact():
    chance = chance_recall(10, gallery_size=50_000, num_relevant=np.array([1, 50_000]))
    assert chance == pytest.approx([10 / 50_000, 1], rel=1e-6)


def test_chance_median_mixes_the_queries():
    """One query finds at once, two find one of ten: half of all have succeeded by rank 3."""
    relevant = np.array([10, 1, 1])
    assert chance_median_rank(gallery_size=10, num_relevant=relevant) == 3  # (1 + .3 + .3) / 3


def test_median_rank_is_one_that_was_reached():
    assert median_rank(np.array([9, 1, 2, 4])) == 2
    assert median_rank(np.array([7])) == 7


def test_interval_of_the_median_draws_whole_groups():
    ranks = np.r_[np.ones(60, int), np.full(60, 9)]
    alone = median_rank_interval(ranks, groups=[*range(120)])
    assert alone[0] == 1
    assert alone[1] == 9
    shifted = median_rank_interval(np.full(20, 4), groups=[*range(20)])
    assert shifted == (4, 4)
    assert median_rank_interval(ranks, groups=["a"] * 60 + ["b"] * 60) is None
    # A rank of 2 in five of six patients: seen singly it is sure, by patient it is not.
    uneven, owner = np.r_[np.full(50, 2), np.full(40, 9)], np.r_[np.arange(50) // 10, [5] * 40]
    assert median_rank_interval(uneven, groups=[*owner])[1] == 9


def embedded(labels, vectors, *, texts=None, prefix="p"):
    """A set whose texts are its labels' names unless others are given."""
    texts = texts or [f"a scan of {label}" for label in labels]
    distinct = sorted(set(texts))
    of_label = dict(zip(LABELS, np.eye(len(vectors[0]), dtype=np.float32)))
    named = {text: of_label[label] for text, label in zip(texts, labels)}
    return Embedded(
        images=unit(vectors),
        texts=tuple(texts),
        labels=tuple((label,) for label in labels),
        units=tuple(f"{prefix}{i}" for i in range(len(labels))),
        text_vectors={text: named[text] for text in distinct},
    )


def noisy_set(count, seed, *, spread=0.1):
    """Images near the axis of their label."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    vectors = np.eye(8)[kinds] + spread * rng.normal(size=(count, 8))
    return embedded([LABELS[k] for k in kinds], vectors, prefix=f"{seed} ")


def shuffled(side, seed):
    order = np.random.default_rng(seed).permutation(len(side))
    return embedded(
        [side.labels[i][0] for i in order], side.images, texts=[side.texts[i] for i in order]
    )


def test_images_of_their_label_are_found_and_shuffled_ones_are_at_chance():
    real, good = noisy_set(120, 0), noisy_set(240, 1)
    overall, _ = score_retrieval(real, good, LABELS)
    shuffles, _ = score_retrieval(real, shuffled(good, 0), LABELS)
    for direction in ("image_to_image", "image_to_text"):
        name = f"retrieval_{direction}_recall_at_1"
        assert overall[name]["value"] > 0.98
        assert shuffles[name]["real"] > 0.98
        low, high = shuffles[name]["ci95"]
        assert low < shuffles[name]["chance"] < high
    assert overall["retrieval_text_to_image_recall_at_1"]["value"] == 1
    assert shuffles["retrieval_image_to_text_recall_at_1"]["chance"] == pytest.approx(1 / 3)


def test_one_image_repeated_finds_one_label_only():
    real = noisy_set(120, 0)
    collapsed = embedded(LABELS * 40, np.repeat([np.eye(8)[0]], 120, axis=0))
    overall, per_label = score_retrieval(real, collapsed, LABELS)
    assert overall["retrieval_image_to_image_recall_at_1"]["value"] == pytest.approx(1 / 3)
    assert overall["retrieval_text_to_image_recall_at_10"]["value"] == 0  # all of them tie
    name = "retrieval_image_to_image_recall_at_1"
    assert [per_label[label][name]["value"] for label in LABELS] == [1, 0, 0]
    assert per_label["dme"][name]["n_synthetic"] == 40


def test_the_entry_says_what_it_is_over():
    overall, _ = score_retrieval(noisy_set(120, 0), noisy_set(60, 1), LABELS)
    assert set(overall) == set(absent_scores("", n_real=1, n_synthetic=1))
    sizes = {
        name: (entry["num_queries"], entry["gallery_size"])
        for name, entry in overall.items()
        if name.endswith("_at_5")
    }
    assert sizes == {
        "retrieval_image_to_image_recall_at_5": (60, 60),  # half of the real images is asked
        "retrieval_image_to_text_recall_at_5": (60, 3),
        "retrieval_text_to_image_recall_at_5": (3, 60),  # of 120 real images, as many
    }
    entry = overall["retrieval_image_to_image_median_rank"]
    assert entry["direction"] == "lower"
    assert (entry["n_real"], entry["n_synthetic"]) == (120, 60)
    assert entry["value"] == 1 == entry["real"]
    assert entry["chance"] == 2
    assert entry["relevance"] == "label"


def test_both_sides_have_the_same_texts_and_as_many_images():
    """240 synthetic images of prompts that no real image has."""
    real, drawn = noisy_set(60, 0), noisy_set(240, 1)
    prompts = tuple(f"draw {label[0]}" for label in drawn.labels)
    vectors = {f"draw {label}": drawn.text_vectors[f"a scan of {label}"] for label in LABELS}
    synthetic = Embedded(drawn.images, prompts, drawn.labels, drawn.units, vectors)
    overall, _ = score_retrieval(real, synthetic, [])
    entry = overall["retrieval_image_to_text_recall_at_1"]
    assert (entry["num_queries"], entry["gallery_size"]) == (240, 6)
    assert entry["value"] == entry["real"] == 1
    assert [entry["chance"], entry["real_chance"]] == pytest.approx([2 / 6] * 2)
    entry = overall["retrieval_text_to_image_recall_at_1"]
    assert (entry["num_queries"], entry["gallery_size"]) == (6, 60)
    by_text, _ = score_retrieval(real, synthetic, [], relevance="text")
    assert by_text["retrieval_text_to_image_recall_at_1"]["num_queries"] == 3
    assert "notes" not in by_text["retrieval_text_to_image_recall_at_1"]


def test_relevance_by_text_wants_the_own_prompt():
    """Right label, wrong prompt: by label all is well, by text nothing is found first."""
    labels = LABELS * 20
    texts = [f"{label} of size {i // 3}" for i, label in enumerate(labels)]
    vectors = np.concatenate([np.eye(8)[[i % 3 for i in range(60)]], np.eye(60)], axis=1)
    real = Embedded(
        images=unit(vectors),
        texts=tuple(texts),
        labels=tuple((label,) for label in labels),
        units=tuple(map(str, range(60))),
        text_vectors=dict(zip(texts, unit(vectors))),
    )
    within = np.arange(60) // 3 * 3  # the next of the same label
    moved = unit(vectors[(within + 3) % 60 + np.arange(60) % 3])
    synthetic = Embedded(moved, real.texts, real.labels, real.units, real.text_vectors)
    name = "retrieval_image_to_text_recall_at_1"
    by_label, _ = score_retrieval(real, synthetic, [], relevance="label")
    by_text, _ = score_retrieval(real, synthetic, [], relevance="text")
    assert by_label[name]["value"] == 1
    assert by_text[name]["value"] == 0
    assert by_text[name]["real"] == 1
    assert by_text[name]["chance"] == pytest.approx(1 / 60)
    assert by_text["retrieval_text_to_image_recall_at_1"]["real"] == 1


def test_what_nothing_is_relevant_to_is_left_out_and_said():
    real = noisy_set(60, 0)
    other = Embedded(
        real.images, ("",) * 60, (("retinoblastoma",),) * 30 + real.labels[30:], real.units, {}
    )
    overall, per_label = score_retrieval(real, other, ["retinoblastoma", "dme"])
    entry = overall["retrieval_image_to_image_recall_at_1"]
    assert entry["num_queries"] == 30
    assert entry["notes"] == [
        "30 of 60 synthetic queries left out: nothing in the gallery has their label"
    ]
    absent = per_label["retinoblastoma"]["retrieval_image_to_image_recall_at_1"]
    assert absent["value"] is None
    assert "no query with a relevant item by label" in absent["notes"]
    assert "ci95" not in absent


def test_images_without_labels_or_texts_have_no_value():
    real = noisy_set(12, 0)
    bare = Embedded(real.images, ("",) * 12, ((),) * 12, real.units, {})
    assert choose_relevance(real, bare) == "text"
    overall, _ = score_retrieval(bare, bare, [])
    assert {entry["value"] for entry in overall.values()} == {None}


def test_one_image_each_gives_no_interval():
    one = noisy_set(1, 0)
    overall, _ = score_retrieval(one, one, [])
    assert overall["retrieval_image_to_text_recall_at_1"]["value"] == 1
    assert "ci95" not in overall["retrieval_image_to_text_recall_at_1"]


def test_unknown_relevance_is_refused():
    with pytest.raises(ValueError, match="relevance 'patient'"):
        score_retrieval(noisy_set(6, 0), noisy_set(6, 1), [], relevance="patient")
