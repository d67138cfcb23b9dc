import csv
import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from utils.cli import UserError
from utils.dataset import load_dataset
from utils.diffusion import load_pipeline_parts
from utils.latent_cache import count_cached, encode_once, is_cacheable
from utils.module_hash import hash_module
from utils.text_encoding import encode_text
from utils.training_batches import collate, make_loader
from utils.training_data import SampleOptions, encode_batch, make_training_set

ROOT = Path(__file__).parents[1]
OPTIONS = SampleOptions(
    seed=5,
    resolution=64,
    resize_mode="center_crop",
    random_flip=True,
    caption_dropout_prob=0.25,
    latent_shape=(4, 8, 8),
    num_timesteps=1000,
)
CROPS = replace(OPTIONS, resize_mode="random_crop", num_crops=2)
NUM_IMAGES = 12
NUM_CAPTIONS = NUM_IMAGES + 1  # and the empty one


@pytest.fixture
def parts(tiny_pipeline):
    return load_pipeline_parts(tiny_pipeline)


@pytest.fixture
def data(toy_dataset, tmp_path):
    """A copy of the toy data that a test may change."""
    return Path(shutil.copytree(toy_dataset, tmp_path / "data"))


class Kept:
    """What `encode_once` gave, and how many images and captions were encoded for it."""

    def __init__(self, samples, parts, folder, precision="no", **options):
        self.counts = {"images": 0, "captions": 0}
        hooks = [
            self._count(parts.vae.encoder, "images"),
            self._count(parts.text_encoder, "captions"),
        ]
        AcceleratorState._reset_state(True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        self.samples = encode_once(
            samples,
            parts,
            accelerator,
            folder=folder,
            **({"batch_size": 4, "num_workers": 0} | options),
        )
        for hook in hooks:
            hook.remove()

    def _count(self, module, name):
        def add(module, args, kwargs, output):
            self.counts[name] += len((*args, *kwargs.values())[0])

        return module.register_forward_hook(add, with_kwargs=True)

    @property
    def encoded(self):
        """Images and captions."""
        return self.counts["images"], self.counts["captions"]


@pytest.fixture
def keep(data, parts, tmp_path):
    """Encode the data; what is not told otherwise stays as it is."""

    def run(options=OPTIONS, *, source=data, model=parts, **others):
        samples = make_training_set(
            load_dataset(source, check_pixels=False), options, model.tokenizer
        )
        return Kept([samples], model, tmp_path / "cache", **others)

    return run


def shards_of(tmp_path, kind):
    return sorted((tmp_path / "cache").glob(f"{kind}-*/*.safetensors"))


def edit_image(path):
    pixels = np.array(Image.open(path))
    pixels[24, 32] ^= 128
    Image.fromarray(pixels).save(path, compress_level=0)  # the size does not change


def change_cell(data, old, new):
    table = data / "metadata.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


# What is kept


@pytest.mark.parametrize("options", [OPTIONS, CROPS, replace(OPTIONS, resize_mode="pad")])
def test_kept_latents_give_what_the_encoder_gives_every_time(keep, data, parts, options):
    fresh_samples = make_training_set(
        load_dataset(data, check_pixels=False), options, parts.tokenizer
    )
    kept = keep(options).samples[0]
    for positions in (range(5), range(40, 45)):  # mirrored ones and empty captions among them
        fresh = encode_batch(parts, collate([fresh_samples[p] for p in positions]), "cpu")
        stored = encode_batch(parts, collate([kept[p] for p in positions]), "cpu")
        assert torch.allclose(fresh[0], stored[0], atol=1e-5)
        assert torch.allclose(fresh[1], stored[1], atol=1e-5)


def test_latents_are_drawn_anew_from_what_is_kept(keep):
    kept = keep().samples[0]
    noises = [kept[position]["posterior_noise"] for position in (0, 12, 24)]
    assert not torch.equal(noises[0], noises[1])
    assert kept.latents.shards.shape == (NUM_IMAGES, 2, 1)
    entry = kept.latents[3, 1, 0]
    assert entry.shape == (2, 4, 8, 8)
    assert entry.dtype == torch.float32
    assert entry[1].min() > 0  # standard deviations


def test_what_is_kept_is_counted(keep, tmp_path):
    counted = count_cached(keep().samples)
    assert counted["entries"] == 2 * NUM_IMAGES + NUM_CAPTIONS
    assert counted["bytes"] == 4 * (2 * NUM_IMAGES * 2 * 4 * 8 * 8 + NUM_CAPTIONS * 77 * 32)


def test_embeddings_are_kept_in_the_type_of_the_arithmetic(keep):
    kept = keep(precision="bf16").samples[0]
    assert kept.captions.values[0].dtype == torch.bfloat16
    assert kept.latents[0, 0, 0].dtype == torch.float32
    assert keep().encoded == (2 * NUM_IMAGES, NUM_CAPTIONS)  # float32 is not taken from bf16


def test_captions_stay_token_ids_while_their_encoder_is_trained(keep, parts):
    kept = keep(with_text=False)
    batch = collate([kept.samples[0][position] for position in range(3)])
    latents, text = encode_batch(parts, batch, "cpu", with_text=False)
    assert kept.counts == {"images": 2 * NUM_IMAGES, "captions": 0}
    assert latents.shape == (3, 4, 8, 8)
    assert torch.equal(text, batch["text"])
    assert text.dtype == torch.int64


def test_captions_in_chunks_are_kept_whole(data, parts, tmp_path):
    dataset = load_dataset(data, check_pixels=False)
    samples = make_training_set(dataset, OPTIONS, parts.tokenizer, 2)
    kept = Kept([samples], parts, tmp_path / "cache").samples[0]
    ids = samples.captions.values[:1]
    expected = encode_text(parts.text_encoder, ids)[0]
    assert expected.shape == (2 * 77, 32)
    assert torch.allclose(kept.captions.values[0], expected, atol=1e-6)


def test_only_what_repeats_can_be_kept(data, parts):
    samples = make_training_set(load_dataset(data, check_pixels=False), OPTIONS, parts.tokenizer)
    assert is_cacheable([samples, None], wanted=None)
    assert not is_cacheable([samples], wanted=False)
    samples.options = CROPS
    assert is_cacheable([samples], wanted=None)
    samples.options = replace(CROPS, num_crops=None)
    assert not is_cacheable([samples], wanted=None)


# What is made anew


def test_a_second_run_encodes_nothing_and_leaves_the_vae_where_it_is(keep, parts):
    assert keep().encoded == (2 * NUM_IMAGES, NUM_CAPTIONS)
    moved = []
    parts.vae.to = lambda device: moved.append(str(device))  # a spy; nothing is missing
    assert keep().encoded == (0, 0)
    assert moved == ["cpu"]


def test_a_renamed_image_is_found_again(keep, data):
    keep()
    (data / "images" / "003.png").rename(data / "images" / "renamed.png")
    change_cell(data, "images/003.png", "images/renamed.png")
    assert keep().encoded == (0, 0)


def test_an_edited_image_alone_is_encoded_anew(keep, data):
    before = keep().samples[0].latents
    edit_image(data / "images" / "003.png")
    kept = keep()
    assert kept.encoded == (2, 0)
    latents = kept.samples[0].latents
    assert not torch.equal(latents[3, 0, 0], before[3, 0, 0])
    assert torch.equal(latents[4, 0, 0], before[4, 0, 0])


def test_an_edited_caption_alone_is_encoded_anew(keep, data):
    keep()
    change_cell(data, "foveal pit, scan 3", "foveal pit, scan three")
    assert keep().encoded == (0, 1)


@pytest.mark.parametrize(
    ("changes", "encoded"),
    [
        ({"seed": 6, "caption_dropout_prob": 0.1, "noise_offset": 0.1}, (0, 0)),
        ({"resolution": 32, "latent_shape": (4, 4, 4)}, (2 * NUM_IMAGES, 0)),
        ({"resize_mode": "pad"}, (2 * NUM_IMAGES, 0)),
        ({"random_flip": False}, (0, 0)),
    ],
)
def test_options_that_change_an_entry_and_no_others_make_it_anew(keep, changes, encoded):
    keep()
    assert keep(replace(OPTIONS, **changes)).encoded == encoded


def test_flips_add_the_mirrored_images_only(keep):
    keep(replace(OPTIONS, random_flip=False))
    assert keep().encoded == (NUM_IMAGES, 0)


@pytest.mark.parametrize(
    ("part", "weight", "encoded"),
    [
        ("vae", "encoder.conv_in.bias", (2 * NUM_IMAGES, 0)),
        ("vae", "quant_conv.bias", (2 * NUM_IMAGES, 0)),
        ("vae", "decoder.conv_in.bias", (0, 0)),
        ("unet", "conv_in.bias", (0, 0)),
        ("text_encoder", "final_layer_norm.bias", (0, NUM_CAPTIONS)),
    ],
)
def test_other_weights_make_anew_what_they_encode(keep, parts, part, weight, encoded):
    keep()
    weights = getattr(parts, part).state_dict()
    name = next(each for each in weights if each.endswith(weight))
    weights[name][0] += 0.5
    assert keep().encoded == encoded


def test_a_models_hash_does_not_tell_where_it_came_from(parts, tiny_pipeline, tmp_path):
    copy = load_pipeline_parts(shutil.copytree(tiny_pipeline, tmp_path / "copy"))
    for part in ("vae", "text_encoder"):
        assert hash_module(getattr(copy, part)) == hash_module(getattr(parts, part))
    copy.text_encoder.config.hidden_act = "gelu"
    assert hash_module(copy.text_encoder) != hash_module(parts.text_encoder)


def test_equal_pixels_and_equal_captions_are_encoded_once(keep, data):
    shutil.copy(data / "images" / "000.png", data / "images" / "003.png")
    change_cell(data, "foveal pit, scan 3", "foveal pit, scan 0")
    assert keep().encoded == (2 * NUM_IMAGES - 2, NUM_CAPTIONS - 1)


# Crops


def test_more_crops_add_to_those_there_are_whatever_the_seed(keep, tmp_path):
    assert keep(CROPS).encoded == (4 * NUM_IMAGES, NUM_CAPTIONS)
    grown = keep(replace(CROPS, num_crops=3, seed=6))
    assert grown.encoded == (2 * NUM_IMAGES, 0)
    shutil.rmtree(tmp_path / "cache")
    fresh = keep(replace(CROPS, num_crops=3)).samples[0].latents
    for place in np.ndindex(NUM_IMAGES, 2, 3):
        assert torch.allclose(grown.samples[0].latents[place], fresh[place], atol=1e-5)


def test_all_crops_are_used_and_differ(keep):
    kept = keep(replace(CROPS, num_crops=3, random_flip=False)).samples[0]
    assert not torch.equal(kept.latents[0, 0, 0], kept.latents[0, 0, 1])
    wanted = {kept.latents[0, 0, crop].sum().item() for crop in range(3)}
    name = kept.dataset[0].file_name
    drawn = [kept[position] for position in range(NUM_IMAGES * 20)]
    used = [torch.stack([s["mean"], s["std"]]).sum().item() for s in drawn if s["name"] == name]
    assert set(used) == wanted


# What goes wrong


@pytest.mark.parametrize("kind", ["latents", "texts"])
@pytest.mark.parametrize("harm", ["cut", "flip", "foreign"])
def test_damaged_shards_are_told_and_made_anew(keep, tmp_path, capsys, kind, harm):
    before = keep().samples[0]
    (path,) = shards_of(tmp_path, kind)
    whole = path.read_bytes()
    at = len(whole) - 100
    changed = {
        "cut": whole[:at],
        "flip": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "foreign": b"no shard",
    }
    path.unlink()  # its map in `before` stays as it was
    path.write_bytes(changed[harm])
    kept = keep()
    assert f"{path.name}: " in capsys.readouterr().err
    assert kept.encoded == ((2 * NUM_IMAGES, 0) if kind == "latents" else (0, NUM_CAPTIONS))
    assert torch.allclose(kept.samples[0].latents[3, 1, 0], before.latents[3, 1, 0], atol=1e-6)
    assert keep().encoded == (0, 0)


def test_an_interrupted_build_keeps_what_was_finished(keep, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.tensor_shards.SHARD_ENTRIES", 4)
    seen = []

    def stop(module, args, output):
        seen.append(len(args[0]))
        if sum(seen) > 12:
            raise KeyboardInterrupt

    hook = parts.vae.encoder.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        keep()
    hook.remove()
    assert len(shards_of(tmp_path, "latents")) == 3
    assert not list((tmp_path / "cache").rglob(".tmp-*"))
    assert keep().encoded == (2 * NUM_IMAGES - 12, NUM_CAPTIONS)


def test_a_folder_deleted_meanwhile_harms_neither_this_run_nor_the_next(keep, tmp_path):
    kept = keep()
    shutil.rmtree(tmp_path / "cache")
    batches = [range(3), range(3, 6)]
    loaded = list(make_loader(kept.samples[0], batches, num_workers=2, pin_memory=False))
    assert loaded[1]["mean"].shape == (3, 4, 8, 8)
    assert keep().encoded == (2 * NUM_IMAGES, NUM_CAPTIONS)


def test_workers_and_pickled_copies_read_the_same(keep):
    samples = keep().samples[0]
    batches = [range(3), range(3, 6)]
    alone = list(make_loader(samples, batches, num_workers=0, pin_memory=False))
    shared = list(make_loader(samples, batches, num_workers=2, pin_memory=False))
    copied = pickle.loads(pickle.dumps(samples))
    for one, two, batch in zip(alone, shared, batches):
        three = collate([copied[position] for position in batch])
        for key in ("mean", "std", "text"):
            assert torch.equal(one[key], two[key])
            assert torch.equal(one[key], three[key])


def test_images_are_read_by_workers_alike(keep, tmp_path):
    alone = keep(CROPS).samples[0].latents
    shutil.rmtree(tmp_path / "cache")
    shared = keep(CROPS, num_workers=2).samples[0].latents
    assert torch.equal(alone[5, 1, 1], shared[5, 1, 1])


def test_a_disk_too_small_is_an_error_or_a_warning(keep, data, parts, tmp_path, capsys):
    free = shutil.disk_usage(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: free._replace(free=1000))
        kept = keep()
        assert kept.samples[0].latents is None
        assert kept.encoded == (0, 0)
        assert "--latent_cache_dir" in capsys.readouterr().err
        with pytest.raises(UserError, match=r"needs .* GiB more .* free: .*--latent_cache_dir"):
            keep(required=True)
    keep()
    assert "to be made, " in capsys.readouterr().err


def test_a_folder_that_may_only_be_read_serves_what_it_has(
    keep, data, tmp_path, monkeypatch, capsys
):
    keep()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert keep().samples[0].latents is not None
    edit_image(data / "images" / "003.png")
    assert keep().samples[0].latents is None
    assert "may not be written to" in capsys.readouterr().err


def test_an_image_that_changes_meanwhile_is_not_kept_under_the_wrong_key(
    keep, data, tmp_path, monkeypatch
):
    import utils.pixel_digests as module

    read = module.read_image

    def read_then_edit(source, *, name):
        image = read(source, name=name)
        if Path(name).name == "003.png":
            edit_image(name)
        return image

    monkeypatch.setattr(module, "read_image", read_then_edit)
    with pytest.raises(UserError, match=r"metadata.csv:5: images/003.png was changed"):
        keep()
    assert shards_of(tmp_path, "latents") == []


def test_held_out_samples_share_the_cache(data, parts, tmp_path):
    dataset = load_dataset(data, check_pixels=False)
    sets = [make_training_set(dataset, each, parts.tokenizer) for each in (CROPS, CROPS.held_out())]
    kept = Kept([*sets, None], parts, tmp_path / "cache")
    assert kept.encoded == (4 * NUM_IMAGES + NUM_IMAGES, NUM_CAPTIONS)
    train, held_out, nothing = kept.samples
    assert nothing is None
    assert held_out.latents.shards.shape == (NUM_IMAGES, 1, 1)
    sample = held_out[0]
    caption = next(each.text for each in dataset if each.file_name == sample["name"])
    assert torch.equal(sample["text"], train.captions[caption])


# The pixels' hashes


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded for their hash; files count as settled at once."""
    import utils.pixel_digests as module

    names = []
    read = module.read_image

    def spy(source, *, name):
        names.append(Path(name).name)
        return read(source, name=name)

    monkeypatch.setattr(module, "read_image", spy)
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    return names


def test_only_changed_files_are_decoded_again(keep, data, decoded):
    path = data / "images" / "003.png"
    edit_image(path)
    keep()
    assert len(decoded) == NUM_IMAGES
    before = path.stat()
    edit_image(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as an unpacked archive has it
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)
    decoded.clear()
    assert keep().encoded == (2, 0)
    assert decoded == ["003.png"]


def test_a_file_changed_just_now_is_not_relied_on(keep, decoded, monkeypatch):
    monkeypatch.setattr("utils.pixel_digests.SETTLED_NS", 3_600 * 10**9)
    keep()
    keep()
    assert len(decoded) == 2 * NUM_IMAGES


def test_damaged_hashes_are_made_anew(keep, tmp_path, decoded):
    keep()
    (path,) = shards_of(tmp_path, "pixels")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    decoded.clear()
    assert keep().encoded == (0, 0)
    assert len(decoded) == NUM_IMAGES


def test_no_file_name_is_kept(keep, data, tmp_path, decoded):
    keep()
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            assert b"003.png" not in path.read_bytes()
            assert str(data).encode() not in path.read_bytes()


def test_images_in_a_tar_are_told_apart(keep, data, tmp_path, decoded):
    import tarfile

    with (
        (data / "metadata.csv").open(newline="") as file,
        tarfile.open(tmp_path / "a.tar", "w") as tar,
    ):
        for index, row in enumerate(csv.DictReader(file)):
            (tmp_path / "t.txt").write_text(row["text"])
            tar.add(data / row["file_name"], f"{index:03d}.png")
            tar.add(tmp_path / "t.txt", f"{index:03d}.txt")
    assert keep().encoded == (2 * NUM_IMAGES, NUM_CAPTIONS)
    decoded.clear()
    for _ in range(2):
        kept = keep(source=tmp_path / "a.tar")
        assert kept.encoded == (0, 0)
        assert len(decoded) == NUM_IMAGES
        latents = kept.samples[0].latents
        assert not torch.equal(latents[3, 0, 0], latents[4, 0, 0])


# Several processes

BUILD = """
import os, sys, torch
from pathlib import Path
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from utils.dataset import load_dataset
from utils.diffusion import load_pipeline_parts
from utils.latent_cache import encode_once
from utils.training_data import SampleOptions, make_training_set

model, data, folder = map(Path, sys.argv[1:])
rank = os.environ["RANK"]
parts = load_pipeline_parts(model)
counts = []
parts.vae.encoder.register_forward_hook(lambda module, args, output: counts.append(len(output)))
options = SampleOptions(5, 64, "center_crop", True, 0.25, (4, 8, 8), 1000)
samples = make_training_set(load_dataset(data, check_pixels=False), options, parts.tokenizer)

def build(name):
    counts.clear()
    accelerator = Accelerator(cpu=True)
    options = {"folder": folder / name, "batch_size": 4, "num_workers": 0}
    (kept,) = encode_once([samples], parts, accelerator, **options)
    latents = torch.stack([kept.latents[index, 1, 0] for index in range(12)])
    return {"images": sum(counts), "latents": latents, "processes": accelerator.num_processes}

results = [build("together")]
torch.distributed.destroy_process_group()
AcceleratorState._reset_state(True)
for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
    del os.environ[name]
results.append(build("apart"))
torch.save(results, folder / f"result.{rank}.pt")
"""


def test_processes_share_the_work_and_unrelated_runs_do_not_harm_each_other(
    keep, tiny_pipeline, data, tmp_path
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", BUILD, str(tiny_pipeline), str(data), str(tmp_path)]
    runs = [
        subprocess.Popen(
            argv, cwd=ROOT, env=os.environ | variables | {"RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    ]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    results = [torch.load(tmp_path / f"result.{rank}.pt", weights_only=True) for rank in "01"]
    together, apart = zip(*results)
    assert [result["processes"] for result in together + apart] == [2, 2, 1, 1]
    assert [result["images"] for result in together] == [NUM_IMAGES, NUM_IMAGES]
    expected = keep().samples[0].latents
    for result in together + apart:
        for index in range(NUM_IMAGES):
            assert torch.allclose(result["latents"][index], expected[index, 1, 0], atol=1e-5)
