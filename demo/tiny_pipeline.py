"""The architecture of the demo's tiny Stable Diffusion pipeline, and how it is saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import run_folder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

RESOLUTION = 128

_MODEL_CARD = """\
# The demo's base pipeline

A tiny Stable Diffusion pipeline ({resolution} x {resolution} px) for trying the scripts on a CPU.
It has seen simulated OCT B-scans only (`demo/simulate.py`; the look `portable` was left out).
Not for medical use, and no starting point for work on real scans: use Stable Diffusion for that.

| part | figure |
|---|---|
| training scans | {unet[scans]} |
| U-Net, text encoder | {unet[parameters]} parameters, {unet[steps]} steps of {unet[batch_size]} |
| objective | v-prediction, zero terminal SNR, 10 % empty captions, averaged weights |
| VAE | {vae[steps]} steps; reconstruction of unseen simulated scans {vae[psnr_db]:.1f} dB PSNR |

Made by `python -m demo.pretrain_base`. Same licence as the code.
"""


def new_vae() -> AutoencoderKL:
    """An untrained AutoencoderKL of factor 8 with four latent channels, about 1.2 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        scaling_factor=1.0,
    )


def new_tokenizer(work_dir: Path, texts: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair vocabulary was trained on `texts`; any text has tokens."""
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    plain = CLIPTokenizer()  # brings CLIP's own normaliser and pre-tokenizer
    backend = plain.backend_tokenizer
    backend.model = models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1_200,
        min_frequency=20,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[symbol + "</w>" for symbol in alphabet],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    state = json.loads(backend.to_str())["model"]
    words = [*state["vocab"], "<|startoftext|>", "<|endoftext|>"]
    merges = [" ".join(pair) for pair in state["merges"]]
    folder = work_dir / "tokenizer_files"
    folder.mkdir(exist_ok=True)
    run_folder.write_json(folder / "vocab.json", {word: n for n, word in enumerate(words)})
    run_folder.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text model of three layers, 192 wide."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=77,
            projection_dim=192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """An untrained U-Net for 16 x 16 latents, about 11 M parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        block_out_channels=(96, 160, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=192,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule, rescaled so that its last step is pure noise."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def save_pipeline(
    work_dir: Path,
    output_dir: Path,
    *,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write the pipeline in half precision to `output_dir`, with the autoencoder of `work_dir`."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work_dir / "vae"),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(output_dir, safe_serialization=True)
    _load_in_float32(output_dir / "text_encoder")
    _edit_config(output_dir / "vae", _name_or_path=None)  # a path of the training machine
    run_folder.write_text(output_dir / "model_card.md", model_card(work_dir))


def save_text_encoder(text_encoder: CLIPTextModel, pipeline_dir: Path) -> None:
    """Write a pipeline's text encoder in half precision; what is given is halved in place."""
    text_encoder.half().save_pretrained(pipeline_dir / "text_encoder")
    _load_in_float32(pipeline_dir / "text_encoder")


def _load_in_float32(folder: Path) -> None:
    """Let transformers, which loads in the stored precision, load as diffusers does, in float32."""
    _edit_config(folder, dtype="float32")


def _edit_config(folder: Path, **changes: str | None) -> None:
    """Set keys of a part's config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    run_folder.write_json(path, {key: value for key, value in config.items() if value is not None})


def model_card(work_dir: Path) -> str:
    """What the pipeline is, from the figures that the stages left in `work_dir`."""
    figures = {
        name: json.loads((work_dir / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("vae", "unet")
    }
    return _MODEL_CARD.format(resolution=RESOLUTION, **figures)
