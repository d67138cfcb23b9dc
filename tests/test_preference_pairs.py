import csv
import shutil

import pytest
import torch
from PIL import Image
from preference_toys import write_pairs, write_rows

from utils.cli import UserError
from utils.dataset import DatasetError
from utils.diffusion import load_pipeline_parts
from utils.preference_pairs import load_pairs
from utils.preference_samples import MixedSet, PairSet
from utils.sample_weights import read_weights
from utils.training_batches import make_loader
from utils.training_data import SampleOptions, make_training_set

OPTIONS = SampleOptions(
    seed=5,
    resolution=64,
    resize_mode="random_crop",
    random_flip=True,
    caption_dropout_prob=0.5,
    latent_shape=(4, 8, 8),
    num_timesteps=1000,
)


def read(path, **options):
    return load_pairs(path, **{"check_pixels": True, "skip_invalid": False} | options)


@pytest.fixture
def pairs(toy_dataset, tmp_path):
    return read(write_pairs(tmp_path / "pairs.csv", toy_dataset))


@pytest.fixture(scope="module")
def tokenizer(tiny_pipeline):
    return load_pipeline_parts(tiny_pipeline).tokenizer


@pytest.fixture
def samples(pairs, tokenizer):
    return make_training_set(pairs, OPTIONS.of_pairs(), tokenizer, kind=PairSet)


