"""Rehearsal of known data, and prompts by a template, in training and drawing."""

import argparse
import csv
import json
import shutil
from dataclasses import replace

import pytest

import generate_synthetic_dataset
import train_text_to_image
from utils.checkpoints import is_complete
from utils.cli import UserError
from utils.dataset import load_dataset, write_dataset
from utils.denoising_probe import DenoisingProbe
from utils.diffusion import load_pipeline_parts
from utils.preference_pairs import load_pairs
from utils.prompt_template import (
    fill_prompt,
    keep_template,
    settle_template,
    template_of,
    with_prompts,
)
from utils.prompt_template_flag import prompt_template
from utils.prompts import Prompt
from utils.rehearsal import RehearsalSet, RehearsedSet, pass_length
from utils.run_folder import write_csv
from utils.training_data import SampleOptions, make_training_set
from utils.training_notes import warn_of_memorisation
from utils.training_state import Plan

TEMPLATE = "{modality}: {text}"


@pytest.fixture(scope="module")
def data(toy_dataset, tmp_path_factory):
    """Folders by modality, their captions telling which is which."""
    folder = tmp_path_factory.mktemp("domains")
    for modality in ("CXR", "OCT"):
        shutil.copytree(toy_dataset, folder / modality)
        rows = [record.row | {"modality": modality} for record in load_dataset(toy_dataset)]
        write_dataset(folder / modality, rows)
    return folder


def train(model, data, output_dir, *flags):
    argv = [
        f"--pretrained_model_name_or_path={model}",
        f"--train_data_dir={data / 'CXR'}",
        f"--output_dir={output_dir}",
        *("--resolution=64", "--center_crop", "--train_batch_size=2", "--max_train_steps=4"),
        *("--lr_warmup_steps=0", "--seed=3", "--report_to=none", "--offline"),
        *("--mixed_precision=no", "--validation_split=val", *flags),
    ]
    train_text_to_image.main(argv)
    with (output_dir / "options.json").open() as file:
        return json.load(file)


@pytest.fixture(scope="module")
def rehearsed(tiny_pipeline, data, tmp_path_factory):
    """A run with template and rehearsal, stopped by nothing."""
    output_dir = tmp_path_factory.mktemp("rehearsed") / "run"
    flags = (f"--rehearsal={data / 'OCT'}", "--rehearsal_share=0.5", "--checkpointing_steps=2")
    train(tiny_pipeline, data, output_dir, f"--prompt_template={TEMPLATE}", *flags)
    return output_dir, flags


class Counted:
    """Stands for samples: says of which set it is and at which position."""

    latents = None

    def __init__(self, name):
        self.name = name

    def __getitem__(self, position):
        return self.name, position


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5, 0.9])
def test_any_stretch_has_the_share_and_each_part_its_own_epochs(share):
    mixed = RehearsedSet(Counted("new"), Counted("old"), share)
    stream = [mixed[position] for position in range(600)]
    for start in (0, 7, 123):
        for length in (10, 100, 400):
            num_old = sum(name == "old" for name, _ in stream[start : start + length])
            assert abs(num_old - share * length) < 1 + 1e-9
    for part in ("new", "old"):
        positions = [position for name, position in stream if name == part]
        assert positions == list(range(len(positions)))


def test_rehearsed_noise_is_not_that_of_the_new_data(tiny_pipeline, data):
    tokenizer = load_pipeline_parts(tiny_pipeline, offline=True).tokenizer
    options = SampleOptions(3, 64, "center_crop", False, 0.0, (4, 32, 32), 1000)
    known = (load_dataset(data / "OCT"), options, tokenizer)
    new, old = make_training_set(*known), make_training_set(*known, kind=RehearsalSet)
    assert not (new[0]["noise"] == old[0]["noise"]).any()
    assert (old[0]["noise"] == make_training_set(*known, kind=RehearsalSet)[0]["noise"]).all()


def test_a_pass_is_as_long_as_it_takes_to_show_every_new_image():
    assert pass_length(90, 0.1) == 100
    assert pass_length(90, 0.0) == 90


