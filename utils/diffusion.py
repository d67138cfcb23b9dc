"""A Stable Diffusion pipeline's parts, and the mathematics of training one.

Shapes: N images, C latent channels, h x w latents (1/8 of the pixels).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from utils.cli import UserError
from utils.text_encoding import name_padding

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class PipelineParts:
    """What a Stable Diffusion pipeline is made of, without safety checker.

    Attributes:
        unet: Denoises latents.
        vae: Pixels to latents and back.
        text_encoder: Token ids to embeddings, see `utils.text_encoding`.
        tokenizer: Text to token ids.
        scheduler: The sampler that the pipeline folder names.
        noise_scheduler: The forward process to train with.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    noise_scheduler: DDPMScheduler


def silence_libraries() -> None:
    """Turn off the loading bars and notices of diffusers and transformers; errors stay."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def load_pipeline(
    path: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    dtype: torch.dtype = torch.float32,
) -> StableDiffusionPipeline:
    """Load a Stable Diffusion 1.x or 2.x pipeline, always without its safety checker.

    The checker was trained on photographs; on scans it blackens pictures at random.

    Args:
        path: Pipeline folder, or name on the hub.
        revision: Branch, tag or commit on the hub.
        variant: Which files, e.g. ``fp16`` for ``*.fp16.safetensors``.
        cache_dir: Where downloads are kept (default: the hub library's cache).
        offline: Whether to use only what is on this disk.
        dtype: Type of the weights after loading.

    Raises:
        UserError: If it is not there, not complete, or no Stable Diffusion 1.x/2.x.
    """
    silence_libraries()
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            path,
            revision=revision,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=offline,
            dtype=dtype,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be loaded as a Stable Diffusion pipeline: {error}\n"
            "It must be a folder as StableDiffusionPipeline.save_pretrained writes it, or the "
            "name of one on the hub (with --offline: one downloaded before)."
        ) from error
    _check_widths(pipeline, path)
    name_padding(pipeline.tokenizer, pipeline.text_encoder)
    return pipeline


def _check_widths(pipeline: StableDiffusionPipeline, path: str | Path) -> None:
    config = pipeline.unet.config
    wanted = config.encoder_hid_dim or config.cross_attention_dim
    given = pipeline.text_encoder.config.hidden_size
    if wanted != given:
        raise UserError(
            f"{path}: the U-Net takes text embeddings {wanted} wide, the text encoder gives {given}"
        )


def load_pipeline_parts(
    path: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
) -> PipelineParts:
    """Load a pipeline to train its U-Net: float32 weights, the others frozen.

    Args:
        path: As for `load_pipeline`, likewise the next four.
        revision: See above.
        variant: See above.
        cache_dir: See above.
        offline: See above.
        prediction_type: ``epsilon`` or ``v_prediction`` in place of what the pipeline predicts.
        zero_terminal_snr: Rescale the betas so that the last timestep is pure noise.

    Raises:
        UserError: As `load_pipeline`; or if the schedule and the prediction do not go together.
    """
    pipeline = load_pipeline(
        path, revision=revision, variant=variant, cache_dir=cache_dir, offline=offline
    )
    scheduler = retarget_scheduler(
        pipeline.scheduler, prediction_type=prediction_type, zero_terminal_snr=zero_terminal_snr
    )
    pipeline.vae.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    return PipelineParts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=scheduler,
        noise_scheduler=DDPMScheduler.from_config(scheduler.config),
    )


def retarget_scheduler(scheduler, *, prediction_type: str | None, zero_terminal_snr: bool):
    """The sampler for what the U-Net is trained to predict; the given one if nothing changes.

    A zero-terminal-SNR schedule is sampled with DDIM and trailing timesteps, which start at the
    pure noise that others skip (Lin et al. 2023, https://arxiv.org/abs/2305.08891).

    Raises:
        UserError: If the prediction is none of `PREDICTION_TYPES`, or is epsilon, which at zero SNR
            says nothing about the image.
    """
    config = scheduler.config
    predicts = prediction_type or config.get("prediction_type") or "epsilon"
    if predicts not in PREDICTION_TYPES:
        raise UserError(f"the scheduler's prediction type {predicts!r} cannot be trained here")
    if (zero_terminal_snr or config.get("rescale_betas_zero_snr")) and predicts == "epsilon":
        raise UserError(
            "a zero-terminal-SNR schedule cannot be trained with epsilon prediction: "
            "add --prediction_type v_prediction"
        )
    if zero_terminal_snr and not config.get("rescale_betas_zero_snr"):
        changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        scheduler = DDIMScheduler.from_config(config, prediction_type=predicts, **changes)
    elif predicts != config.get("prediction_type", "epsilon"):
        scheduler = type(scheduler).from_config(config, prediction_type=predicts)
    return scheduler


def save_pipeline(parts: PipelineParts, unet, folder: Path) -> None:
    """Write a pipeline folder (safetensors) that plain diffusers loads, without safety checker."""
    assemble_pipeline(parts, unet).save_pretrained(folder, safe_serialization=True)


def assemble_pipeline(parts: PipelineParts, unet) -> StableDiffusionPipeline:
    """Put the parts together for sampling, with this U-Net in place of the one loaded."""
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=unet,
        scheduler=parts.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def encode_pixels(vae, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the VAE's posterior, float32, (N, C, h, w) each, unscaled.

    Args:
        vae: The autoencoder; it computes in its own type.
        pixels: Images (N, 3, 8h, 8w) in [-1, 1].
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return posterior.mean.float(), posterior.std.float()


def sample_latents(vae, mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Latents as the U-Net sees them: drawn from the posterior with this noise, then scaled."""
    return (mean + std * noise) * vae.config.scaling_factor


def training_target(
    noise_scheduler: DDPMScheduler,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """What the U-Net should predict, (N, C, h, w).

    The noise for ``epsilon``; for ``v_prediction`` ``sqrt(a_t) noise - sqrt(1 - a_t) latents``
    (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512), ``a_t`` the product of the alphas.
    """
    if noise_scheduler.config.prediction_type == "v_prediction":
        return noise_scheduler.get_velocity(latents, noise, timesteps)
    return noise


def signal_to_noise(noise_scheduler: DDPMScheduler) -> torch.Tensor:
    """SNR of every timestep, ``a_t / (1 - a_t)``, (T,) float32 >= 0; 0 where all is noise."""
    alphas = noise_scheduler.alphas_cumprod.double()
    return (alphas / (1.0 - alphas)).float()


def min_snr_weights(noise_scheduler: DDPMScheduler, gamma: float) -> torch.Tensor:
    """Min-SNR-gamma weight of every timestep's loss, (T,) float32, finite.

    ``min(SNR, gamma) / SNR`` for epsilon, ``min(SNR, gamma) / (SNR + 1)`` for v-prediction (Hang
    et al. 2023, https://arxiv.org/abs/2303.09556). On a zero-terminal-SNR schedule the latter
    would not train the pure noise that the schedule exists for (weight 0 at SNR 0); there it is
    ``min(SNR + 1, gamma) / (SNR + 1)``.

    Args:
        noise_scheduler: The forward process.
        gamma: The cap, > 0; 5 in the paper.
    """
    snr = signal_to_noise(noise_scheduler)
    if noise_scheduler.config.prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    if snr[-1] == 0:
        return (gamma / (snr + 1.0)).clamp(max=1.0)
    return snr.clamp(max=gamma) / (snr + 1.0)


def image_errors(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, (N, C, h, w) of any float type to (N,) float32."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def diffusion_loss(errors: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the images of each image's mean squared error times its weight; float32 scalar.

    Args:
        errors: Of `image_errors`, (N,) float32.
        weights: One per image, (N,); None weighs all alike.
    """
    return errors.mean() if weights is None else (errors * weights).mean()
