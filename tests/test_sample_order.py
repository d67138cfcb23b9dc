"""The order of the training stream: whole permutations, and windows of shards."""

import pickle
import tracemalloc

import numpy as np
import pytest

from utils.sample_order import SampleOrder

SHARDS = [700 + 13 * (number % 50) for number in range(70)]  # 4 windows of 17 or 18 shards
NUM_IMAGES = sum(SHARDS)


@pytest.fixture
def order():
    return SampleOrder(5, NUM_IMAGES, SHARDS)


def shard_of(images):
    return np.searchsorted(np.cumsum(SHARDS), images, side="right")


def test_single_files_are_shuffled_as_a_whole():
    order = SampleOrder(5, 12)
    expected = np.random.default_rng((5, 0, 3)).permutation(12)
    assert [order[3 * 12 + place] for place in range(12)] == [(3, image) for image in expected]


def test_few_shards_are_shuffled_as_a_whole():
    # one window either way: too few shards, or too few images
    for blocks in ([2000] * 31, [10] * 100):
        order, whole = SampleOrder(5, sum(blocks), blocks), SampleOrder(5, sum(blocks))
        assert np.array_equal(order.epoch(1), whole.epoch(1))


def test_an_epoch_over_shards_shows_every_image_once(order):
    for epoch in range(3):
        assert np.array_equal(np.sort(order.epoch(epoch)), np.arange(NUM_IMAGES))


def test_a_position_alone_gives_what_the_epoch_gives(order):
    whole = order.epoch(2)
    places = np.random.default_rng(0).permutation(NUM_IMAGES)[:300].tolist()
    for place in [0, NUM_IMAGES - 1, *places]:
        assert order[2 * NUM_IMAGES + place] == (2, whole[place])


def test_reading_stays_in_a_window_of_shards_and_mixes_all_of_it(order):
    shards = shard_of(order.epoch(0))
    seen = [set(part) for part in np.array_split(shards, 200)]
    assert max(map(len, seen)) <= 2 * 18  # one window, or the border of two
    assert np.median([len(part) for part in seen]) >= 16
    # a shard is done with once its window has passed
    spans = [np.ptp(np.flatnonzero(shards == number)) for number in range(len(SHARDS))]
    assert max(spans) < 18 * max(SHARDS)


def test_epochs_and_seeds_have_orders_of_their_own(order):
    first = order.epoch(0)
    for other in (order.epoch(1), SampleOrder(6, NUM_IMAGES, SHARDS).epoch(0)):
        assert (first == other).mean() < 0.01
        assert set(shard_of(first[:5000])) != set(shard_of(other[:5000]))


def test_epochs_shuffle_alike_windows_in_other_ways():
    order = SampleOrder(5, 64_000, [1000] * 64)
    offsets = [order.epoch(epoch) % 1000 for epoch in (0, 1)]
    assert (offsets[0] == offsets[1]).mean() < 0.01


def test_an_order_sent_to_another_process_goes_on_the_same(order):
    before = order[NUM_IMAGES + 17]
    assert pickle.loads(pickle.dumps(order))[NUM_IMAGES + 17] == before


def test_a_position_among_ten_million_images_needs_little_memory():
    order = SampleOrder(0, 10_000_000, [10_000] * 1000)
    tracemalloc.start()
    order[123_456_789]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20  # the epoch's permutation alone is 80 MB
