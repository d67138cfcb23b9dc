import csv
import math
from dataclasses import replace

import pytest
import torch

from utils.cli import UserError
from utils.dataset import load_dataset
from utils.diffusion import load_pipeline_parts
from utils.training_batches import PositionBatches, make_loader
from utils.training_data import (
    SampleOptions,
    check_sides,
    crop_rng,
    make_training_set,
    possible_captions,
)
from utils.training_notes import tell_crop, tell_long_captions
from utils.training_state import Plan, steps_of_epochs

OPTIONS = SampleOptions(
    seed=5,
    resolution=64,
    resize_mode="center_crop",
    random_flip=True,
    caption_dropout_prob=0.25,
    latent_shape=(4, 8, 8),
    num_timesteps=1000,
)


@pytest.fixture(scope="module")
def parts(tiny_pipeline):
    return load_pipeline_parts(tiny_pipeline)


@pytest.fixture(scope="module")
def dataset(toy_dataset):
    return load_dataset(toy_dataset, check_pixels=False)


@pytest.fixture
def samples(dataset, parts):
    return make_training_set(dataset, OPTIONS, parts.tokenizer)


def with_options(samples, **changes):
    return type(samples)(
        samples.dataset, replace(samples.options, **changes), samples.captions, samples.latents
    )


def same(one, other):
    return all(
        torch.equal(one[key], other[key]) if torch.is_tensor(one[key]) else one[key] == other[key]
        for key in one.keys() | other.keys()
    )


def write_captions(folder, captions, source):
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        for index, caption in enumerate(captions):
            image = f"{index:03d}.png"
            (folder / image).write_bytes((source / "images" / image).read_bytes())
            writer.writerow([image, caption])
    return load_dataset(folder, check_pixels=False)


def test_every_epoch_shows_every_image_once_in_another_order(samples, dataset):
    names = [[samples[epoch * 12 + place]["name"] for place in range(12)] for epoch in range(2)]
    assert sorted(names[0]) == sorted(names[1]) == sorted(record.file_name for record in dataset)
    assert names[0] != names[1]


def test_a_sample_depends_on_seed_and_position_only(samples):
    assert same(samples[17], samples[17])
    assert not torch.equal(samples[17]["noise"], samples[18]["noise"])
    assert not torch.equal(samples[17]["noise"], with_options(samples, seed=6)[17]["noise"])


def test_the_number_of_workers_changes_nothing(samples):
    batches = [range(3), range(3, 6)]
    alone = list(make_loader(samples, batches, num_workers=0, pin_memory=False))
    shared = list(make_loader(samples, batches, num_workers=2, pin_memory=False))
    assert all(same(one, other) for one, other in zip(alone, shared))


def test_two_processes_take_the_same_positions_as_one():
    def first(count, **options):
        return [
            next(batches) for batches in [iter(PositionBatches(**options))] for _ in range(count)
        ]

    one = first(2, start=10, batch_size=4, rank=0, num_processes=1)
    two = [first(2, start=10, batch_size=2, rank=rank, num_processes=2) for rank in (0, 1)]
    assert [list(batch) for batch in one] == [[*two[0][step], *two[1][step]] for step in (0, 1)]
    assert one[0][0] == 10


def test_a_resumed_stream_goes_on_where_it_stopped():
    whole = iter(PositionBatches(start=0, batch_size=3, rank=0, num_processes=1))
    resumed = iter(PositionBatches(start=6, batch_size=3, rank=0, num_processes=1))
    assert [next(whole) for _ in range(3)][2] == next(resumed)


def test_the_share_of_dropped_captions_is_as_asked_for(samples):
    empty = samples.captions[""]
    dropped = sum(torch.equal(samples[position]["text"], empty) for position in range(600))
    # 4 standard deviations of a binomial with n = 600, p = 0.25
    assert abs(dropped - 150) < 4 * math.sqrt(600 * 0.25 * 0.75)


def test_without_dropout_no_caption_is_empty(dataset, parts):
    options = replace(OPTIONS, caption_dropout_prob=0.0)
    assert "" not in possible_captions(dataset, options)
    samples = make_training_set(dataset, options, parts.tokenizer)
    by_name = {record.file_name: record.text for record in dataset}
    sample = samples[3]
    assert torch.equal(sample["text"], samples.captions[by_name[sample["name"]]])


def test_a_mirrored_image_is_mirrored_and_its_caption_with_it(tmp_path, toy_dataset, parts):
    dataset = write_captions(tmp_path, ["fluid on the left"], toy_dataset)
    options = replace(OPTIONS, caption_dropout_prob=0.0)
    samples = make_training_set(dataset, options, parts.tokenizer)
    seen = {}
    for position in range(20):
        sample = samples[position]
        mirrored = torch.equal(sample["text"], samples.captions["fluid on the right"])
        seen[mirrored] = sample["pixels"]
    assert torch.equal(seen[True], seen[False].flip(-1))