def test_an_empty_caption_stays_empty():
    assert fill_prompt(TEMPLATE, "", {"modality": "CXR"}) == ""
    assert fill_prompt(TEMPLATE, "no effusion", {"modality": " CXR "}) == "CXR: no effusion"
    assert fill_prompt(None, "no effusion", {}) == "no effusion"


@pytest.mark.parametrize("text", ["{modality}", "{text", "{text.label}", "CXR"])
def test_a_template_without_the_caption_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        prompt_template(text)


def test_an_empty_column_is_told_with_its_row_and_the_way_out(toy_dataset):
    records = load_dataset(toy_dataset).records
    with pytest.raises(UserError, match=r"(?s)modality.*metadata.csv:2.*\{text\}"):
        with_prompts(records, TEMPLATE, toy_dataset)


def test_the_pipeline_remembers_its_template(rehearsed, tiny_pipeline):
    output_dir, _ = rehearsed
    assert template_of(output_dir) == TEMPLATE
    assert settle_template(None, output_dir) == TEMPLATE
    assert settle_template("{text}", output_dir) is None
    assert template_of(tiny_pipeline) is None


def test_training_goes_on_with_the_models_template(rehearsed, data, tmp_path):
    assert (
        train(rehearsed[0], data, tmp_path / "more", "--max_train_steps=1")["template"] == TEMPLATE
    )
    flags = ("--max_train_steps=1", "--prompt_template={text}")
    plain = train(rehearsed[0], data, tmp_path / "plain", *flags)
    assert plain["template"] is None
    assert template_of(tmp_path / "plain") is None


