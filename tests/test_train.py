import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import train_text_to_image
from utils.checkpoints import is_complete
from utils.cli import UserError
from utils.dataset import load_dataset
from utils.diffusion import load_pipeline_parts
from utils.interruption import Interruption, resume_command
from utils.latent_cache_flags import latent_cache_dir
from utils.precision import choose_precision
from utils.training_data import SampleOptions, make_training_set
from utils.training_datasets import load_training_data
from utils.training_journal import Journal
from utils.training_notes import warn_of_memorisation
from utils.training_state import Plan

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "train_text_to_image.py"

# Flags and defaults of examples/text_to_image/train_text_to_image.py in diffusers 0.42.
EXAMPLE_DEFAULTS = {
    "input_perturbation": 0,
    "pretrained_model_name_or_path": None,
    "revision": None,
    "variant": None,
    "dataset_name": None,
    "dataset_config_name": None,
    "train_data_dir": None,
    "image_column": "image",
    "caption_column": "text",
    "max_train_samples": None,
    "validation_prompts": None,
    "output_dir": Path("sd-model-finetuned"),
    "cache_dir": None,
    "seed": None,
    "resolution": 512,
    "center_crop": None,
    "random_flip": False,
    "image_interpolation_mode": "lanczos",
    "train_batch_size": 16,
    "num_train_epochs": 100,
    "max_train_steps": None,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "learning_rate": 1e-4,
    "scale_lr": False,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "snr_gamma": None,
    "dream_training": False,
    "dream_detail_preservation": 1.0,
    "use_8bit_adam": False,
    "allow_tf32": False,
    "use_ema": False,
    "offload_ema": False,
    "foreach_ema": False,
    "non_ema_revision": None,
    "dataloader_num_workers": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "push_to_hub": False,
    "hub_token": None,
    "prediction_type": None,
    "hub_model_id": None,
    "logging_dir": "logs",
    "mixed_precision": None,
    "report_to": "tensorboard",
    "local_rank": -1,
    "checkpointing_steps": 500,
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": None,
    "enable_xformers_memory_efficient_attention": False,
    "noise_offset": 0,
    "validation_epochs": 5,
    "tracker_project_name": "text2image-fine-tune",
}
OTHER_DEFAULTS = {"dataloader_num_workers": None}  # by the number of cores, not 0
OWN_DEFAULTS = {
    "allow_empty_captions": False,
    "cache_crops": None,
    "cache_latents": None,
    "cache_only": False,
    "caption": None,
    "caption_dropout_prob": 0.1,
    "compile": "no",
    "denoising_weight": 1.0,
    "dpo_beta": 2000.0,
    "ema_decay": 0.9999,
    "flip_swaps_sides": False,
    "early_stopping_patience": None,
    "label_column": None,
    "latent_cache_dir": None,
    "log_steps": 10,
    "long_captions": None,
    "lora_alpha": None,
    "lora_rank": 16,
    "lora_targets": ["to_q", "to_k", "to_v", "to_out.0"],
    "max_validation_images": 16,
    "offline": False,
    "patient_column": None,
    "preference_pairs": None,
    "prompt_template": None,
    "rehearsal": None,
    "rehearsal_share": None,
    "rescale_betas_zero_snr": False,
    "resize_mode": "random_crop",
    "skip_invalid": False,
    "text_encoder_name_or_path": None,
    "train": "unet",
    "train_split": "train",
    "validation_loss_steps": None,
    "validation_split": None,
    "validation_steps": None,
    "weight_column": None,
    "weights_as": "loss",
}


@pytest.fixture
def run_training(tiny_pipeline, toy_dataset, tmp_path, capsys):
    """Train on the toy data and return the result; later flags win."""

    def run(*flags, output_dir=None, data=toy_dataset, seed=0, status=0):
        argv = [
            f"--pretrained_model_name_or_path={tiny_pipeline}",
            f"--train_data_dir={data}",
            f"--output_dir={output_dir or tmp_path / 'out'}",
            *("--resolution=64", "--center_crop", "--train_batch_size=2", "--max_train_steps=2"),
            *("--lr_warmup_steps=0", "--report_to=none", "--offline", "--mixed_precision=no"),
            *([] if seed is None else [f"--seed={seed}"]),
            *map(str, flags),
        ]
        assert train_text_to_image.main(argv) == status
        if status == 0:
            return json.loads(capsys.readouterr().out)
        return None

    return run


