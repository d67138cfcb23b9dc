import json
import math
import shutil
from statistics import mean

import pytest
import torch
from preference_toys import column, log_of, same_weights, train, weights_of, write_pairs

from utils.diffusion import load_pipeline_parts
from utils.reference_model import adapters_off
from utils.trained_model import LoraOptions, make_trained_model

ALONE = ("--denoising_weight=0",)


@pytest.fixture
def pairs(toy_dataset, tmp_path):
    return write_pairs(tmp_path / "pairs.csv", toy_dataset)


@pytest.fixture
def learn(tiny_pipeline, tmp_path, pairs, capsys):
    """Train from the pairs; the result."""

    def run(*flags, output_dir=None, csv=pairs):
        flags = (f"--preference_pairs={csv}", *flags)
        return train(tiny_pipeline, output_dir or tmp_path / "out", *flags, capsys=capsys)

    return run


LEARNS = {  # what raises the accuracy on the toy pairs in so many steps
    "unet": ("--learning_rate=3e-3", "--max_train_steps=60"),
    "lora": (
        *("--learning_rate=1e-2", "--dpo_beta=500", "--max_train_steps=40"),
        *("--lora_targets", "to_q", "to_k", "to_v", "to_out.0"),
        *("conv1", "conv2", "conv_in", "conv_out", "ff.net.2"),
    ),
}


@pytest.mark.parametrize("what", LEARNS)
def test_pairs_alone_start_at_log_2_and_raise_the_implicit_accuracy(learn, tmp_path, what):
    result = learn(*ALONE, f"--train={what}", *LEARNS[what], "--train_batch_size=4")
    losses = column(tmp_path / "out", "dpo_loss")
    accuracy = column(tmp_path / "out", "implicit_accuracy")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert accuracy[0] == 0.5  # the model is the reference
    assert mean(accuracy[-10:]) > 0.85
    assert column(tmp_path / "out", "loss") == losses
    assert result["pairs"] == 4
    assert result["images"] == 0
    assert result["implicit_accuracy_last"] == pytest.approx(mean(accuracy[-50:]))


@pytest.mark.parametrize("what", ["unet", "lora"])
def test_with_beta_0_the_weights_stay_the_references(learn, tiny_pipeline, tmp_path, what):
    # Without weight decay, which AdamW applies where the gradient is 0 too
    flags = ("--dpo_beta=0", "--adam_weight_decay=0", "--max_train_steps=3", f"--train={what}")
    learn(*ALONE, *flags)
    assert same_weights(tmp_path / "out", tiny_pipeline)
    assert column(tmp_path / "out", "grad_norm") == [0, 0, 0]
    assert column(tmp_path / "out", "dpo_loss") == pytest.approx([math.log(2)] * 3)


