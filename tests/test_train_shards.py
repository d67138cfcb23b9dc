"""Training on shards: resumed like uninterrupted, whatever the number of the loader's workers."""

import csv
import io
import json
import pickle
import shutil
import tarfile

import pytest
import torch
from safetensors.torch import load_file

import train_text_to_image
from utils.captioned_data import load_captioned
from utils.dataset import load_dataset
from utils.dataset_records import USUAL_COLUMNS
from utils.diffusion import load_pipeline_parts
from utils.sample_weights import read_weights
from utils.training_batches import make_loader
from utils.training_data import SampleOptions, make_training_set

OPTIONS = SampleOptions(
    seed=5,
    resolution=64,
    resize_mode="center_crop",
    random_flip=True,
    caption_dropout_prob=0.25,
    latent_shape=(4, 8, 8),
    num_timesteps=1000,
)
WEIGHTS = [1, 2.5, 0, 4, 1, 1, 0, 0.5, 1, 2, 3, 1]


@pytest.fixture
def shards(toy_dataset, tmp_path):
    """Four shards of three toy images each, as a pattern for the shell to leave alone."""
    folder = tmp_path / "shards"
    folder.mkdir()
    with (toy_dataset / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    weights = iter(WEIGHTS)
    for number in range(4):
        with tarfile.open(folder / f"oct-{number:03d}.tar", "w") as tar:
            for row in rows[3 * number : 3 * number + 3]:
                stem = row["file_name"].split("/")[1].removesuffix(".png")
                image = (toy_dataset / row["file_name"]).read_bytes()
                facts = {"split": row["split"], "weight": next(weights)}
                for name, data in (
                    (f"{stem}.png", image),
                    (f"{stem}.txt", row["text"].encode()),
                    (f"{stem}.json", json.dumps(facts).encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"{folder}/oct-{{000..003}}.tar"


@pytest.fixture
def small_windows(monkeypatch):
    """Two shards in a window, so that four shards are shuffled in blocks."""
    monkeypatch.setattr("utils.sample_order.WINDOW_BLOCKS", 2)
    monkeypatch.setattr("utils.sample_order.WINDOW_IMAGES", 4)


@pytest.fixture
def run_training(tiny_pipeline, shards, capsys):
    def run(*flags, output_dir):
        argv = [
            f"--pretrained_model_name_or_path={tiny_pipeline}",
            f"--train_data_dir={shards}",
            f"--output_dir={output_dir}",
            *("--resolution=64", "--center_crop", "--train_batch_size=2", "--random_flip"),
            *("--lr_warmup_steps=0", "--report_to=none", "--offline", "--seed=0", "--use_ema"),
            *("--train_split=all", "--max_train_steps=9", "--checkpointing_steps=2"),
            *flags,
        ]
        assert train_text_to_image.main(argv) == 0
        return json.loads(capsys.readouterr().out)

    return run


def rows_of(output_dir):
    with (output_dir / "train_log.csv").open(newline="") as file:
        return [(row["step"], row["loss"], row["grad_norm"]) for row in csv.DictReader(file)]


def weights_of(output_dir):
    return load_file(output_dir / "unet" / "diffusion_pytorch_model.safetensors")


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_over_shards_ends_like_an_uninterrupted_one(
    run_training, small_windows, tmp_path
):
    whole, resumed, again = (tmp_path / name for name in ("whole", "resumed", "again"))
    assert run_training(output_dir=whole)["images"] == 12
    for folder, kept, workers in ((resumed, 4, 0), (again, 6, 2)):  # in epoch 0; on its border
        shutil.copytree(whole, folder)
        for step in range(kept + 2, 9, 2):
            shutil.rmtree(folder / f"checkpoint-{step}")
        flags = ("--resume_from_checkpoint=latest", f"--dataloader_num_workers={workers}")
        run_training(*flags, output_dir=folder)
        assert same_weights(weights_of(whole), weights_of(folder))
        assert rows_of(whole) == rows_of(folder)


def test_the_number_of_workers_changes_nothing_where_images_are_read(
    run_training, small_windows, tmp_path
):
    for workers in (0, 2):
        flags = ("--no-cache_latents", f"--dataloader_num_workers={workers}")
        run_training(*flags, output_dir=tmp_path / str(workers))
    assert same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / "2"))


def test_samples_of_shards_come_window_by_window_and_are_what_the_shards_hold(
    shards, small_windows, tiny_pipeline
):
    dataset = load_dataset(shards, check_pixels=False)
    samples = make_training_set(dataset, OPTIONS, load_pipeline_parts(tiny_pipeline).tokenizer)
    names = [samples[position]["name"] for position in range(24)]
    for epoch in (names[:12], names[12:]):
        assert sorted(epoch) == [record.file_name for record in dataset]
        assert len({name.split("/")[0] for name in epoch[:6]}) == 2
    assert names[:12] != names[12:]


def test_loader_processes_read_the_same_tars(shards, tiny_pipeline):
    dataset = load_dataset(shards, check_pixels=False)
    samples = make_training_set(dataset, OPTIONS, load_pipeline_parts(tiny_pipeline).tokenizer)
    alone = [samples[position] for position in range(12)]  # opens the tars before they are shared
    batches = [range(4), range(4, 8), range(8, 12)]
    loader = make_loader(samples, batches, num_workers=2, pin_memory=False)
    pixels = torch.cat([batch["pixels"] for batch in loader])
    assert torch.equal(pixels, torch.stack([sample["pixels"] for sample in alone]))
    sent = pickle.loads(pickle.dumps(samples))  # as to a process that is no fork
    assert torch.equal(sent[3]["pixels"], alone[3]["pixels"])


def test_weights_are_read_from_shards_and_images_of_weight_0_left_out(
    run_training, shards, tmp_path
):
    run = {"columns": USUAL_COLUMNS, "split": None, "template": None, "check_pixels": False}
    run |= {"skip_invalid": False, "offline": True}
    dataset = load_captioned(shards, weight_column="weight", **run)
    left = [weight for weight in WEIGHTS if weight]
    assert dataset.blocks == (2, 3, 2, 3)
    expected = [10 * weight / sum(left) for weight in left]
    assert read_weights(dataset, "weight").tolist() == pytest.approx(expected)
    result = run_training("--weight_column=weight", output_dir=tmp_path / "out")
    assert result["images"] == 10