def test_noise_is_standard_normal_and_timesteps_are_uniform(samples):
    drawn = [samples[position] for position in range(300)]
    noise = torch.stack([sample["noise"] for sample in drawn])
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1.0) < 0.02
    timesteps = torch.stack([sample["timestep"] for sample in drawn]).double()
    assert abs(timesteps.mean().item() - 499.5) < 4 * 289 / math.sqrt(300)


def test_noise_offset_moves_whole_channels(samples):
    plain, moved = samples[0]["noise"], with_options(samples, noise_offset=0.5)[0]["noise"]
    difference = (moved - plain).flatten(1)  # (C, h * w)
    assert torch.allclose(difference, difference[:, :1].expand_as(difference), atol=1e-6)
    assert difference[:, 0].abs().min() > 0


def test_input_perturbation_is_in_the_input_and_not_in_the_target(samples):
    sample = with_options(samples, input_perturbation=0.1)[0]
    assert torch.equal(sample["noise"], samples[0]["noise"])
    extra = sample["input_noise"] - sample["noise"]
    assert 0.05 < extra.std().item() < 0.15
    assert torch.equal(samples[0]["input_noise"], samples[0]["noise"])


def test_random_crops_differ_between_epochs_and_are_repeatable(samples):
    cropped = with_options(samples, resize_mode="random_crop", random_flip=False)
    name = cropped[0]["name"]
    crops = [
        cropped[12 * epoch + place]["pixels"]
        for epoch in range(6)
        for place in range(12)
        if cropped[12 * epoch + place]["name"] == name
    ]
    assert not all(torch.equal(crops[0], crop) for crop in crops[1:])
    assert torch.equal(crops[0], cropped[0]["pixels"])


def test_a_kept_crop_follows_from_the_pixels_and_its_number():
    drawn = [
        crop_rng(digest, crop).integers(2**32, size=2).tolist()
        for digest, crop in (("0a", 0), ("0a", 0), ("0b", 0), ("0a", 1))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] not in drawn[2:]


def test_a_set_number_of_crops_is_the_same_in_every_epoch_and_under_every_seed(samples):
    few = {"resize_mode": "random_crop", "random_flip": False, "num_crops": 2}
    name = with_options(samples, **few)[0]["name"]

    def crops_of(seed):
        drawn = [with_options(samples, **few, seed=seed)[position] for position in range(240)]
        return {s["pixels"].numpy().tobytes() for s in drawn if s["name"] == name}

    assert len(crops_of(5)) == 2
    assert crops_of(5) == crops_of(6)


def test_held_out_samples_are_as_easy_for_every_model():
    held_out = OPTIONS.held_out()
    assert held_out.random_flip is False
    assert held_out.caption_dropout_prob == 0.0
    few = replace(OPTIONS, resize_mode="random_crop", num_crops=2).held_out()
    assert (few.resize_mode, few.num_crops) == ("center_crop", None)


def test_captions_with_a_side_are_refused_with_line_and_word(tmp_path, toy_dataset):
    dataset = write_captions(tmp_path, ["normal", "cyst in the Left eye", "OD"], toy_dataset)
    with pytest.raises(UserError) as error:
        check_sides(dataset)
    text = str(error.value)
    assert "2 of 3 captions" in text
    assert "metadata.csv:3: Left: 'cyst in the Left eye'" in text
    assert "metadata.csv:4: OD: 'OD'" in text
    assert "--flip_swaps_sides" in text


def test_captions_without_a_side_pass(dataset):
    check_sides(dataset)


def test_what_a_crop_loses_is_told(dataset):
    assert tell_crop(dataset, "center_crop") == pytest.approx(1 - 48 / 64)
    assert tell_crop(dataset, "pad") == 0.0


def test_captions_beyond_the_tokenizers_length_are_counted(tmp_path, toy_dataset, parts):
    dataset = write_captions(tmp_path, ["short", "x" * 100], toy_dataset)
    assert tell_long_captions(dataset, parts.tokenizer) == 1


def test_an_epoch_ends_when_the_last_image_is_used():
    plan = Plan(num_images=10, images_per_step=4, first_step=0, last_step=9, first_position=0)
    ends = [step for step in range(1, 10) if plan.ends_epoch(step, 1)]
    assert ends == [3, 5, 8]  # positions 12, 20, 32
    assert plan.position(5) == 20
    assert plan.epoch(5) == 2.0


def test_validation_comes_after_the_first_epoch_and_every_interval():
    plan = Plan(num_images=10, images_per_step=10, first_step=0, last_step=9, first_position=0)
    assert [step for step in range(1, 10) if plan.ends_epoch(step, 3)] == [1, 4, 7]


def test_a_plan_resumed_with_another_batch_size_keeps_the_position():
    plan = Plan(num_images=10, images_per_step=2, first_step=3, last_step=9, first_position=12)
    assert plan.position(4) == 14


def test_epochs_are_passes_over_the_data():
    assert steps_of_epochs(3, num_images=10, images_per_step=4) == 8  # 30 / 4, rounded up
