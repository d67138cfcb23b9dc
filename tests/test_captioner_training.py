"""A report model's training: it learns, is resumed exactly, and says when it cannot go on."""

import dataclasses

import numpy as np
import pytest
import torch
from report_clinic import write_reports

from utils import captioner_training
from utils.captioner import Captioner, Decoding
from utils.captioner_networks import CaptionerSpec, build_network
from utils.captioner_training import CaptionerOptions, train_captioner
from utils.cli import UserError
from utils.dataset import load_dataset
from utils.gray_images import GrayImages
from utils.report_data import Pairs

OPTIONS = CaptionerOptions(
    total_steps=12,
    steps_per_epoch=4,
    checkpointing_steps=3,
    batch_size=4,
    learning_rate=2e-3,
    weight_decay=0.05,
    label_smoothing=0.0,
    augment="standard",
    ema_decay=0.9,
    patience=0,
    max_tokens=96,
    seed=3,
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = write_reports(tmp_path_factory.mktemp("clinic") / "data", ("",) * 8)
    records = load_dataset(folder)
    images = GrayImages(list(records), resolution=32, resize_mode="center_crop")
    every = Pairs(images, tuple(record.text for record in records))
    return every.take(range(10)), every.take(range(10, 16))


def untrained(pairs, seed=3):
    spec = CaptionerSpec(32, max_tokens=96, offline=True)
    network, tokenizer, settings = build_network(spec, pairs[0].texts, seed=seed)
    return Captioner(network, tokenizer, settings, resize_mode="center_crop")


def weights(captioner):
    return torch.cat([t.flatten().float() for t in captioner.network.state_dict().values()])


def train(pairs, path, **changes):
    captioner = untrained(pairs)
    options = dataclasses.replace(OPTIONS, **changes)
    return captioner, train_captioner(captioner, *pairs, options=options, checkpoint=path)


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory):
    return train(pairs, tmp_path_factory.mktemp("whole") / "state.safetensors")


def test_a_model_can_learn_its_pairs_by_heart(pairs, tmp_path):
    few = pairs[0].take(range(2)), pairs[1]
    captioner, result = train(
        few,
        tmp_path / "state.safetensors",
        total_steps=70,
        steps_per_epoch=70,
        augment="none",
        ema_decay=0.0,
    )
    assert result.history[-1]["train_loss"] < 1.5
    written = captioner.write(few[0].images, Decoding(num_beams=2, max_new_tokens=95))
    assert [report.text for report in written] == list(few[0].texts)
    assert all(-0.5 < report.confidence < 0 for report in written)


@pytest.mark.parametrize("stop", [3, 4, 6, 9])
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(
    whole, pairs, tmp_path, monkeypatch, stop
):
    path = tmp_path / "state.safetensors"

    class Killed(Exception):
        pass

    descend = captioner_training._Run._descend

    def until(run, *args):
        if run.step == stop:
            raise Killed
        return descend(run, *args)

    monkeypatch.setattr(captioner_training._Run, "_descend", until)
    with pytest.raises(Killed):
        train(pairs, path)
    monkeypatch.undo()
    assert path.is_file() == (stop >= 3)
    captioner, result = train(pairs, path)
    assert torch.equal(weights(captioner), weights(whole[0]))
    assert result == whole[1]


def test_another_seed_is_another_model(whole, pairs, tmp_path):
    captioner, _ = train(pairs, tmp_path / "state.safetensors", seed=4)
    assert not torch.equal(weights(captioner), weights(whole[0]))


def test_the_epoch_that_is_kept_is_the_one_the_rule_names(whole):
    history, best = whole[1].history, whole[1].best_epoch
    losses = [row["val_loss"] for row in history]
    limit = min(losses) + history[int(np.argmin(losses))]["val_loss_error"]
    assert best == max(row["epoch"] for row in history if row["val_loss"] <= limit)


def test_patience_ends_a_training_that_gains_nothing(pairs, tmp_path):
    options = {"learning_rate": 1.0, "patience": 2, "total_steps": 40}
    _, result = train(pairs, tmp_path / "s.safetensors", **options)
    assert result.stopped_early and result.steps < 40


def test_a_loss_that_is_not_finite_names_the_step(pairs, tmp_path):
    captioner = untrained(pairs)
    with torch.no_grad():
        captioner.network.decoder.transformer.wte.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite at step 1: lower --learning_rate"):
        train_captioner(captioner, *pairs, options=OPTIONS, checkpoint=tmp_path / "s.safetensors")


def test_reports_that_are_too_long_are_cut_and_counted(pairs, tmp_path):
    _, result = train(pairs, tmp_path / "s.safetensors", max_tokens=8, total_steps=1)
    assert result.num_cut == len(pairs[0])
