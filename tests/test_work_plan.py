"""Rounds from recorded attempts: what is open, what repeats, whoever drew it."""

import numpy as np
import pytest

from utils.manifest import ROW
from utils.perceptual_hash import NUM_BITS, first_of_alike, hashes_from_hex, hashes_to_hex
from utils.work_plan import DONE, FAILED, OPEN, STATES, in_groups, settle, share


def random_hash(seed):
    return np.random.default_rng(seed).choice([-1.0, 1.0], (1, NUM_BITS)).astype(np.float32)


def recorded(*attempts):
    """Rows of (index, attempt, accepted) or (index, attempt, accepted, seed of its hash)."""
    rows = np.zeros(len(attempts), ROW)
    for row, (index, attempt, accepted, *seed) in zip(rows, attempts):
        row["index"], row["attempt"], row["accepted"] = index, attempt, accepted
        [row["phash"]] = hashes_to_hex(random_hash(*seed or [1000 * attempt + index]))
        [row["phash_mirrored"]] = hashes_to_hex(random_hash(10**6 + 1000 * attempt + index))
    return np.sort(rows, order=("index", "attempt"))


def states(plan):
    return [STATES[state] for state in plan.states]


def test_nothing_recorded_is_all_to_do():
    plan = settle(recorded(), num_images=3, max_attempts=2)
    assert (plan.attempt, plan.todo.tolist(), states(plan)) == (0, [0, 1, 2], [OPEN] * 3)


def test_a_round_that_is_not_complete_goes_on():
    plan = settle(recorded((1, 0, True), (2, 0, False)), num_images=4, max_attempts=2)
    assert (plan.attempt, plan.todo.tolist()) == (0, [0, 3])
    assert states(plan) == [OPEN, DONE, OPEN, OPEN]


def test_the_next_round_draws_what_was_rejected():
    plan = settle(recorded((0, 0, False), (1, 0, True)), num_images=2, max_attempts=3)
    assert (plan.attempt, plan.todo.tolist(), plan.attempts.tolist()) == (1, [0], [1, 1])


def test_an_image_fails_after_its_last_attempt():
    rows = recorded((0, 0, False), (0, 1, False), (1, 0, False), (1, 1, True))
    plan = settle(rows, num_images=2, max_attempts=2)
    assert (plan.todo.tolist(), states(plan)) == ([], [FAILED, DONE])
    assert (plan.count(DONE), plan.count(FAILED), plan.count(OPEN)) == (1, 1, 0)


def test_attempts_after_an_accepted_one_count_for_nothing():
    plan = settle(recorded((0, 0, True), (0, 1, False)), num_images=1, max_attempts=2)
    assert (states(plan), plan.attempts.tolist()) == ([DONE], [1])


def test_of_two_alike_the_later_index_is_drawn_again():
    rows = recorded((0, 0, True, 7), (1, 0, True, 8), (2, 0, True, 7))
    assert settle(rows, num_images=3, max_attempts=2).count(DONE) == 3
    plan = settle(rows, num_images=3, max_attempts=2, unique=True)
    assert plan.duplicates == {(2, 0)}
    assert (plan.attempt, plan.todo.tolist()) == (1, [2])


def test_a_later_attempt_is_compared_with_all_that_earlier_rounds_kept():
    rows = recorded((0, 0, False, 1), (1, 0, True, 2), (0, 1, True, 2))
    plan = settle(rows, num_images=2, max_attempts=2, unique=True)
    assert plan.duplicates == {(0, 1)}
    assert states(plan) == [FAILED, DONE]


def test_repetition_is_decided_only_when_the_round_is_complete():
    rows = recorded((1, 0, True, 7), (2, 0, True, 7))
    plan = settle(rows, num_images=3, max_attempts=2, unique=True)
    assert (plan.duplicates, plan.todo.tolist()) == (set(), [0])


def test_a_rejected_repetition_does_not_forbid_what_resembles_it_alone():
    # b resembles a and c, but a and c do not resemble each other: a and c stay.
    a = random_hash(0)
    b, c = a.copy(), a.copy()
    b[0, :20] *= -1
    c[0, :40] *= -1
    far = np.concatenate([random_hash(seed) for seed in (1, 2, 3)])
    assert first_of_alike(np.concatenate([a, b, c]), far, []).tolist() == [True, False, True]


def test_a_mirrored_repetition_is_one_too():
    hashes = np.concatenate([random_hash(0), random_hash(1)])
    mirrored = np.concatenate([random_hash(2), random_hash(0)])
    assert first_of_alike(hashes, mirrored, []).tolist() == [True, False]
    assert first_of_alike(hashes[1:], mirrored[1:], [hashes[:1]]).tolist() == [False]


def test_repetitions_are_found_across_blocks_of_rows():
    hashes = np.random.default_rng(0).choice([-1.0, 1.0], (2100, NUM_BITS)).astype(np.float32)
    hashes[2050] = hashes[3]
    hashes[2060] = hashes[2059]
    far = np.random.default_rng(1).choice([-1.0, 1.0], hashes.shape).astype(np.float32)
    assert np.flatnonzero(~first_of_alike(hashes, far, [])).tolist() == [2050, 2060]


def test_hashes_survive_their_hexadecimal_form():
    hashes = np.concatenate([random_hash(seed) for seed in range(3)])
    digits = np.array(hashes_to_hex(hashes), "S64")
    assert (hashes_from_hex(digits) == hashes).all()
    assert hashes_from_hex(digits[:0]).shape == (0, NUM_BITS)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
def test_shares_are_the_whole_and_each_once(num_processes):
    todo = np.arange(10, 20)
    shares = [
        share(todo, process=process, num_processes=num_processes)
        for process in range(num_processes)
    ]
    assert [index for each in shares for index in each] == todo.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(group) for group in in_groups(todo.tolist(), 4)] == [4, 4, 2]