def log_of(output_dir):
    with (output_dir / "train_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses_of(output_dir):
    return [float(row["loss"]) for row in log_of(output_dir)]


def weights_of(output_dir, part="unet"):
    return load_file(output_dir / part / "diffusion_pytorch_model.safetensors")


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def checkpoints_of(output_dir):
    return {path.name for path in output_dir.iterdir() if "checkpoint" in path.name}


def names_left_over(output_dir):
    return [path.name for path in output_dir.rglob(".tmp-*")]


def default_flags(tmp_path):
    data = tmp_path / "data.csv"
    data.touch()
    return ["--pretrained_model_name_or_path", "a/b", "--train_data_dir", str(data)]


# Flags


def test_every_flag_of_diffusers_example_is_there_with_its_default():
    parser = train_text_to_image.build_parser()
    actions = {name: a for a in parser._actions for name in a.option_strings}
    for name, default in (EXAMPLE_DEFAULTS | OTHER_DEFAULTS).items():
        action = actions[f"--{name}"]
        assert action.dest == "resize_mode" or action.default == default, name


def test_the_set_of_flags_is_pinned(tmp_path):
    given = ["pretrained_model_name_or_path", "train_data_dir"]
    defaults = vars(train_text_to_image.parse_args(default_flags(tmp_path)))
    expected = EXAMPLE_DEFAULTS | OTHER_DEFAULTS | OWN_DEFAULTS
    del expected["center_crop"]  # sets resize_mode
    assert defaults | dict.fromkeys(given) == expected


def test_the_later_of_two_crop_flags_wins(tmp_path):
    flags = default_flags(tmp_path)
    later = train_text_to_image.parse_args([*flags, "--center_crop", "--resize_mode", "pad"])
    assert later.resize_mode == "pad"
    assert train_text_to_image.parse_args([*flags, "--center_crop"]).resize_mode == "center_crop"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--resolution", "60"], "--resolution"),
        (["--train_batch_size", "0"], "--train_batch_size"),
        (["--caption_dropout_prob", "1.5"], "--caption_dropout_prob"),
        (["--learning_rate", "nan"], "--learning_rate"),
        (["--snr_gamma", "0"], "--snr_gamma"),
        (["--checkpoints_total_limit", "0"], "--checkpoints_total_limit"),
        (["--lr_scheduler", "step"], "--lr_scheduler"),
        (["--prediction_type", "sample"], "--prediction_type"),
        (["--mixed_precision", "fp8"], "--mixed_precision"),
        (["--pretrained_model_name_or_path", "./no/such/folder"], "model_name_or_path"),
        (["--train_data_dir", "no_such_folder"], "--train_data_dir"),
        (["--resume_from_checkpoint", "latest"], "--resume_from_checkpoint"),
        (["--resume_from_checkpoint", "checkpoint-7"], "--resume_from_checkpoint"),
        (["--max_train_step", "3"], "--max_train_step"),
        (["--hub_token", "secret"], "--hub_token"),
        (["--dataset_config_name", "default"], "--dataset_config_name"),
        (["--dataset_name", "a/b"], "--dataset_name"),
        (["--image_interpolation_mode", "bilinear"], "--image_interpolation_mode"),
        (["--report_to", "comet_ml"], "--report_to"),
        (["--push_to_hub"], "--hub_model_id"),
        (["--push_to_hub", "--hub_model_id", "a/b", "--offline"], "--offline"),
        (["--flip_swaps_sides"], "--flip_swaps_sides"),
        (["--cache_latents"], "--cache_crops K"),
        (["--cache_only"], "--cache_only: a random crop is new every time"),
        (["--cache_only", "--center_crop", "--no-cache_latents"], "--cache_only"),
        (["--cache_crops", "0"], "--cache_crops"),
        (["--cache_crops", "2", "--center_crop"], "--cache_crops needs --resize_mode random_crop"),
        (["--cache_crops", "2", "--no-cache_latents"], "--cache_crops: --no-cache_latents"),
        (["--latent_cache_dir", __file__], "--latent_cache_dir"),
        (["--rescale_betas_zero_snr", "--prediction_type", "epsilon"], "--rescale_betas_zero_snr"),
        (["--dream_training", "--prediction_type", "v_prediction"], "--dream_training"),
        (["--validation_split", "train"], "--validation_split"),
        (["--validation_split", "val", "--train_split", "all"], "--validation_split"),
        (["--validation_loss_steps", "5"], "--validation_split"),
        (["--early_stopping_patience", "2"], "--validation_split"),
        (["--train", "vae"], "--train"),
        (["--lora_rank", "0"], "--lora_rank"),
        (["--caption", "OCT, {label"], "--caption"),
    ],
)
def test_a_bad_flag_is_named_and_ends_with_status_2(tmp_path, capsys, flags, named):
    output = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        train_text_to_image.parse_args([*default_flags(tmp_path), *output, *flags])
    assert stop.value.code == 2
    assert named in capsys.readouterr().err.rsplit("error:", 1)[1]


