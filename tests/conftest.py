"""Fixtures that more than one test file needs: a tiny pipeline, a toy data set, a clean accelerate.

None of them imports the project's own code, so that a fault there cannot hide in the fixture.
"""

import csv
import json
import os
import sys
from pathlib import Path

import pytest

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "DIFFUSERS_OFFLINE"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

CONFIGS = Path(__file__).parents[1] / "configs"

TOY_FINDINGS = {
    "normal": "normal retina with a regular foveal pit",
    "macular edema": "macular edema with cystic spaces",
    "drusen": "drusen under the pigment epithelium",
}


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> Path:
    """A StableDiffusionPipeline folder, 1.5 MB: 64 px, VAE factor 8, fixed random weights."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    tokenizer = _byte_tokenizer(tmp_path_factory.mktemp("vocabulary"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
        )
        text_encoder = _tiny_text_encoder(tokenizer)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _tiny_text_encoder(tokenizer):
    """Two-layer CLIP text model of width 32 for the given vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory, tiny_pipeline) -> Path:
    """Folder of a CLIP of 32 px with two layers a tower, fixed random weights."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tiny_pipeline / "tokenizer")
    tokenizer.save_pretrained(folder)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CLIPModel(
            transformers.CLIPConfig(
                vision_config=tower | {"image_size": 32, "patch_size": 8},
                text_config=tower | words,
                projection_dim=16,
            )
        )
    model.save_pretrained(folder)
    return folder


def _byte_tokenizer(folder: Path):
    """CLIP tokenizer whose words are single bytes, so that every text has a token sequence."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    words = symbols + [symbol + "</w>" for symbol in symbols]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory) -> Path:
    """A dataset folder of twelve 64 x 48 gray PNGs of three labels, six patients, three splits."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("toy") / "dataset"
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(12):
        label = list(TOY_FINDINGS)[index % 3]
        pixels = _toy_scan(np.random.default_rng(index), index % 3)
        Image.fromarray(pixels, mode="L").save(folder / "images" / f"{index:03d}.png")
        patient = index // 2
        rows.append(
            {
                "file_name": f"images/{index:03d}.png",
                "text": f"{TOY_FINDINGS[label]}, scan {index}",
                "label": label,
                "patient_id": f"p{patient}",
                "split": {4: "val", 5: "test"}.get(patient, "train"),
            }
        )
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _toy_scan(rng, label_index: int):
    """Bright layer on a dark ground, (48, 64) uint8; the layer's depth tells the label."""
    import numpy as np

    depth = np.arange(48)[:, None]
    layer = 180.0 * np.exp(-(((depth - 12 - 10 * label_index) / 4.0) ** 2))
    return np.clip(layer + rng.uniform(0, 60, size=(48, 64)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def fsdp_settings() -> dict[str, str]:
    """What accelerate launch hands to processes of configs/fsdp.yaml, without turning FSDP on."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    argv = ["--config_file", str(CONFIGS / "fsdp.yaml"), "--mixed_precision", "no"]
    with pytest.MonkeyPatch.context() as patch:
        argv += ["--main_process_port", "0"]
        patch.setattr(sys, "argv", ["accelerate", *argv, "train.py"])
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args())
        configured = prepare_multi_gpu_env(args)
    return {name: value for name, value in configured.items() if name.startswith("FSDP_")}


@pytest.fixture(autouse=True)
def _clean_accelerate():
    """Accelerate keeps its state in the process: forget it, but only where it was imported."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)
