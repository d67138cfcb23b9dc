"""Masked-autoencoder pre-training: what it sees and refuses, what it writes, how it resumes."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import self_supervised
from utils.backbone_names import VitSizes
from utils.backbone_weights import full_name, load_backbone_weights
from utils.backbones import build_network
from utils.cli import UserError
from utils.gray_images import GrayImages
from utils.mae_batches import StepPlan, draw_crops, held_out_batches, random_crop
from utils.mae_model import MaeOptions, build_mae, normalise, reconstruct, to_gray

ROOT = Path(__file__).parents[1]
TINY = [
    *("--resolution", "32", "--mae_width", "64", "--mae_depth", "2", "--patch_size", "8"),
    *("--decoder_width", "32", "--decoder_depth", "1", "--pretrain_batch_size", "8"),
    *("--num_workers", "0", "--device", "cpu", "--offline"),
]
SPLITS = ("train",) * 8 + ("val",) * 3 + ("test",) * 3


def write_scans(folder, splits=SPLITS, *, prefix="p", seed=0, labelled=True):
    """A dataset folder of two images per patient, whose bright band tells the label."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = []
    for patient, split in enumerate(splits):
        for image in range(2):
            pixels = rng.integers(0, 120, (40, 40)).astype(np.uint8)
            pixels[8 + 8 * (patient % 3) :][:8] += 100
            name = f"images/{prefix}{patient}-{image}.png"
            Image.fromarray(pixels).save(folder / name)
            row = {"file_name": name, "patient_id": f"{prefix}{patient}", "split": split}
            rows.append(row | {"text": "scan", "label": "abc"[patient % 3] if labelled else ""})
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("data") / "clinic")


def run(clinic, folder, *flags, steps=6):
    data = ["--real_dir", str(clinic), "--output_dir", str(folder)]
    arms = [] if "--arms" in flags else ["--arms"]  # pre-train only
    return self_supervised.main([*data, *TINY, "--pretrain_steps", str(steps), *arms, *flags])


