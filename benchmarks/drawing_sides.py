"""Ways to draw the same images from one pipeline folder, each as its users would, PNGs included.

Two ways are a plain ``StableDiffusionPipeline``: a prompt at a time with its defaults, and in
batches with the project's sampler, steps and guidance. The third is `ImageSampler.stream`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from utils.cli import available_cores
from utils.image_files import save_png
from utils.image_sampler import ImageSampler, auto_batch_size
from utils.pictures import finish_image
from utils.prompt_encoder import PromptEncoder
from utils.sampling import Settings, make_scheduler, vae_factor

Pairs = Sequence[tuple[str, int]]  # prompts and seeds
Draw = Callable[[Pairs, Path], None]  # draws them into a folder, one PNG each

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_plain(model: Path, *, device: torch.device, precision: str) -> StableDiffusionPipeline:
    """The pipeline as diffusers loads it, all parts in one type."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        model, safety_checker=None, requires_safety_checker=False, dtype=DTYPES[precision]
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def one_at_a_time(model: Path, *, device: torch.device) -> Draw:
    """A plain pipeline's defaults: float32, 50 steps of the folder's sampler, guidance 7.5."""
    pipeline = load_plain(model, device=device, precision="no")

    def draw(pairs: Pairs, folder: Path) -> None:
        for index, (prompt, seed) in enumerate(pairs):
            image = pipeline(prompt, generator=torch.Generator().manual_seed(seed)).images[0]
            image.save(folder / f"{index:06d}.png")

    return draw


def plain_batches(
    model: Path, *, device: torch.device, precision: str, settings: Settings, batch_size: int
) -> Draw:
    """A plain pipeline with given sampler, steps and guidance, in batches."""
    pipeline = load_plain(model, device=device, precision=precision)
    pipeline.scheduler = make_scheduler(
        pipeline.scheduler.config, settings.sampler, settings.num_steps
    )

    def draw(pairs: Pairs, folder: Path) -> None:
        for start in range(0, len(pairs), batch_size):
            prompts, seeds = zip(*pairs[start : start + batch_size])
            images = pipeline(
                list(prompts),
                num_inference_steps=settings.num_steps,
                guidance_scale=settings.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            ).images
            for index, image in enumerate(images, start):
                image.save(folder / f"{index:06d}.png")

    return draw


def new_sampler(
    model: Path, *, device: torch.device, precision: str, settings: Settings, compile_mode: str
) -> ImageSampler:
    """This project's sampler: the decoder in float32, the rest as asked."""
    pipeline = load_plain(model, device=device, precision="no")
    dtype = DTYPES[precision]
    return ImageSampler(
        unet=pipeline.unet.to(dtype),
        vae=pipeline.vae,
        encoder=PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, dtype=dtype),
        scheduler_config=pipeline.scheduler.config,
        settings=settings,
        resolution=pipeline.unet.config.sample_size * vae_factor(pipeline.vae.config),
        compile_mode=compile_mode,
    )


def streamed(sampler: ImageSampler, *, batch_size: int) -> Draw:
    """`ImageSampler.stream`, ``batch_size`` images at once over all cores, or on the GPU."""
    size = min(sampler.group_size or batch_size, batch_size)

    def draw(pairs: Pairs, folder: Path) -> None:
        groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        index = 0
        for images in sampler.stream(groups, num_workers=available_cores()):
            for pixels in images:
                picture, _ = finish_image(pixels, "auto")
                save_png(picture, folder / f"{index:06d}.png")
                index += 1

    return draw


def own_batch_size(sampler: ImageSampler) -> int:
    """What ``--batch_size auto`` takes on this machine."""
    return auto_batch_size(sampler, num_workers=available_cores())