def with_rows(path, *changes):
    """Write the toy pairs' rows with changes: (index, column, cell)."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for index, name, cell in changes:
        rows[index][name] = cell
    write_rows(path, rows)
    return path


def test_pairs_are_two_images_with_the_pairs_text(pairs, toy_dataset):
    assert len(pairs) == 8
    assert [record.text for record in pairs[:4]] == ["finding 0"] * 2 + ["finding 1"] * 2
    names = [record.path.resolve() for record in pairs]
    assert names == [(toy_dataset / "images" / f"{index:03d}.png").resolve() for index in range(8)]


def test_everything_wrong_with_pairs_is_told_at_once_with_its_line(toy_dataset, tmp_path):
    path = write_pairs(tmp_path / "pairs.csv", toy_dataset, num_pairs=5, weight=[1] * 5)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with path.open(newline="") as file:
        first = next(csv.DictReader(file))["preferred"]
    changes = [(0, "text", " "), (1, "preferred", "gone.png"), (1, "weight", "-1")]
    changes += [(2, "rejected", "broken.png"), (3, "rejected", ""), (3, "weight", "nan")]
    changes += [(4, "preferred", first), (4, "rejected", f"./{first}"), (4, "weight", "much")]
    with pytest.raises(DatasetError) as error:
        read(with_rows(path, *changes))
    told = [(problem.where, problem.kind) for problem in error.value.problems]
    assert sorted(told) == [
        ("pairs.csv:2", "empty text"),
        ("pairs.csv:3", "bad weight"),
        ("pairs.csv:3", "missing file"),
        ("pairs.csv:4", "not an image"),
        ("pairs.csv:5", "bad weight"),
        ("pairs.csv:5", "empty file name"),
        ("pairs.csv:6", "bad weight"),
        ("pairs.csv:6", "image against itself"),
    ]
    assert told == sorted(told, key=lambda problem: problem[0])
    for part in ("preferred: gone.png", "'-1' is negative", "'nan' is not finite", "no number"):
        assert part in str(error.value)


def test_broken_pairs_are_dropped_if_wished(toy_dataset, tmp_path):
    path = write_pairs(tmp_path / "pairs.csv", toy_dataset)
    dataset = read(with_rows(path, (1, "rejected", "gone.png")), skip_invalid=True)
    assert len(dataset) == 6
    assert [problem.where for problem in dataset.skipped] == ["pairs.csv:3"]


@pytest.mark.parametrize("name", ["text", "preferred", "rejected"])
def test_a_missing_column_is_named(toy_dataset, tmp_path, name):
    path = write_pairs(tmp_path / "pairs.csv", toy_dataset)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace(name, "other"), *lines[1:]]))
    with pytest.raises(DatasetError, match=f"pairs.csv:1: missing column: {name}"):
        read(path)


def test_a_table_without_pairs_or_weight_is_refused(toy_dataset, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("text,preferred,rejected\n")
    with pytest.raises(DatasetError, match="no rows"):
        read(path)
    with pytest.raises(DatasetError, match="weight is 0 in all"):
        read(write_pairs(path, toy_dataset, weight=[0] * 4))
    bad = with_rows(write_pairs(path, toy_dataset, weight=[0, 0, 0, 1]), (3, "rejected", "gone"))
    with pytest.raises(UserError, match="weight is 0 in all"):
        read(bad, skip_invalid=True)


def test_raters_may_repeat_and_contradict_each_other(toy_dataset, tmp_path):
    path = write_pairs(tmp_path / "pairs.csv", toy_dataset, num_pairs=1)
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    opposite = row | {"preferred": row["rejected"], "rejected": row["preferred"]}
    shutil.copy(tmp_path / row["preferred"], tmp_path / "copy.png")
    write_rows(path, [row, row, opposite, row | {"preferred": "copy.png"}])
    assert len(read(path)) == 8


def test_a_pair_shares_noise_timestep_flip_and_crop(toy_dataset, tmp_path, tokenizer):
    # The second image is the first, darker: what is drawn for both shows in the pixels
    with Image.open(toy_dataset / "images" / "000.png") as image:
        image.point(lambda value: value // 2).save(tmp_path / "dark.png")
        image.save(tmp_path / "plain.png")
    row = {"text": "left eye", "preferred": "plain.png", "rejected": "dark.png"}
    write_rows(tmp_path / "pairs.csv", [row])
    dataset = read(tmp_path / "pairs.csv")
    samples = make_training_set(dataset, OPTIONS.of_pairs(), tokenizer, kind=PairSet)
    looks = set()
    for position in range(8):
        preferred, rejected = samples[position]
        for key in ("noise", "input_noise", "posterior_noise", "timestep", "text"):
            assert torch.equal(preferred[key], rejected[key])
        levels = (preferred["pixels"] + 1, rejected["pixels"] + 1)
        assert torch.allclose(levels[0] / 2, levels[1], atol=0.02)
        looks.add(round(preferred["pixels"][0, :, :8].mean().item(), 4))
    assert len(looks) > 4  # crops and flips differ from position to position


def test_a_pair_keeps_its_caption_and_is_drawn_by_seed_and_position_only(samples):
    for one, other in zip(samples[17], samples[17]):
        assert one["name"] == other["name"]
        assert all(torch.equal(one[key], other[key]) for key in one if key != "name")
    assert not torch.equal(samples[17][0]["noise"], samples[18][0]["noise"])
    assert "" not in samples.captions.rows


def test_every_epoch_shows_every_pair_once(samples):
    for epoch in range(2):
        names = [samples[4 * epoch + place][0]["name"] for place in range(4)]
        assert len(set(names)) == 4


def test_a_batch_has_the_images_then_the_preferred_then_the_rejected(samples, pairs, tokenizer):
    images = make_training_set(pairs, OPTIONS, tokenizer)
    mixed = MixedSet(images, samples)
    alone, shared = (
        next(iter(make_loader(mixed, [range(3)], num_workers=count, pin_memory=False)))
        for count in (0, 2)
    )
    expected = [images[place]["name"] for place in range(3)]
    expected += [samples[place][role]["name"] for role in (0, 1) for place in range(3)]
    assert alone["names"] == shared["names"] == expected
    assert torch.equal(alone["noise"][3:6], alone["noise"][6:])
    assert not torch.equal(alone["noise"][:3], alone["noise"][3:6])
    assert all(torch.equal(alone[key], shared[key]) for key in alone if key != "names")


def test_weights_of_pairs_have_mean_1_and_stand_at_both_images(toy_dataset, tmp_path, tokenizer):
    dataset = read(write_pairs(tmp_path / "pairs.csv", toy_dataset, weight=[1, 3, 0, 8]))
    weights = read_weights(dataset, "weight")
    assert weights.tolist() == [0.25, 0.25, 0.75, 0.75, 2, 2]
    samples = make_training_set(dataset, OPTIONS, tokenizer, kind=PairSet, weights=weights)
    told = [[side["weight"].item() for side in samples[place]] for place in range(3)]
    assert sorted(told) == [[0.25, 0.25], [0.75, 0.75], [2, 2]]