def test_the_loss_on_rehearsed_patients_is_measured(rehearsed):
    with (rehearsed[0] / "validation_log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(float(row["rehearsal_loss"]) > 0 for row in rows)
    assert any(row["rehearsal_loss"] != row["loss"] for row in rows)


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(rehearsed, tiny_pipeline, data, tmp_path):
    output_dir, flags = rehearsed
    resumed = tmp_path / "resumed"
    shutil.copytree(output_dir / "checkpoint-2", resumed / "checkpoint-2")
    again = (*flags, "--resume_from_checkpoint=latest", f"--prompt_template={TEMPLATE}")
    train(tiny_pipeline, data, resumed, *again)
    assert is_complete(resumed / "checkpoint-4")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (resumed / weights).read_bytes() == (output_dir / weights).read_bytes()


def test_drawn_scans_keep_the_caption_and_tell_the_whole_prompt(rehearsed, data, tmp_path):
    argv = [f"--model={rehearsed[0]}", f"--prompts_from={data / 'CXR'}", "--num_images=2"]
    argv += ["--num_inference_steps=2", "--offline", f"--output_dir={tmp_path / 'drawn'}"]
    generate_synthetic_dataset.main(argv)
    captions = {record.text for record in load_dataset(data / "CXR")}
    for record in load_dataset(tmp_path / "drawn", allow_duplicates=True):
        assert record.text in captions
        assert record.row["prompt"] == f"CXR: {record.text}"


def test_a_prompt_without_modality_is_told(rehearsed, tmp_path, capsys):
    argv = [f"--model={rehearsed[0]}", "--prompt=effusion", "--offline"]
    argv += [f"--output_dir={tmp_path / 'drawn'}"]
    with pytest.raises(UserError, match="--prompt 1 has no modality"):
        generate_synthetic_dataset.main(argv)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rehearsal_share=0.2"], "--rehearsal_share needs --rehearsal"),
        (["--rehearsal={oct}", "--rehearsal_share=1"], "take one between"),
        (["--rehearsal={cxr}/"], "is what is trained on"),
        (["--rehearsal={oct}/nowhere"], "nowhere"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    tiny_pipeline, data, tmp_path, capsys, flags, message
):
    places = {"oct": data / "OCT", "cxr": data / "CXR"}
    with pytest.raises(SystemExit) as error:
        train(tiny_pipeline, data, tmp_path, *(flag.format(**places) for flag in flags))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_pairs_are_told_by_the_template(data, tmp_path):
    folder = data / "CXR" / "images"
    first, second = sorted(folder.iterdir())[:2]
    row = {"text": "edema", "preferred": first, "rejected": second, "modality": "OCT"}
    write_csv(tmp_path / "pairs.csv", [row], list(row))
    options = {"check_pixels": False, "skip_invalid": False, "template": TEMPLATE}
    assert {image.text for image in load_pairs(tmp_path / "pairs.csv", **options)} == {"OCT: edema"}


def test_a_model_of_the_hub_with_a_template_is_not_trained_without_it(tiny_pipeline):
    encoder = load_pipeline_parts(tiny_pipeline, offline=True).text_encoder
    keep_template(encoder, TEMPLATE, asked=TEMPLATE)
    with pytest.raises(UserError, match=r"--prompt_template"):
        keep_template(encoder, None, asked=None)
    keep_template(encoder, None, asked="{text}")
    assert not hasattr(encoder.config, "prompt_template")


def test_the_probe_asks_a_model_by_its_own_prompts(rehearsed, data, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(rehearsed[0], plain, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = plain / "text_encoder" / "config.json"
    content = json.loads(config.read_text())
    assert content.pop("prompt_template") == TEMPLATE
    config.write_text(json.dumps(content))
    probe = DenoisingProbe(load_dataset(data / "CXR", split="val"), 64, "center_crop", 0, "cpu")
    losses = [probe.ask(folder, offline=True).loss for folder in (rehearsed[0], plain)]
    assert losses[0] != losses[1]


def test_a_pass_counts_what_is_rehearsed_between_and_options_tell_the_data(rehearsed, data):
    options = json.loads((rehearsed[0] / "options.json").read_text())
    num_images = len(load_dataset(data / "CXR", split="train"))
    assert options["images"] == options["rehearsed"] == num_images
    assert options["plan"]["num_images"] == 2 * num_images
    assert options["rehearsed_data"] == load_dataset(data / "OCT", split="train").fingerprint


def test_another_share_or_template_at_a_resume_is_told(
    rehearsed, tiny_pipeline, data, tmp_path, capsys
):
    resumed = tmp_path / "resumed"
    shutil.copytree(rehearsed[0] / "checkpoint-2", resumed / "checkpoint-2")
    flags = [f"--rehearsal={data / 'OCT'}", "--rehearsal_share=0.25", "--max_train_steps=3"]
    train(tiny_pipeline, data, resumed, *flags, "--resume_from_checkpoint=latest")
    told = capsys.readouterr().err
    assert "rehearsal_share was 0.5 and is 0.25" in told
    assert "template was {modality}: {text} and is None" in told


def test_rehearsed_data_without_held_out_patients_trains_all_the_same(
    tiny_pipeline, data, tmp_path, capsys
):
    old = tmp_path / "old"
    shutil.copytree(data / "OCT", old)
    write_dataset(old, [r.row | {"split": "train"} for r in load_dataset(data / "OCT")])
    train(tiny_pipeline, data, tmp_path / "run", f"--rehearsal={old}", "--max_train_steps=1")
    assert "what is forgotten is not measured" in capsys.readouterr().err
    assert "rehearsal_loss" not in (tmp_path / "run" / "validation_log.csv").read_text()


def test_rehearsed_images_that_are_seen_too_often_are_told(capsys):
    warn_of_memorisation(Plan(1000, 10, 0, 500, 0), 900, num_rehearsed=2, share=0.1)
    told = capsys.readouterr().err
    assert "each rehearsed image will be seen 250 times (500 of 5000 samples, of 2 images)" in told
    assert "each image" not in told


def test_the_hash_of_a_prompt_is_of_all_that_is_drawn():
    prompt = Prompt("edema", "", "OCT", "here")
    assert replace(prompt, full="OCT: edema").sha256 != prompt.sha256