@pytest.fixture(scope="module")
def finished(clinic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mae"
    assert run(clinic, folder, "--validation_steps", "4") == 0
    return folder


def encoder(folder):
    return (folder / "encoder.safetensors").read_bytes()


def options(**changes):
    usual = {"encoder": VitSizes(64, 2, 8), "resolution": 32, "decoder_width": 32}
    usual |= {"decoder_depth": 1, "mask_ratio": 0.75, "norm_pix_loss": True}
    return MaeOptions(**usual | changes)


def pixels(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalise(torch.rand(count, 1, 32, 32, generator=generator))


class Scan:
    """What GrayImages needs of a record."""

    def __init__(self, number):
        self.where, self.number = f"scan {number}", number

    def image(self):
        value = np.random.default_rng(self.number).integers(0, 255, (32, 32))
        return Image.fromarray(value.astype(np.uint8))


def scans(count=12):
    return GrayImages([Scan(n) for n in range(count)], resolution=32, resize_mode="stretch")


# The model


def test_a_new_model_knows_where_its_patches_are():
    model = build_mae(options(), seed=0)
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        width = positions.shape[2]
        row, column = 2, 3
        frequency = 1 / 10_000 ** (np.arange(width // 4) / (width // 4))
        waves = [f(n * frequency) for n in (row, column) for f in (np.sin, np.cos)]
        found = positions[0, 1 + 4 * row + column].numpy()
        np.testing.assert_allclose(found, np.concatenate(waves), atol=1e-6)
        assert not positions.requires_grad and not positions[0, 0].any()
    assert model.vit.embeddings.cls_token.any() and model.decoder.mask_token.any()


def test_a_new_model_depends_on_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other, third = (build_mae(options(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["vit.layers.0.mlp.fc1.weight"], third["vit.layers.0.mlp.fc1.weight"])


def test_a_patch_told_relatively_is_filled_in_with_its_mean_where_nothing_is_told():
    model = build_mae(options(), seed=0).eval()
    model.decoder.decoder_pred.weight.data.zero_()
    masking = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    images, masked, filled = reconstruct(model, pixels(), masking)
    for image, seen, whole, noise in zip(images, masked, filled, masking):
        kept = set(noise.argsort()[:4].tolist())
        for patch in range(16):
            area = (0, *(slice(8 * n, 8 * n + 8) for n in divmod(patch, 4)))
            if patch in kept:
                assert torch.equal(seen[area], image[area]) and torch.equal(
                    whole[area], image[area]
                )
            else:
                assert (seen[area] == 0.5).all()
                wanted = image[area].mean().expand(8, 8)
                # The deviation of the three channels is told with the patch's, hence not exactly.
                torch.testing.assert_close(whole[area], wanted, atol=0.05, rtol=0)


def test_normalise_is_undone():
    gray = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(to_gray(normalise(gray)), gray)


# What it sees


def plan(**changes):
    usual = {"seed": 3, "batch_size": 4, "num_patches": 16, "flip": False}
    return StepPlan(**usual | changes)


def test_processes_share_the_batch_of_one_and_a_resumed_run_sees_the_same():
    whole = list(plan().batches(scans(), range(6)))
    parts = [
        list(plan(rank=rank, num_processes=2).batches(scans(), range(3, 6))) for rank in (0, 1)
    ]
    for number in range(3):
        halves = [part[number] for part in parts]
        one = whole[3 + number]
        assert torch.equal(torch.cat([half.images for half in halves]), one.images)
        assert torch.equal(torch.cat([half.masking for half in halves]), one.masking)
        assert halves[0].names + halves[1].names == one.names
    assert not torch.equal(whole[0].masking, whole[1].masking)


def test_an_epoch_shows_every_image_once_and_another_seed_another_order():
    names = [name for batch in plan().batches(scans(), range(3)) for name in batch.names]
    assert sorted(names) == sorted(f"scan {n}" for n in range(12))
    other = [name for batch in plan(seed=4).batches(scans(), range(3)) for name in batch.names]
    assert names != other


def test_crops_are_mild_inside_the_image_and_mirrored_only_when_told():
    crops = draw_crops(2000, np.random.default_rng(0), flip=False)
    width, height = crops[:, 0, 0], crops[:, 1, 1]
    area = width * height
    assert 0.58 < area.min() < 0.62 and area.max() <= 1 and 0.75 < area.mean() < 0.82
    assert (width > 0).all() and (width / height).max() < 1.151 and (height / width).max() < 1.151
    for size, place in ((width, crops[:, 0, 2]), (height, crops[:, 1, 2])):
        assert (place.abs() + size <= 1 + 1e-6).all() and size.max() <= 1
    mirrored = draw_crops(2000, np.random.default_rng(0), flip=True)[:, 0, 0] < 0
    assert 0.45 < mirrored.float().mean() < 0.55
    image = torch.rand(1, 1, 32, 32)
    whole = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    torch.testing.assert_close(random_crop(image, whole), image)
    flipped = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    torch.testing.assert_close(random_crop(image, flipped), image.flip(-1))


def test_held_out_images_are_whole_and_keep_their_masks():
    one, other = (held_out_batches(scans(5), seed=0, num_patches=16, batch_size=2) for _ in "ab")
    assert [len(batch.names) for batch in one] == [2, 2, 1]
    for a, b in zip(one, other):
        assert torch.equal(a.masking, b.masking) and torch.equal(a.images, b.images)
    first = to_gray(one[0].images)[0, 0]
    wanted = torch.from_numpy(np.array(Scan(0).image())) / 255
    torch.testing.assert_close(first, wanted, atol=1e-6, rtol=0)


# What it writes


def test_the_encoder_says_what_transformers_model_says(finished, tmp_path):
    from transformers import ViTMAEModel

    from utils import features

    reference = ViTMAEModel.from_pretrained(finished / "mae", mask_ratio=0.0).eval()
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 255, (3, 32, 32)).astype(np.uint8)
    images = torch.from_numpy(gray)[:, None].float() / 255
    in_order = torch.arange(16.0).expand(3, -1)
    with torch.inference_mode():
        hidden = reference(normalise(images), noise=in_order).last_hidden_state
        wanted = hidden[:, 1:].mean(dim=1).numpy()
    extractor = features.load_extractor("vit", weights=finished / "encoder.safetensors")
    found = features.extract(extractor, [Image.fromarray(one) for one in gray]).pool
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    # As a classifier's backbone the mean is normed, not the tokens: undo the reference's last norm.
    source = str(finished / "encoder.safetensors")
    assert full_name("vit", source) == "vit-64-2-8"
    network = build_network("vit-64-2-8", num_labels=2, resolution=32, seed=1).eval()
    load_backbone_weights(network, "vit-64-2-8", source, offline=True)
    with torch.inference_mode():
        reference.layernorm = torch.nn.Identity()
        tokens = reference(normalise(images), noise=in_order).last_hidden_state
        mean = torch.nn.functional.layer_norm(tokens[:, 1:].mean(dim=1), (64,), eps=1e-6)
        torch.testing.assert_close(network.features(images), mean, atol=1e-5, rtol=1e-5)


def test_a_run_leaves_its_table_its_pictures_and_its_result(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"options.json", "mae", "encoder.safetensors", "pretraining.csv"}
    assert names >= {"reconstructions.png", "report.html", "pretraining.json"}
    assert not list(finished.rglob("checkpoint-*")) and not list(finished.rglob(".tmp-*"))
    rows = list(csv.DictReader((finished / "pretraining.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["val_loss"]) for row in rows] == [False] * 3 + [True, False, True]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[0]["lr"]) > float(rows[-1]["lr"]) > 0
    result = json.loads((finished / "pretraining.json").read_text())
    assert result["images"] == {"real": 16} and result["validation_images"] == 6
    assert result["encoder"]["backbone"] == "vit-64-2-8"
    assert float(rows[-1]["val_loss"]) == pytest.approx(result["validation_loss"])
    assert Image.open(finished / "reconstructions.png").size == (6 * 34 - 2, 3 * 34 - 2)
    assert "Loss of the masked patches" in (finished / "report.html").read_text()


def test_the_same_command_finds_it_done_and_another_is_refused(finished, clinic, capsys):
    before = encoder(finished), (finished / "pretraining.json").stat().st_mtime_ns
    assert run(clinic, finished, "--validation_steps", "4") == 0
    assert "the encoder is done" in capsys.readouterr().err
    assert before == (encoder(finished), (finished / "pretraining.json").stat().st_mtime_ns)
    with pytest.raises(UserError, match="--seed: 0 before, 1 now"):
        run(clinic, finished, "--validation_steps", "4", "--seed", "1")


def test_the_validation_loss_is_a_mean_over_images_whatever_the_batches(
    clinic, tmp_path, monkeypatch
):
    losses = []
    for size in (6, 4):
        monkeypatch.setattr(self_supervised, "VALIDATION_BATCH", size)
        run(clinic, tmp_path / str(size), steps=1)
        result = json.loads((tmp_path / str(size) / "pretraining.json").read_text())
        losses.append(result["validation_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def stop_when(path, number):
    """Send this process a signal as soon as a path exists."""

    def wait():
        while not path.exists():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def test_a_stopped_run_goes_on_and_ends_with_the_bytes_of_an_uninterrupted_one(clinic, tmp_path):
    flags = ("--checkpointing_steps", "3", "--validation_steps", "10", "--random_flip")
    assert run(clinic, tmp_path / "whole", *flags, steps=30) == 0
    part = tmp_path / "part"
    stop_when(part / "pretraining" / "checkpoint-3", signal.SIGTERM)
    assert run(clinic, part, *flags, steps=30) == 128 + signal.SIGTERM
    assert not (part / "pretraining.json").exists()
    checkpoints = sorted((part / "pretraining").glob("checkpoint-*"))
    assert 1 <= len(checkpoints) <= 2
    (part / "pretraining" / ".tmp-checkpoint-30").mkdir()  # of a run that was killed while saving
    assert run(clinic, part, *flags, steps=30) == 0
    assert encoder(part) == encoder(tmp_path / "whole")
    columns = ("step", "loss", "lr", "val_loss")
    tables = [
        [[row[c] for c in columns] for row in csv.DictReader((f / "pretraining.csv").open())]
        for f in (part, tmp_path / "whole")
    ]
    assert tables[0] == tables[1]
    assert run(clinic, part, *flags, "--overwrite", steps=2) == 0
    assert json.loads((part / "pretraining.json").read_text())["steps"] == 2


def test_two_processes_make_the_steps_of_one(clinic, finished, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", port]
    command += ["self_supervised.py", "--arms", "--real_dir", str(clinic)]
    command += [*TINY, "--pretrain_steps", "6", "--validation_steps", "4"]
    command += ["--output_dir", str(tmp_path / "two")]
    settings = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two, one = (load_file(f / "encoder.safetensors") for f in (tmp_path / "two", finished))
    for name, tensor in one.items():
        if tensor.ndim > 1:  # the gradient of a key's bias is zero but for the rounding
            torch.testing.assert_close(two[name], tensor, atol=5e-5, rtol=1e-4)
    results = [
        json.loads((f / "pretraining.json").read_text()) for f in (tmp_path / "two", finished)
    ]
    assert [result["num_processes"] for result in results] == [2, 1]
    assert results[0]["validation_loss"] == pytest.approx(results[1]["validation_loss"], rel=1e-5)


# What it learns from


def test_sources_are_joined_without_validation_patients_and_other_splits(clinic, tmp_path):
    more = write_scans(tmp_path / "more", ("train",) * 3 + ("test",), prefix="q", seed=1)
    rows = (more / "metadata.csv").read_text().replace("q2,", "p9,")  # a validation patient
    (more / "metadata.csv").write_text(rows)
    drawn = write_scans(tmp_path / "drawn", ("",) * 5, prefix="s", seed=2, labelled=False)
    flags = ("--unlabeled_dir", str(more), "--synthetic_dir", str(drawn))
    run(clinic, tmp_path / "out", *flags, "--pretrain_on", "real+synthetic", steps=1)
    result = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert result["images"] == {"real": 16, "unlabeled": 4, "synthetic": 10}
    notes = " ".join(result["notes"])
    assert "Of --unlabeled_dir, the 6 of 8 rows with split train." in notes
    assert "2 images of --unlabeled_dir are of validation patients." in notes
    drawn_only = tmp_path / "synthetic"
    run(clinic, drawn_only, *flags[2:], "--pretrain_on", "synthetic", steps=1)
    assert json.loads((drawn_only / "pretraining.json").read_text())["images"] == {"synthetic": 10}


@pytest.mark.parametrize(("flag", "source"), [("unlabeled", "real"), ("synthetic", "synthetic")])
def test_a_test_patient_among_the_images_to_learn_from_is_refused(clinic, tmp_path, flag, source):
    more = write_scans(tmp_path / "more", ("",) * 12, seed=1)  # p11 is tested
    with pytest.raises(UserError, match=rf"2 images of --{flag}_dir are of test patients.*p11 \("):
        run(clinic, tmp_path / "out", f"--{flag}_dir", str(more), "--pretrain_on", source)
    assert not (tmp_path / "out" / "options.json").exists()


def test_a_test_image_under_another_patients_name_is_refused(clinic, tmp_path):
    more = write_scans(tmp_path / "more", ("",) * 14, prefix="q")  # the pixels of the clinic
    with pytest.raises(UserError, match="6 images of the sources to pre-train on are test images"):
        run(clinic, tmp_path / "out", "--unlabeled_dir", str(more))
    assert not (tmp_path / "out" / "pretraining.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mae_width", "100"], "--mae_width 100 is not a multiple of 64"),
        (["--decoder_width", "40"], "--decoder_width 40 is not a multiple of 32"),
        (["--patch_size", "12"], "--patch_size 12 does not divide --resolution 32"),
        (["--mask_ratio", "0.99"], "leaves none to see or to tell"),
        (["--mask_ratio", "0"], "leaves none to see or to tell"),
        (["--pretrain_on", "synthetic"], "needs --synthetic_dir"),
        (["--pretrain_on", "real+synthetic"], "needs --synthetic_dir"),
        (
            ["--unlabeled_dir", ".", "--synthetic_dir", ".", "--pretrain_on", "synthetic"],
            "--unlabeled_dir holds real images",
        ),
        (["--synthetic_dir", "."], "--synthetic_dir is not used"),
        (["--resolution", "24"], "--resolution 24 is below 32"),
        (["--pretrain_steps", "0"], "--pretrain_steps"),
    ],
)
def test_bad_flags_end_at_once_with_their_name(clinic, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as exit_:
        run(clinic, tmp_path / "out", *flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


# What the encoder is worth

CURVE = [
    *("--arms", "scratch", "mae->probe", "mae->fine-tune", "--label_shares", "50", "100"),
    *("--num_seeds", "2", "--max_train_steps", "2", "--batch_size", "4", "--num_resamples", "20"),
]


def table(folder, name):
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured(clinic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "mae"
    assert run(clinic, folder, *CURVE) == 0
    return folder


def test_the_encoder_is_measured_at_every_share(measured):
    rows = table(measured, "runs.csv")
    arms = [(row["arm"], row["label_share"], row["seed"]) for row in rows]
    assert len(set(arms)) == 3 * 2 * 2
    assert {row["num_real"] for row in rows if row["label_share"] == "50"} == {"8"}
    compared = table(measured, "comparisons.csv")
    assert {row["reference_arm"] for row in compared} == {"scratch"}
    assert {row["arm"] for row in compared} == {"mae->probe", "mae->fine-tune"}
    page = (measured / "report.html").read_text(encoding="utf-8")
    for text in ("Verdict", "mae → probe", "Pre-training", "Loss of the masked patches"):
        assert text in page


def test_probes_keep_the_encoder_and_fine_tuning_starts_from_it(measured):
    from utils.classifier import Classifier

    wanted = load_file(measured / "encoder.safetensors")["blocks.0.attn.qkv.weight"]
    own = {}
    for arm in ("scratch", "mae-to-probe", "mae-to-fine-tune"):
        folder = measured / "runs" / f"{arm}_share100_ratio0_seed0" / "network"
        state = Classifier.load(folder).network.backbone.state_dict()
        (name,) = [k for k in state if "layer_0" in k and k.endswith("in_proj_weight")]
        own[arm] = float((state[name] - wanted).abs().max())
    assert own["mae-to-probe"] == 0
    assert 0 < own["mae-to-fine-tune"] < 0.05 < own["scratch"]


def test_the_same_command_finds_all_done_and_more_seeds_join(measured, clinic, capsys):
    before = {p: p.stat().st_mtime_ns for p in measured.glob("runs/*/run.json")}
    encoder_bytes = encoder(measured)
    assert run(clinic, measured, *CURVE, "--num_seeds", "3") == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert encoder(measured) == encoder_bytes
    assert len(table(measured, "runs.csv")) == 3 * 2 * 3
    with pytest.raises(UserError, match="--learning_rate: null before"):
        run(clinic, measured, *CURVE, "--learning_rate", "0.1")


def test_an_arm_that_the_shell_has_cut_is_refused(clinic, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(clinic, tmp_path / "out", "--arms", "mae-")
    assert "--arms" in capsys.readouterr().err


def test_an_arm_named_twice_is_refused(clinic, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(clinic, tmp_path / "out", "--arms", "scratch", "scratch")
    assert "--arms names a value twice" in capsys.readouterr().err


def test_a_synthetic_set_of_the_test_captions_is_refused(clinic, tmp_path):
    drawn = write_scans(tmp_path / "drawn", ("",) * 6, prefix="s", seed=3)
    flags = {"prompts_split": "test", "prompts_from": str(clinic)}
    (drawn / "options.json").write_text(json.dumps({"flags": flags}))
    with pytest.raises(UserError, match="captions of the split test"):
        source = ["--pretrain_on", "synthetic", "--synthetic_dir", str(drawn)]
        run(clinic, tmp_path / "out", *source)


def test_copies_of_training_scans_in_a_test_set_of_its_own_are_refused(clinic, tmp_path):
    other = write_scans(tmp_path / "other", ("",) * 8, prefix="q")
    with pytest.raises(UserError, match=r"images of .* are test images"):
        run(clinic, tmp_path / "out", "--test_dir", str(other), *CURVE)