@pytest.mark.parametrize(
    ("flag", "package"),
    [
        ("--use_8bit_adam", "bitsandbytes"),
        ("--enable_xformers_memory_efficient_attention", "xformers"),
        ("--report_to=wandb", "wandb"),
    ],
)
def test_a_missing_package_is_named_with_the_pip_command(
    tmp_path, capsys, monkeypatch, flag, package
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        flags = [*default_flags(tmp_path), "--report_to=none", flag]
        train_text_to_image.parse_args(flags)
    assert stop.value.code == 2
    assert f"pip install {package}" in capsys.readouterr().err


def test_the_latent_cache_lies_beside_the_model_and_never_in_it(tmp_path, capsys):
    out = tmp_path / "runs" / "out"
    flags = [*default_flags(tmp_path), "--output_dir", str(out)]
    args = train_text_to_image.parse_args(flags)
    assert latent_cache_dir(args) == tmp_path / "runs" / "latent_cache"
    for inside in (out, out / "cache", out / ".." / "out" / "cache"):
        with pytest.raises(SystemExit) as stop:
            train_text_to_image.parse_args([*flags, "--latent_cache_dir", str(inside)])
        assert stop.value.code == 2
        assert "must not travel" in capsys.readouterr().err


def test_a_secret_on_the_command_line_is_not_repeated(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_text_to_image.parse_args([*default_flags(tmp_path), "--hub_token", "hf_secret"])
    assert "hf_secret" not in capsys.readouterr().err


def test_the_base_model_is_not_overwritten(tiny_pipeline, tmp_path, capsys):
    flags = default_flags(tmp_path)
    flags[1] = str(tiny_pipeline)
    with pytest.raises(SystemExit):
        train_text_to_image.parse_args([*flags, "--output_dir", str(tiny_pipeline)])
    assert "--output_dir would overwrite" in capsys.readouterr().err


def test_checkpoints_of_an_earlier_run_are_not_mixed_with_a_new_one(tmp_path, capsys):
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(SystemExit) as stop:
        train_text_to_image.parse_args([*default_flags(tmp_path), f"--output_dir={tmp_path}"])
    assert stop.value.code == 2
    assert "--resume_from_checkpoint latest" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--help"], ["--train_batch_size", "0"]])
def test_help_and_flag_errors_answer_without_torch(flags):
    code = (
        "import sys, train_text_to_image as t\n"
        f"try: t.parse_args({flags!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'datasets', 'numpy', 'PIL', 'accelerate'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    began = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.process_time() - began < 1.5


# What comes out


def test_what_is_saved_loads_in_plain_diffusers_and_differs_from_the_base(
    run_training, tiny_pipeline, tmp_path
):
    from diffusers import StableDiffusionPipeline

    result = run_training("--validation_prompts", "normal", "drusen")
    output_dir = tmp_path / "out"
    assert result["steps"] == 2
    pipeline = StableDiffusionPipeline.from_pretrained(output_dir)
    image = pipeline("drusen", num_inference_steps=2, output_type="pil").images[0]
    assert image.size == (64, 64)
    assert pipeline.safety_checker is None
    base, trained = weights_of(tiny_pipeline), weights_of(output_dir)
    assert base.keys() == trained.keys()
    assert not same_weights(base, trained)
    for part in ("vae", "text_encoder"):
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        file = Path(part) / f"{name}.safetensors"
        assert (output_dir / file).read_bytes() == (tiny_pipeline / file).read_bytes()
    options = json.loads((output_dir / "options.json").read_text())
    assert options["flags"]["resolution"] == 64
    assert options["images"] == 8  # the train split
    assert len(options["data"]) == 64
    assert "not for diagnosis" in (output_dir / "model_card.md").read_text()
    assert names_left_over(output_dir) == []


def test_validation_pictures_are_not_black_and_are_marked_as_synthetic(run_training, tmp_path):
    run_training("--validation_prompts", "normal", "drusen", "--validation_steps", 1, "--use_ema")
    pictures = sorted((tmp_path / "out" / "validation").rglob("*.png"))
    assert [f"{path.parent.name}/{path.name}" for path in pictures] == [
        "step-1/00.png",
        "step-1/01.png",
        "step-2/00.png",
        "step-2/01.png",
    ]
    for path in pictures:
        with Image.open(path) as image:
            assert image.convert("L").getextrema()[1] > 50
            assert image.text["synthetic"] == "true"


def test_a_wide_csv_and_the_first_releases_columns_work(run_training, toy_dataset, tmp_path):
    table = tmp_path / "reports 1.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Text", "ImagePath"])
        for index in range(4):
            writer.writerow([f"finding {index}", toy_dataset / "images" / f"{index:03d}.png"])
    assert run_training("--image_column=image", "--caption_column=text", data=table)["images"] == 4


def test_class_folders_get_their_labels_as_captions(run_training, toy_dataset, tmp_path):
    classes = tmp_path / "classes"
    for label, numbers in {"drusen": (2, 5), "normal": (0, 3)}.items():
        (classes / label).mkdir(parents=True)
        for number in numbers:
            shutil.copy(toy_dataset / "images" / f"{number:03d}.png", classes / label)
    assert run_training(data=classes)["images"] == 4
    args = train_text_to_image.parse_args(
        [
            *default_flags(tmp_path),
            f"--train_data_dir={classes}",
            "--caption=OCT, {label}",
            "--mixed_precision=no",
        ]
    )
    accelerator = train_text_to_image.start_accelerator(args)
    dataset = load_training_data(args, accelerator, seed=0).images
    assert {record.text for record in dataset} == {"OCT, drusen", "OCT, normal"}


def test_the_first_releases_flags_work_as_they_stand(
    tiny_pipeline, toy_dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # accelerate launch's doing
    output_dir = tmp_path / "out"
    train_text_to_image.main(
        [
            f"--pretrained_model_name_or_path={tiny_pipeline}",
            f"--train_data_dir={toy_dataset}",
            "--use_ema",
            "--resolution=64",  # 512 there
            *("--center_crop", "--random_flip"),
            "--train_batch_size=4",  # 100 there
            "--gradient_accumulation_steps=4",
            "--gradient_checkpointing",
            "--max_train_steps=2",  # 5000 there
            "--learning_rate=1e-05",
            "--max_grad_norm=1",
            "--lr_scheduler=constant",
            "--lr_warmup_steps=0",
            f"--output_dir={output_dir}",
            "--validation_prompts",
            "normal",
            "mild retinal edema",
            "retinal pigment epithelium detachment",
            "Retinal pigment epithelial layer with strong reflection and bulge",
            "Cystic low-reflective areas of varying sizes can be seen between retinal layers",
        ]
    )
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    if not torch.cuda.is_available():
        assert result["mixed_precision"] == "no"
        assert "fp16 needs a GPU" in streams.err
    assert len(list((output_dir / "validation" / "step-2").iterdir())) == 5
    assert list((output_dir / "logs").rglob("events.out.tfevents*"))
    assert [row["step"] for row in log_of(output_dir)] == ["1", "2"]
    assert log_of(output_dir)[0]["epoch"] == "2"  # 16 images of 8 in the split


def test_the_first_loss_is_what_the_equations_say(
    run_training, tiny_pipeline, toy_dataset, tmp_path
):
    run_training("--max_train_steps=1", "--snr_gamma=5", "--mixed_precision=no")
    parts = load_pipeline_parts(tiny_pipeline)
    dataset = load_dataset(toy_dataset, split="train", check_pixels=False)
    options = SampleOptions(0, 64, "center_crop", False, 0.1, (4, 8, 8), 1000)
    samples = make_training_set(dataset, options, parts.tokenizer)
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square(), dim=0)
    losses = []
    for sample in (samples[0], samples[1]):
        alpha = alphas[sample["timestep"]]
        with torch.no_grad():
            posterior = parts.vae.encode(sample["pixels"][None]).latent_dist
            latents = (posterior.mean + posterior.std * sample["posterior_noise"]) * 0.18215
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * sample["noise"]
            text = parts.text_encoder(sample["text"]).last_hidden_state
            guess = parts.unet(noisy, sample["timestep"], text).sample
        weight = min(alpha / (1 - alpha), torch.tensor(5.0)) / (alpha / (1 - alpha))
        losses.append(weight * (guess[0] - sample["noise"]).square().mean())
    assert losses_of(tmp_path / "out") == pytest.approx([sum(losses).item() / 2], rel=1e-4)


def test_options_of_the_loss_reach_it(run_training, tmp_path):
    plain = tmp_path / "plain"
    run_training(output_dir=plain)
    for number, flags in enumerate(
        (
            ["--snr_gamma=0.01"],
            ["--noise_offset=0.5"],
            ["--input_perturbation=0.5"],
            ["--prediction_type=v_prediction"],
            ["--dream_training"],
        )
    ):
        other = tmp_path / str(number)
        run_training(*flags, output_dir=other)
        assert losses_of(other) != pytest.approx(losses_of(plain), abs=1e-4), flags


def test_zero_terminal_snr_is_stored_for_the_sampler(run_training, tmp_path):
    run_training("--rescale_betas_zero_snr", "--prediction_type=v_prediction", "--snr_gamma=5")
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert config["rescale_betas_zero_snr"] is True
    assert config["prediction_type"] == "v_prediction"
    assert config["timestep_spacing"] == "trailing"


def held_out_of(output_dir):
    with (output_dir / "validation_log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_held_out_loss_is_measured_with_fixed_noise(run_training, tmp_path):
    flags = ("--validation_split=val", "--validation_steps=1", "--learning_rate=1e-12")
    result = run_training(*flags)
    rows = held_out_of(tmp_path / "out")
    assert [row["step"] for row in rows] == ["1", "2"]
    assert float(rows[0]["loss"]) == pytest.approx(float(rows[1]["loss"]), rel=1e-5)
    assert result["validation_loss"] == pytest.approx(float(rows[1]["loss"]))


def test_the_held_out_loss_is_the_mean_of_its_ranges_of_timesteps(
    run_training, toy_dataset, tmp_path
):
    flags = ("--train_split=val", "--validation_split=train")  # 8 held-out images, 2 a range
    run_training(*flags, "--max_train_steps=1")
    (row,) = held_out_of(tmp_path / "out")
    names = ["loss_t0_249", "loss_t250_499", "loss_t500_749", "loss_t750_999"]
    assert list(row) == ["step", "loss", *names]
    ranges = [float(row[name]) for name in names]
    assert float(row["loss"]) == pytest.approx(sum(ranges) / 4, rel=1e-6)
    assert len(set(ranges)) == 4


def test_the_held_out_loss_has_an_interval_of_its_own(run_training, tmp_path):
    flags = ("--validation_split=val", "--validation_prompts=normal", "--max_train_steps=4")
    run_training(*flags, "--validation_loss_steps=2", "--validation_steps=3")
    assert [row["step"] for row in held_out_of(tmp_path / "out")] == ["2", "4"]
    drawn = {path.name for path in (tmp_path / "out" / "validation").iterdir()}
    assert drawn == {"step-3", "step-4"}


def test_training_ends_when_the_held_out_loss_no_longer_falls(run_training, tmp_path):
    flags = ("--validation_split=val", "--validation_loss_steps=1", "--max_train_steps=9")
    # The loss does not change at this rate, so that none is lower than the first
    result = run_training(*flags, "--early_stopping_patience=2", "--learning_rate=1e-30")
    assert result["steps"] == 3
    assert [row["step"] for row in log_of(tmp_path / "out")] == ["1", "2", "3"]
    assert [row["step"] for row in held_out_of(tmp_path / "out")] == ["1", "2", "3"]
    assert (tmp_path / "out" / "model_index.json").exists()


def test_patience_counts_measurements_from_before_a_resume(run_training, tmp_path):
    flags = ("--validation_split=val", "--validation_loss_steps=1", "--learning_rate=1e-30")
    flags += ("--early_stopping_patience=3", "--checkpointing_steps=2")
    run_training(*flags, "--max_train_steps=2")
    resumed = run_training(*flags, "--max_train_steps=9", "--resume_from_checkpoint=latest")
    assert resumed["steps"] == 4


def test_a_run_killed_when_its_patience_was_at_an_end_does_not_go_on(run_training, tmp_path):
    flags = ("--validation_split=val", "--validation_loss_steps=1", "--learning_rate=1e-30")
    flags += ("--early_stopping_patience=1", "--checkpointing_steps=2", "--max_train_steps=9")
    out = tmp_path / "out"
    assert run_training(*flags)["steps"] == 2
    log = out / "validation_log.csv"  # as it was between the checkpoint and the measurement
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    assert run_training(*flags, "--resume_from_checkpoint=latest")["steps"] == 2


def test_a_loss_that_falls_does_not_end_the_training():
    journal = SimpleNamespace(held_out=[(1, 0.5), (2, 0.6), (3, 0.4), (4, 0.45)])
    assert Journal.measurements_since_best(journal) == 1
    journal.held_out.append((5, 0.3))
    assert Journal.measurements_since_best(journal) == 0


def test_no_more_validation_pictures_are_drawn_than_allowed(run_training, tmp_path):
    prompts = ("--validation_prompts", "normal", "drusen", "edema")
    run_training(*prompts, "--max_validation_images=2")
    pictures = (tmp_path / "out" / "validation" / "step-2").iterdir()
    assert sorted(path.name for path in pictures) == ["00.png", "01.png"]


def test_the_log_tells_speed_time_left_and_memory(run_training, tmp_path):
    run_training("--max_train_steps=3", "--log_steps=1")
    rows = log_of(tmp_path / "out")
    assert float(rows[-1]["seconds_left"]) == 0
    speed = float(rows[0]["images_per_s"])
    assert float(rows[0]["seconds_left"]) == pytest.approx(2 * 2 / speed, rel=1e-4)
    for row in rows:
        assert 0.1 < float(row["peak_memory_gib"]) < 64
        assert float(row["grad_norm"]) > 0


class CountWaits(TorchDispatchMode):
    """Counts what makes a GPU's host wait: a tensor's value fetched as a number."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.waits += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_the_device_is_waited_for_at_log_steps_only(run_training, monkeypatch):
    waits = []
    counter = CountWaits()
    plain = Journal.end_step

    def end_step(self, step, **facts):
        waits.append(counter.waits)
        plain(self, step, **facts)

    monkeypatch.setattr(Journal, "end_step", end_step)
    with counter:
        run_training("--max_train_steps=6", "--log_steps=3", "--use_ema", "--snr_gamma=5")
    during = [after - before for before, after in pairwise(waits)]
    assert waits[0] > 0  # loading fetches numbers: the counter counts
    assert during[:2] == [0, 0]
    assert during[3:] == [0, 0]


@pytest.mark.parametrize(
    ("flag", "launched", "device_has_it", "expected"),
    [
        (None, None, True, "bf16"),
        (None, "no", True, "bf16"),
        (None, "no", False, "no"),
        ("no", "bf16", True, "no"),
        (None, "fp16", True, "no"),  # on a CPU
        ("bf16", "no", False, "bf16"),
    ],
)
def test_bf16_is_the_default_where_the_device_computes_in_it(
    monkeypatch, flag, launched, device_has_it, expected
):
    monkeypatch.setattr("utils.precision.has_fast_bf16", lambda device_type: device_has_it)
    if launched is None:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    else:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert choose_precision(flag, torch.device("cpu")) == expected


def test_bf16_trains_float32_weights(run_training, tmp_path):
    result = run_training("--mixed_precision=bf16", "--max_train_steps=1")
    assert result["mixed_precision"] == "bf16"
    assert {tensor.dtype for tensor in weights_of(tmp_path / "out").values()} == {torch.float32}


def test_a_seed_that_was_drawn_is_told_and_kept_for_resuming(run_training, tmp_path):
    drawn = run_training("--checkpointing_steps=1", "--max_train_steps=1", seed=None)["seed"]
    assert json.loads((tmp_path / "out" / "options.json").read_text())["seed"] == drawn
    assert run_training("--resume_from_checkpoint=latest", seed=None)["seed"] == drawn


# Same result


def test_the_same_seed_gives_the_same_bytes_with_and_without_kept_latents(run_training, tmp_path):
    flags = ("--random_flip", "--max_train_steps=3", "--caption_dropout_prob=0.5")
    run_training(*flags, output_dir=tmp_path / "one")
    run_training(*flags, output_dir=tmp_path / "two")
    assert same_weights(weights_of(tmp_path / "one"), weights_of(tmp_path / "two"))
    fresh = ("--no-cache_latents", "--dataloader_num_workers=2")
    run_training(*flags, *fresh, output_dir=tmp_path / "three")
    expected = pytest.approx(losses_of(tmp_path / "one"), abs=1e-5)
    assert losses_of(tmp_path / "three") == expected
    run_training(*flags, "--seed=1", output_dir=tmp_path / "four")
    assert losses_of(tmp_path / "four") != expected


def test_kept_crops_give_the_losses_of_crops_made_every_step(run_training, tmp_path, monkeypatch):
    flags = ("--resize_mode=random_crop", "--cache_crops=2", "--random_flip", "--max_train_steps=4")
    run_training(*flags, output_dir=tmp_path / "kept")
    assert list((tmp_path / "latent_cache").glob("latents-*/*.safetensors"))
    free = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    elsewhere = f"--latent_cache_dir={tmp_path / 'none'}"
    run_training(*flags, elsewhere, output_dir=tmp_path / "fresh")
    assert not list((tmp_path / "none").glob("latents-*"))
    expected = pytest.approx(losses_of(tmp_path / "kept"), abs=1e-5)
    assert losses_of(tmp_path / "fresh") == expected


def test_the_cache_can_be_filled_beforehand(run_training, tmp_path, capsys):
    result = run_training("--cache_only", "--validation_split=val")
    folder = tmp_path / "latent_cache"
    assert Path(result["latent_cache_dir"]) == folder
    assert result["entries"] == (8 + 2) + (8 + 1 + 2)  # images, then captions with the empty one
    shards = [path for path in folder.rglob("*.safetensors") if "pixels" not in str(path)]
    assert sum(path.stat().st_size for path in shards) > result["bytes"] > 10 * 2 * 4 * 8 * 8 * 4
    assert not (tmp_path / "out").exists()
    times = {path: path.stat().st_mtime_ns for path in shards}
    run_training("--validation_split=val")
    again = [path for path in folder.rglob("*.safetensors") if "pixels" not in str(path)]
    assert {path: path.stat().st_mtime_ns for path in again} == times


def test_a_resumed_run_ends_like_an_uninterrupted_one(run_training, tmp_path):
    flags = (
        *("--use_ema", "--random_flip", "--checkpointing_steps=2", "--max_train_steps=5"),
        *("--gradient_accumulation_steps=2", "--lr_scheduler=linear", "--lr_warmup_steps=3"),
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_training(*flags, output_dir=whole)
    assert checkpoints_of(whole) == {"checkpoint-2", "checkpoint-4"}
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    run_training(*flags, "--resume_from_checkpoint=latest", output_dir=resumed)
    assert same_weights(weights_of(whole), weights_of(resumed))
    for part in ("unet", "unet_ema"):
        one, other = (weights_of(folder / "checkpoint-4", part) for folder in (whole, resumed))
        assert same_weights(one, other)
    kept = ("step", "epoch", "loss", "lr", "grad_norm")
    rows = [[[row[key] for key in kept] for row in log_of(folder)] for folder in (whole, resumed)]
    assert rows[0] == rows[1]


# Checkpoints, as diffusers' own tests want them


def test_a_checkpoints_unet_loads_and_the_average_is_what_is_saved(
    run_training, tiny_pipeline, tmp_path
):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    out = tmp_path / "out"
    run_training("--use_ema", "--checkpointing_steps=2", "--max_train_steps=4")
    assert checkpoints_of(out) == {"checkpoint-2", "checkpoint-4"}
    unet = UNet2DConditionModel.from_pretrained(out, subfolder="checkpoint-2/unet")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, unet=unet)
    pipeline("a prompt", num_inference_steps=1)
    assert same_weights(weights_of(out), weights_of(out / "checkpoint-4", "unet_ema"))
    assert not same_weights(weights_of(out), weights_of(out / "checkpoint-4", "unet"))


def test_a_run_resumed_past_its_end_makes_one_step(run_training, tmp_path):
    out = tmp_path / "out"
    run_training("--use_ema", "--checkpointing_steps=2", "--max_train_steps=4")
    shutil.rmtree(out / "checkpoint-2")
    run_training("--use_ema", "--checkpointing_steps=1", "--resume_from_checkpoint=checkpoint-4")
    assert checkpoints_of(out) == {"checkpoint-4", "checkpoint-5"}


def test_the_limit_keeps_the_last_checkpoints(run_training, tmp_path):
    limit = "--checkpoints_total_limit=2"
    run_training("--checkpointing_steps=2", "--max_train_steps=7", limit)
    assert checkpoints_of(tmp_path / "out") == {"checkpoint-4", "checkpoint-6"}


def test_an_average_that_was_not_kept_cannot_be_resumed(run_training):
    run_training("--checkpointing_steps=1", "--max_train_steps=1")
    with pytest.raises(UserError, match="no --use_ema"):
        run_training("--use_ema", "--resume_from_checkpoint=latest")


# Signals


@pytest.fixture
def signal_after(monkeypatch):
    """Let a signal come while a step is under way."""

    def arrange(number, step_after):
        plain = Journal.end_step

        def end_step(self, step, **facts):
            plain(self, step, **facts)
            if step == step_after:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Journal, "end_step", end_step)

    yield arrange
    monkeypatch.undo()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_from_which_the_run_ends_as_if_it_had_not_come(
    run_training, signal_after, monkeypatch, tmp_path, capsys, number
):
    flags = ("--use_ema", "--max_train_steps=4", "--random_flip")
    run_training(*flags, output_dir=tmp_path / "whole")
    stopped = tmp_path / "stopped"
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    signal_after(number, 2)
    assert run_training(*flags, output_dir=stopped, status=128 + number) is None
    assert "--resume_from_checkpoint latest" in capsys.readouterr().err
    assert checkpoints_of(stopped) == {"checkpoint-2"}
    assert not (stopped / "model_index.json").exists()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    run_training(*flags, "--resume_from_checkpoint=latest", output_dir=stopped)
    assert same_weights(weights_of(tmp_path / "whole"), weights_of(stopped))
    assert losses_of(tmp_path / "whole") == losses_of(stopped)


def test_a_signal_that_comes_twice_is_one_and_a_second_ctrl_c_ends_at_once(monkeypatch):
    with Interruption(num_processes=1) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.agreed() == signal.SIGTERM
        monkeypatch.setattr("utils.interruption.SAME_SIGNAL_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_signals_that_a_launcher_ignores_end_the_script_while_it_loads():
    code = "import signal, utils.cli as c; c.answer_signals(); signal.raise_signal(signal.SIGTERM)"
    command = f"trap '' INT TERM; exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    assert subprocess.run(["bash", "-c", command], cwd=ROOT).returncode == -signal.SIGTERM


def test_the_command_to_go_on_can_be_pasted():
    argv = ["train_text_to_image.py", "--train_data_dir=my data", "--seed=1"]
    words = shlex.split(resume_command(argv))
    assert words == ["accelerate", "launch", *argv, "--resume_from_checkpoint", "latest"]


# What is trained


def draw(pipeline):
    generator = torch.Generator().manual_seed(0)
    image = pipeline("drusen", num_inference_steps=3, generator=generator, output_type="np")
    return torch.from_numpy(image.images[0])


def test_adapters_load_in_plain_diffusers_and_change_the_pictures(
    run_training, tiny_pipeline, tmp_path
):
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "out"
    flags = ("--train=lora", "--lora_rank=2", "--lora_alpha=8", "--learning_rate=0.01")
    assert run_training(*flags, "--use_ema", "--checkpointing_steps=2")["trained"] == "lora"
    base = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    before = draw(base)
    base.load_lora_weights(out / "lora")
    with_adapters = draw(base)
    assert (with_adapters - before).abs().max() > 0.01
    fused = draw(StableDiffusionPipeline.from_pretrained(out))  # its own U-Net has them inside
    assert (with_adapters - fused).abs().max() < 1e-3
    assert weights_of(out).keys() == weights_of(tiny_pipeline).keys()
    other = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    other.load_lora_weights(out / "checkpoint-2" / "lora_ema")
    assert torch.allclose(draw(other), with_adapters)


def test_only_the_adapters_are_trained_and_in_the_checkpoint(run_training, tiny_pipeline, tmp_path):
    out = tmp_path / "out"
    run_training("--train=lora", "--lora_targets", "to_q", "--checkpointing_steps=2")
    assert not (out / "checkpoint-2" / "unet").exists()
    base, trained = weights_of(tiny_pipeline), weights_of(out)
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert changed
    assert all(name.endswith("to_q.weight") for name in changed)


def test_adapters_for_layers_that_are_not_there_are_refused(run_training):
    with pytest.raises(UserError, match="--lora_targets nowhere"):
        run_training("--train=lora", "--lora_targets", "nowhere")


def test_the_text_encoder_is_trained_with_the_unet(run_training, tiny_pipeline, tmp_path):
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "out"
    flags = ("--train=unet+text_encoder", "--use_ema", "--gradient_checkpointing")
    run_training(*flags, "--validation_prompts", "drusen", "--validation_split=val")
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    base = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    assert not torch.equal(draw(pipeline), draw(base))
    for part in ("unet", "text_encoder"):
        one, other = (getattr(each, part).state_dict() for each in (pipeline, base))
        assert not same_weights(one, other)
    assert same_weights(pipeline.vae.state_dict(), base.vae.state_dict())


@pytest.mark.parametrize("what", ["lora", "unet+text_encoder"])
def test_whatever_is_trained_a_resumed_run_ends_like_an_uninterrupted_one(
    run_training, tiny_pipeline, tmp_path, what
):
    model = tmp_path / "with_dropout"  # whose random numbers are part of the state
    shutil.copytree(tiny_pipeline, model)
    path = model / "text_encoder" / "config.json"
    config = json.loads(path.read_text()) | {"attention_dropout": 0.2}
    path.write_text(json.dumps(config))
    flags = (
        *(f"--train={what}", f"--pretrained_model_name_or_path={model}", "--use_ema"),
        *("--max_train_steps=4", "--checkpointing_steps=2", "--learning_rate=0.001"),
        *("--validation_split=val", "--validation_steps=1"),
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_training(*flags, output_dir=whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    run_training(*flags, "--resume_from_checkpoint=latest", output_dir=resumed)
    for file in (Path("train_log.csv"), Path("validation_log.csv")):
        kept = slice(0, 5)  # without the times
        rows = [
            [line.split(",")[kept] for line in (folder / file).read_text().splitlines()]
            for folder in (whole, resumed)
        ]
        assert rows[0] == rows[1]
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    files = [file for file in files if "checkpoint-2" not in file.parts]
    assert len(files) >= 5
    for file in files:
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file


def test_a_checkpoint_of_another_kind_of_training_is_refused(run_training):
    run_training("--checkpointing_steps=1", "--max_train_steps=1")
    with pytest.raises(UserError, match="lora is missing: the run was started otherwise"):
        run_training("--train=lora", "--resume_from_checkpoint=latest")


# What goes wrong


def test_broken_data_ends_before_a_model_is_loaded_and_writes_nothing(
    run_training, toy_dataset, tmp_path, monkeypatch
):
    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("utils.diffusion.load_pipeline", load)
    broken = tmp_path / "broken"
    shutil.copytree(toy_dataset, broken)
    (broken / "images" / "001.png").write_bytes(b"no picture")
    (broken / "images" / "002.png").unlink()
    with pytest.raises(UserError, match=r"(?s)metadata.csv:3.*metadata.csv:4|metadata.csv:4"):
        run_training(data=broken)
    assert not (tmp_path / "out").exists()


def test_a_flip_that_falsifies_captions_ends_before_a_model_is_loaded(
    run_training, toy_dataset, tmp_path
):
    sided = tmp_path / "sided"
    shutil.copytree(toy_dataset, sided)
    table = sided / "metadata.csv"
    table.write_text(table.read_text().replace("cystic spaces, scan 1", "a cyst on the left, 1"))
    with pytest.raises(UserError, match=r"metadata.csv:3: left: .*a cyst on the left"):
        run_training("--random_flip", data=sided)
    assert not (tmp_path / "out").exists()
    assert run_training("--random_flip", "--flip_swaps_sides", data=sided)["steps"] == 2


def test_data_with_neither_captions_nor_labels_is_refused(run_training, toy_dataset):
    with pytest.raises(UserError, match="neither captions nor labels"):
        run_training(data=toy_dataset / "images")


def test_processes_that_would_each_train_alone_are_refused(run_training, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun's doing; accelerate joins them on GPUs only
    with pytest.raises(UserError, match="2 processes were started"):
        run_training()
    assert not (tmp_path / "out").exists()


def test_invalid_rows_are_skipped_if_asked_for(run_training, toy_dataset, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(toy_dataset, broken)
    (broken / "images" / "001.png").write_bytes(b"no picture")
    assert run_training("--skip_invalid", data=broken)["images"] == 7
    options = json.loads((tmp_path / "out" / "options.json").read_text())
    assert len(options["skipped"]) == 1


def test_a_loss_of_nan_stops_with_step_and_images(run_training, tmp_path):
    with pytest.raises(UserError, match=r"step \d: loss .*images/0\d\d\.png"):
        run_training("--learning_rate=1e30", "--max_train_steps=6", "--checkpointing_steps=6")
    assert checkpoints_of(tmp_path / "out") == set()
    assert not (tmp_path / "out" / "model_index.json").exists()


def test_many_views_of_an_image_are_warned_of(capsys):
    warn_of_memorisation(Plan(8, 2, 0, 800, 0), 8)
    assert capsys.readouterr().err == ""
    warn_of_memorisation(Plan(8, 2, 0, 4000, 0), 8)
    assert "seen 1000 times" in capsys.readouterr().err


def test_a_second_ctrl_c_while_saving_leaves_nothing_half_written(
    run_training, tmp_path, monkeypatch
):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.trained_weights.save_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_training("--checkpointing_steps=1")
    assert checkpoints_of(tmp_path / "out") == set()
    assert names_left_over(tmp_path / "out") == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 7 MB: room for one checkpoint of 4.2 MB and not for two."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint_whole(run_training, small_disk):
    out = small_disk / "out"
    flags = ("--use_ema", "--checkpointing_steps=1", "--checkpoints_total_limit=1")
    with pytest.raises(UserError, match=r"(?s)disk is full: .*checkpoint-2 .*checkpoint latest"):
        run_training(*flags, output_dir=out)
    assert checkpoints_of(out) == {"checkpoint-1"}
    assert is_complete(out / "checkpoint-1")


def test_a_disk_too_full_for_the_pipeline_is_named(run_training, small_disk):
    (small_disk / "other").write_bytes(bytes(6_000_000))
    with pytest.raises(UserError, match=r"disk is full: .*out "):
        run_training(output_dir=small_disk / "out")
    assert names_left_over(small_disk) == []
    assert not (small_disk / "out" / "model_index.json").exists()


def test_nothing_is_uploaded_but_pipeline_and_card(run_training, tmp_path, monkeypatch):
    import huggingface_hub

    calls = {}

    class Hub:
        def create_repo(self, name, **options):
            calls["create"] = options

        def upload_folder(self, **options):
            calls["folder"] = options

        def upload_file(self, **options):
            calls["file"] = options

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    run_training()
    assert calls == {}
    args = train_text_to_image.argparse.Namespace(hub_model_id="a/b", output_dir=tmp_path / "out")
    train_text_to_image.push(args)
    assert calls["create"]["private"] is True
    assert not any(
        "checkpoint" in name or "log" in name for name in calls["folder"]["allow_patterns"]
    )
    assert calls["file"]["path_in_repo"] == "README.md"


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_every_part_is_safetensors(run_training, tmp_path, part):
    run_training("--max_train_steps=1")
    suffixes = {path.suffix for path in (tmp_path / "out" / part).iterdir()}
    assert suffixes == {".json", ".safetensors"}