def test_the_opposite_preferences_begin_with_the_opposite_gradient(
    learn, tiny_pipeline, tmp_path, pairs
):
    lines = pairs.read_text().splitlines()
    opposite = tmp_path / "opposite.csv"
    opposite.write_text("\n".join(["text,rejected,preferred", *lines[1:]]) + "\n")
    # Plain steps of Adam: the first is the sign of the gradient times the rate
    flags = ("--max_train_steps=1", "--adam_weight_decay=0", "--adam_epsilon=1e-30")
    learn(*ALONE, *flags, output_dir=tmp_path / "one")
    learn(*ALONE, *flags, output_dir=tmp_path / "other", csv=opposite)
    norms = [column(tmp_path / name, "grad_norm") for name in ("one", "other")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    one, other = weights_of(tmp_path / "one"), weights_of(tmp_path / "other")
    base = weights_of(tiny_pipeline)
    assert max((one[name] - other[name]).abs().max() for name in base) > 1e-4
    for name in base:
        assert torch.allclose((one[name] + other[name]) / 2, base[name], atol=1e-6), name


def test_the_denoising_loss_of_the_images_is_added(
    learn, toy_dataset, tiny_pipeline, tmp_path, capsys
):
    data = f"--train_data_dir={toy_dataset}"
    learn(data, "--denoising_weight=0.5")
    rows = log_of(tmp_path / "out")
    names = list(rows[0])
    assert names[-3:] == ["denoising_loss", "dpo_loss", "implicit_accuracy"]
    for row in rows:
        total = 0.5 * float(row["denoising_loss"]) + float(row["dpo_loss"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-6)
    train(tiny_pipeline, tmp_path / "plain", data, capsys=capsys)
    first = column(tmp_path / "plain", "loss")[0]
    assert float(rows[0]["denoising_loss"]) == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("what", ["unet", "lora"])
def test_in_bf16_the_model_starts_as_the_reference_too(learn, tmp_path, what):
    learn(*ALONE, "--mixed_precision=bf16", f"--train={what}", "--max_train_steps=1")
    assert column(tmp_path / "out", "dpo_loss") == pytest.approx([math.log(2)], abs=1e-6)
    assert column(tmp_path / "out", "implicit_accuracy") == [0.5]


def test_a_model_with_its_adapters_off_is_the_base_exactly(tiny_pipeline):
    parts, base = load_pipeline_parts(tiny_pipeline), load_pipeline_parts(tiny_pipeline).unet
    model = make_trained_model(parts, "lora", LoraOptions(4, 4.0, ["to_q", "to_v", "conv1"]))
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rng = torch.Generator().manual_seed(0)
    for parameter in adapters:
        parameter.data.normal_(generator=rng)
    seen = (torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([3, 700]))
    seen += (torch.randn(2, 77, 32, generator=rng),)
    with torch.no_grad():
        expected = base.train()(*seen).sample
        with adapters_off(model.unet):
            without = model(*seen).sample
            assert all(parameter.requires_grad for parameter in adapters)
        assert torch.equal(without, expected)
        assert not torch.allclose(model(*seen).sample, expected, atol=1e-2)


@pytest.mark.parametrize("what", ["unet", "lora"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(learn, toy_dataset, tmp_path, what):
    flags = (
        *(f"--train_data_dir={toy_dataset}", f"--train={what}", "--use_ema", "--random_flip"),
        *("--learning_rate=1e-3", "--checkpointing_steps=2", "--max_train_steps=5"),
        *("--gradient_accumulation_steps=2", "--denoising_weight=0.5"),
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    learn(*flags, output_dir=whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    learn(*flags, "--resume_from_checkpoint=latest", output_dir=resumed)
    assert same_weights(whole, resumed)
    kept = ("step", "loss", "grad_norm", "denoising_loss", "dpo_loss", "implicit_accuracy")
    rows = [[[row[key] for key in kept] for row in log_of(folder)] for folder in (whole, resumed)]
    assert len(rows[0]) == 5
    assert rows[0] == rows[1]


def test_neither_workers_nor_kept_latents_change_what_is_learned(learn, toy_dataset, tmp_path):
    flags = (f"--train_data_dir={toy_dataset}", "--random_flip", "--max_train_steps=3")
    learn(*flags, output_dir=tmp_path / "one")
    learn(*flags, "--dataloader_num_workers=2", output_dir=tmp_path / "two")
    assert same_weights(tmp_path / "one", tmp_path / "two")
    learn(*flags, "--no-cache_latents", output_dir=tmp_path / "three")
    expected = pytest.approx(column(tmp_path / "one", "loss"), abs=2e-3)
    assert column(tmp_path / "three", "loss") == expected


def test_weights_of_pairs_count_and_a_pair_of_weight_0_is_left_out(learn, toy_dataset, tmp_path):
    def run(name, **columns):
        csv = write_pairs(tmp_path / f"{name}.csv", toy_dataset, **columns)
        learn(*ALONE, csv=csv, output_dir=tmp_path / name)

    run("plain")
    run("constant", weight=["0.1"] * 4)
    assert same_weights(tmp_path / "plain", tmp_path / "constant")
    run("three", num_pairs=3)
    run("dropped", weight=[1, 1, 1, 0])
    assert same_weights(tmp_path / "three", tmp_path / "dropped")
    run("uneven", weight=[1, 2, 3, 4])
    assert not same_weights(tmp_path / "plain", tmp_path / "uneven")
    options = json.loads((tmp_path / "dropped" / "options.json").read_text())
    assert options["pairs"] == 3
    assert options["notes"] == ["1 rows have weight 0 and are left out"]


def test_a_log_goes_on_where_preferences_joined_a_run(
    learn, tiny_pipeline, toy_dataset, tmp_path, capsys
):
    out, data = tmp_path / "out", f"--train_data_dir={toy_dataset}"
    flags = (data, "--checkpointing_steps=1")
    train(tiny_pipeline, out, *flags, capsys=capsys)
    for last in (3, 4):
        more = ("--resume_from_checkpoint=latest", f"--max_train_steps={last}")
        learn(*flags, *more)
    rows = log_of(out)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["dpo_loss"]) for row in rows] == [False, False, True, True]


def test_the_cache_of_pairs_can_be_filled_beforehand(learn):
    result = learn(*ALONE, "--cache_only")
    assert result["entries"] == 8 + 4  # images and captions; no empty one, pairs keep their text


def test_a_held_out_loss_can_be_watched_while_pairs_alone_are_learned(
    learn, toy_dataset, tmp_path, capsys
):
    learn(*ALONE, f"--train_data_dir={toy_dataset}", "--validation_split=val")
    assert (tmp_path / "out" / "validation_log.csv").is_file()
    assert column(tmp_path / "out", "dpo_loss")


def test_the_text_encoder_stays_out_of_it_and_flags_that_clash_are_named(
    tiny_pipeline, toy_dataset, pairs, tmp_path, capsys
):
    data, with_pairs = f"--train_data_dir={toy_dataset}", f"--preference_pairs={pairs}"
    cases = (
        ([data, with_pairs, "--train=unet+text_encoder"], "--preference_pairs"),
        ([data, with_pairs, "--dream_training"], "--dream_training"),
        ([data, with_pairs, "--resize_mode=random_crop", "--cache_crops=2"], "--cache_crops"),
        ([data, "--denoising_weight=0"], "--denoising_weight"),
        ([data, "--dpo_beta=5"], "--dpo_beta"),
        ([with_pairs], "--train_data_dir"),
        ([with_pairs, "--denoising_weight=0", "--validation_split=val"], "--train_data_dir"),
        ([with_pairs, "--denoising_weight=0", "--snr_gamma=5"], "--snr_gamma"),
        ([with_pairs, "--denoising_weight=0", "--weight_column=w"], "--weight_column"),
        ([data, "--preference_pairs=no.csv"], "--preference_pairs"),
        ([data, with_pairs, "--dpo_beta=-1"], "--dpo_beta"),
        ([data, with_pairs, "--dpo_beta=inf"], "--dpo_beta"),
        ([data, "--allow_empty_captions", "--caption=OCT"], "--allow_empty_captions"),
    )
    for flags, named in cases:
        with pytest.raises(SystemExit) as stop:
            train(tiny_pipeline, tmp_path / "out", *flags, capsys=capsys)
        assert stop.value.code == 2, flags
        assert named in capsys.readouterr().err.rsplit("error:", 1)[1], flags
