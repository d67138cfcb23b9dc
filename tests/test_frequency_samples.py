import numpy as np
import pytest

from utils.frequency_samples import FrequencySet, WeightedOrder


def shown(order, epoch, num_images):
    places = range(epoch * num_images, (epoch + 1) * num_images)
    return np.bincount([order[place][1] for place in places], minlength=num_images)


def test_an_image_is_shown_as_often_as_its_weight_says_in_every_epoch():
    weights = np.array([4.0, 2.0, 1.0, 0.5, 0.25, 0.25])
    order = WeightedOrder(3, weights)
    wanted = 6 * weights / weights.sum()
    epochs = np.array([shown(order, epoch, 6) for epoch in range(400)])
    assert (np.abs(epochs - wanted) < 1).all()  # up or down to one
    assert epochs.mean(axis=0) == pytest.approx(wanted, abs=0.07)


def test_of_equal_weights_every_image_is_shown_once_an_epoch():
    order = WeightedOrder(0, np.full(7, 0.3))
    assert all((shown(order, epoch, 7) == 1).all() for epoch in range(20))


def test_the_order_follows_from_seed_and_position():
    weights = np.arange(1.0, 12.0)
    one, same, other = (WeightedOrder(seed, weights) for seed in (5, 5, 6))
    places = [70, 3, 41, 3]
    assert [one[p] for p in places] == [same[p] for p in places]
    assert [one[p][1] for p in range(50)] != [other[p][1] for p in range(50)]
    assert len({one[p][0] for p in range(50)}) == 50  # each showing has a look of its own


def test_a_rounded_end_of_the_line_names_the_last_image():
    order = WeightedOrder(0, np.full(3, 0.1))
    assert {order[place][1] for place in range(3000)} == {0, 1, 2}


@pytest.fixture
def samples(toy_dataset, tiny_pipeline):
    from transformers import CLIPTokenizer

    from utils.dataset import load_dataset
    from utils.training_data import SampleOptions, make_training_set

    data = load_dataset(toy_dataset, split="train")
    options = SampleOptions(1, 64, "center_crop", False, 0.5, (4, 8, 8), 1000)
    weights = np.linspace(0.2, 1.8, len(data)).astype(np.float32)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_pipeline / "tokenizer")
    return make_training_set(data, options, tokenizer, kind=FrequencySet, weights=weights)


def test_what_is_shown_more_often_has_no_other_factor_and_other_captions_are_dropped(samples):
    positions = range(12 * len(samples.dataset))
    drawn = [samples[position] for position in positions]
    assert {float(sample["weight"]) for sample in drawn} == {1.0}
    names = [sample["name"] for sample in drawn]
    often = max(set(names), key=names.count)
    texts = {tuple(s["text"].flatten().tolist()) for s in drawn if s["name"] == often}
    assert names.count(often) > 12
    assert len(texts) == 2  # dropped at some showings, not at others
