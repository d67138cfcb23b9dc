"""The mathematics of drawing images by diffusion: scheduler, noise, guidance, loop, decoder.

`utils.image_sampler` feeds it with prompts and seeds. Shapes: N images, C latent channels, h x w
latents (an eighth of the image's sides), L tokens, D width of the text encoder.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import diffusers
import torch

from utils.cli import UserError

GPU_DECODE_PIXELS = 8 * 512**2  # decoded at once: 5 GB in float32

_SCHEDULERS = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}
SAMPLERS = tuple(_SCHEDULERS)
_PREDICTIONS = ("epsilon", "v_prediction")


def make_scheduler(config: Mapping, sampler: str, num_steps: int):
    """Build a sampler for a model, from the scheduler configuration in the model's folder.

    Noise schedule, prediction type and spacing are the model's. A zero-terminal-SNR model is
    always sampled with trailing steps: any other spacing never visits the step that knows the
    image's brightness (Lin et al. 2023, https://arxiv.org/abs/2305.08891).

    Args:
        config: ``scheduler/scheduler_config.json`` or ``pipeline.scheduler.config``.
        sampler: One of `SAMPLERS`.
        num_steps: Denoising steps.

    Raises:
        UserError: If the sampler cannot do what the model was trained for.
    """
    config = dict(config)
    prediction = config.get("prediction_type", "epsilon")
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    if prediction not in _PREDICTIONS:
        raise UserError(f"the model predicts {prediction!r}; known: {', '.join(_PREDICTIONS)}")
    if zero_snr and prediction == "epsilon":
        raise UserError(
            "the model's scheduler combines zero terminal SNR with epsilon prediction, which says "
            "nothing about the image at the first step; train it with v_prediction"
        )
    if zero_snr and sampler == "pndm":
        others = ", ".join(name for name in SAMPLERS if name != "pndm")
        raise UserError(f"--sampler pndm cannot start from zero terminal SNR; use {others}")
    num_train_steps = config.get("num_train_timesteps", 1000)
    least = 2 if sampler == "pndm" else 1  # PNDM's first correction repeats the last but one step
    if not least <= num_steps <= num_train_steps:
        raise UserError(
            f"--num_inference_steps {num_steps}: {sampler} takes {least} to {num_train_steps}"
        )
    class_name, overrides = _SCHEDULERS[sampler]
    # As StableDiffusionPipeline repairs old configurations: latents are not clipped to [-1, 1].
    config |= {"steps_offset": 1, "clip_sample": False, **overrides}
    if zero_snr:
        config["timestep_spacing"] = "trailing"
    return getattr(diffusers, class_name).from_config(config)


def image_seed(seed: int, index: int, attempt: int = 0) -> int:
    """Seed of one image's generator, in [0, 2^32): ``hash(seed, attempt) + index``.

    No two images of a run share one, and two runs of neighbouring ``seed`` share none but by rare
    chance, as ``seed + index`` would. Torch's CPU generator looks at 32 bits only.
    """
    start = int.from_bytes(sha256(f"{seed}:{attempt}".encode()).digest()[:4], "big")
    return (start + index) % 2**32


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> tuple[torch.Tensor, list]:
    """Standard normal noise (N, *shape), float32 on the CPU, and the N generators it came from."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(noise), generators


def guide(
    with_text: torch.Tensor, without_text: torch.Tensor, *, scale: float, rescale: float
) -> torch.Tensor:
    """Classifier-free guidance (https://arxiv.org/abs/2207.12598), optionally rescaled.

    ``g = u + scale (c - u)``; then ``rescale * g * std(c) / std(g) + (1 - rescale) * g``, which
    undoes the over-exposure of large scales (Lin et al. 2023, section 3.4).

    Args:
        with_text: The network's output c, (N, C, h, w).
        without_text: Its output u for the negative prompt, same shape.
        scale: 1 is no guidance.
        rescale: Share of the rescaled part, in [0, 1].
    """
    guided = without_text + scale * (with_text - without_text)
    if rescale == 0:
        return guided
    axes = (1, 2, 3)
    ratio = with_text.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return rescale * (guided * ratio) + (1 - rescale) * guided


@dataclass(frozen=True)
class Settings:
    """How images are drawn; with the model, the prompt and the seed it determines them.

    Attributes:
        sampler: One of `SAMPLERS`.
        num_steps: Denoising steps.
        guidance_scale: Weight of the prompt; 1 switches guidance off.
        guidance_rescale: See `guide`.
        negative_prompt: What guidance leads away from.
        eta: Share of fresh noise in each step, 0 to 1; for ddim only.
        guidance_interval: Guide only between these shares of the steps, 0 is the first, 1 the last;
            the others draw with the prompt alone, at half the cost (Kynkäänniemi et al. 2024,
            https://arxiv.org/abs/2404.07724).
    """

    sampler: str = "dpmsolver++"
    num_steps: int = 25
    guidance_scale: float = 4.0
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    eta: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)


@torch.inference_mode()
def denoise(
    unet,
    scheduler,
    *,
    noise: torch.Tensor,
    text: torch.Tensor,
    no_text: torch.Tensor | None,
    generators: Sequence[torch.Generator],
    settings: Settings,
) -> torch.Tensor:
    """The sampling loop: noise to latents.

    Args:
        unet: Predicts what the scheduler's ``prediction_type`` says.
        scheduler: From `make_scheduler`; holds the state of one loop, so one per thread.
        noise: (N, C, h, w), standard normal, float32, on the U-Net's device.
        text: Embeddings of the prompts, (N, L, D).
        no_text: Embedding of the negative prompt, (L, D); None switches guidance off.
        generators: N generators for the noise of stochastic samplers.
        settings: What to do.

    Returns:
        Latents of the images, (N, C, h, w), float32.
    """
    scheduler.set_timesteps(settings.num_steps, device=noise.device)
    step_options = {}
    if settings.sampler == "ddim":
        step_options = {"eta": settings.eta, "generator": list(generators)}
    if no_text is not None:
        both = torch.cat([no_text.expand_as(text), text])  # (2N, L, D)
    first, last = settings.guidance_interval
    latents = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(latents, timestep).to(unet.dtype)
        is_guided = no_text is not None and (
            first <= (step + 0.5) / len(scheduler.timesteps) <= last  # the step's middle
        )
        if is_guided:
            inputs = torch.cat([inputs, inputs])  # (2N, C, h, w)
        context = both if is_guided else text
        output = unet(inputs, timestep, encoder_hidden_states=context).sample.float()
        if is_guided:
            without_text, with_text = output.chunk(2)
            output = guide(
                with_text,
                without_text,
                scale=settings.guidance_scale,
                rescale=settings.guidance_rescale,
            )
        latents = scheduler.step(output, timestep, latents, **step_options).prev_sample
    return latents


@torch.inference_mode()
def decode_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """Latents (N, C, h, w) to images (N, 3, H, W), float32, about [-1, 1]."""
    # One by one on a CPU, where the result must not depend on N and several at once are no faster
    # (29 ms an image of the demo's alone, 30 in fours, one core); elsewhere to bound the memory.
    pixels = latents[0, 0].numel() * vae_factor(vae.config) ** 2
    size = 1 if latents.device.type == "cpu" else max(1, GPU_DECODE_PIXELS // pixels)
    parts = (latents.to(vae.dtype) / vae.config.scaling_factor).split(size)
    return torch.cat([vae.decode(part).sample.float() for part in parts])


def vae_factor(vae_config: Mapping) -> int:
    """Pixels per latent along a side (8 for Stable Diffusion)."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: how a sum is split over threads changes its last bits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
