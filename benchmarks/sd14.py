"""Stable Diffusion 1.4's architecture with random weights, for timing without the real ones.

The sizes are those of the published configuration (https://huggingface.co/CompVis): a U-Net of 860
million parameters, a VAE of 84 and CLIP ViT-L/14's text encoder of 123. The tokenizer is the
demo's, whose ids are a part of CLIP's range: what the ids are changes no time.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

RESOLUTION = 512


def new_unet() -> UNet2DConditionModel:
    """The U-Net for 64 x 64 latents."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def new_vae() -> AutoencoderKL:
    """The autoencoder of factor 8."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=RESOLUTION,
        scaling_factor=0.18215,
    )


def new_text_encoder() -> CLIPTextModel:
    """The text encoder of CLIP ViT-L/14."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=768,
        )
    )


def new_scheduler() -> PNDMScheduler:
    """The sampler with the noise schedule that the model was trained on."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )


def write_pipeline(folder: Path, *, tokenizer_dir: Path, device: torch.device) -> None:
    """Write a pipeline folder, 4.3 GB; weights are drawn on the device, from a fixed seed.

    Args:
        folder: To make.
        tokenizer_dir: A CLIP tokenizer of at most 49408 tokens.
        device: Where to draw; a GPU is faster.
    """
    torch.manual_seed(0)
    with device:
        unet, vae, text_encoder = new_unet(), new_vae(), new_text_encoder()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_dir),
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
