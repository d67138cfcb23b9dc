"""Reports without a model: the most frequent one, and the nearest training image's."""

import numpy as np
import pytest
from PIL import Image

from utils.gray_images import GrayImages
from utils.report_baselines import most_frequent, nearest


class Scan:
    """A record whose image is at hand."""

    def __init__(self, pixels):
        self._pixels = pixels

    def image(self):
        return Image.fromarray(self._pixels)


def images_of(pixels, **options):
    records = [Scan(one) for one in pixels]
    return GrayImages(records, resolution=64, resize_mode="stretch", **options)


def textures(seed, num):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 180, (num, 8, 8)).astype(np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def test_the_most_frequent_report_and_of_equals_the_first_by_alphabet():
    assert most_frequent(["b", "c", "a", "b"], 2) == ["b", "b"]
    assert most_frequent(["b", "a", "a", "b", "c"], 1) == ["a"]


def test_the_nearest_image_is_found_whatever_its_brightness_contrast_and_noise():
    train = textures(0, 600)  # more than a batch
    order = np.random.default_rng(1).permutation(600)[:300]
    noise = np.random.default_rng(2).integers(0, 20, (300, 64, 64))
    test = (train[order] * 0.5 + 10 + noise).astype(np.uint8)
    found = nearest(images_of(train), [str(n) for n in range(600)], images_of(test))
    assert found == [str(n) for n in order]


def test_it_is_the_largest_correlation_of_thumbnails():
    train, test = textures(3, 40), textures(4, 7)
    small = [
        pixels.reshape(-1, 32, 2, 32, 2).mean(axis=(2, 4)).reshape(-1, 1024)
        for pixels in (train, test)
    ]
    expected = np.corrcoef(small[1], small[0])[:7, 7:].argmax(axis=1)
    found = nearest(images_of(train), [str(n) for n in range(40)], images_of(test))
    assert found == [str(n) for n in expected]


@pytest.mark.parametrize("copy", [1, 37, 599])
def test_of_equal_images_the_first_counts(copy):
    train = textures(5, 600)
    train[copy] = train[0]
    found = nearest(images_of(train), [str(n) for n in range(600)], images_of(train[copy:]))
    assert found[0] == "0"


def test_images_that_are_read_batch_by_batch_and_flat_ones_change_nothing():
    train, test = textures(6, 20), textures(7, 5)
    test[2] = 90
    texts = [str(n) for n in range(20)]
    held = nearest(images_of(train), texts, images_of(test))
    read = nearest(images_of(train, memory_limit=0), texts, images_of(test, memory_limit=0))
    assert held == read and held[2] == "0"
