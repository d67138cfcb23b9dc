"""A look at a model in training: pictures of fixed prompts, and the loss on held-out images."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.diffusion import PipelineParts, assemble_pipeline, image_errors, training_target
from utils.image_files import save_png
from utils.images import to_uint8
from utils.provenance import DIGITAL_SOURCE_TYPE
from utils.sampling import decode_latents
from utils.text_encoding import encode_text, num_caption_chunks, tokenize
from utils.training_batches import make_loader
from utils.training_data import TrainingSet, encode_batch

SAMPLER_STEPS = 20  # as in diffusers' example
TIMESTEP_BUCKETS = 4


@torch.no_grad()
def draw_prompts(
    accelerator,
    parts: PipelineParts,
    unet,
    prompts: Sequence[str],
    *,
    folder: Path,
    resolution: int,
    seed: int,
) -> list[Path]:
    """Draw one picture per prompt, shared out over the processes, as ``folder/00.png``, ...

    Args:
        accelerator: Tells the process's share; its trackers get the pictures.
        parts: The pipeline around the U-Net; moved to the device.
        unet: The U-Net, not wrapped; left in training mode.
        prompts: One per picture.
        folder: Where the PNGs go, on a disk that all processes share.
        resolution: Side in pixels.
        seed: The i-th picture starts from the noise of ``seed + i``, at every step of training.

    Returns:
        The files of all pictures.
    """
    pipeline = assemble_pipeline(parts, unet.eval()).to(accelerator.device)
    paths = [folder / f"{place:02d}.png" for place in range(len(prompts))]

    def embed(prompt: str) -> torch.Tensor:  # (1, K L, D), where the pipeline would cut to L
        ids = tokenize(parts.tokenizer, [prompt], num_caption_chunks(parts.text_encoder))
        return encode_text(parts.text_encoder, ids)

    for place in range(accelerator.process_index, len(prompts), accelerator.num_processes):
        with accelerator.autocast():
            latents = pipeline(
                prompt_embeds=embed(prompts[place]),
                negative_prompt_embeds=embed(""),
                height=resolution,
                width=resolution,
                num_inference_steps=SAMPLER_STEPS,
                generator=torch.Generator().manual_seed(seed + place),
                output_type="latent",
            ).images
        [image] = to_uint8(decode_latents(parts.vae, latents))  # float32: fp16 may overflow there
        entries = {
            "synthetic": "true",
            "digital_source_type": DIGITAL_SOURCE_TYPE,
            "prompt": prompts[place],
            "seed": str(seed + place),
        }
        save_png(image, paths[place], text=entries)
    unet.train()
    accelerator.wait_for_everyone()
    return paths


def track_pictures(accelerator, paths: Sequence[Path], prompts: Sequence[str], step: int) -> None:
    """Give the pictures to the trackers that can show them."""
    images = [Image.open(path) for path in paths] if accelerator.is_main_process else []
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            shown = {"validation": np.stack([np.asarray(image) for image in images])}
            tracker.log_images(shown, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            import wandb

            captioned = [wandb.Image(image, caption=text) for image, text in zip(images, prompts)]
            tracker.log({"validation": captioned}, step=step)


@torch.no_grad()
def measure_loss(
    accelerator, parts: PipelineParts, model, samples: TrainingSet, *, batch_size: int
) -> tuple[float, dict[str, float]]:
    """Unweighted mean loss over every image once, with the noise and timestep fixed for each.

    Args:
        accelerator: Tells the process's share.
        parts: The pipeline around the model, on the device unless the samples are encoded.
        model: `utils.trained_model.TrainedModel`, not wrapped; left in training mode.
        samples: The held-out images.
        batch_size: Images at once and process.

    Returns:
        The mean over all images, and over those in each of `TIMESTEP_BUCKETS` equal ranges of
        timesteps, e.g. ``{"loss_t0_249": 0.31, ...}``; NaN for a range without images.
    """
    positions = range(len(samples.dataset))[accelerator.process_index :: accelerator.num_processes]
    batches = [positions[at : at + batch_size] for at in range(0, len(positions), batch_size)]
    num_timesteps = samples.options.num_timesteps
    # Sum of losses and number of images, by bucket
    totals = torch.zeros(TIMESTEP_BUCKETS, 2, dtype=torch.float64)
    model.eval()
    for batch in make_loader(samples, batches, num_workers=0, pin_memory=False):
        with accelerator.autocast():
            latents, text = encode_batch(
                parts, batch, accelerator.device, with_text=model.text_encoder is None
            )
        timesteps, noise = (batch[key].to(accelerator.device) for key in ("timestep", "noise"))
        noisy = parts.noise_scheduler.add_noise(latents, noise, timesteps)
        target = training_target(parts.noise_scheduler, latents, noise, timesteps)
        with accelerator.autocast():
            prediction = model(noisy, timesteps, text).sample
        losses = image_errors(prediction, target)  # (N,)
        buckets = batch["timestep"] * TIMESTEP_BUCKETS // num_timesteps
        entries = torch.stack([losses.cpu().double(), torch.ones(len(buckets)).double()], dim=1)
        totals.index_add_(0, buckets, entries)
    model.train()
    totals = accelerator.reduce(totals.to(accelerator.device)).cpu()
    edges = [at * num_timesteps // TIMESTEP_BUCKETS for at in range(TIMESTEP_BUCKETS + 1)]
    names = [f"loss_t{low}_{high - 1}" for low, high in pairwise(edges)]
    means = (totals[:, 0] / totals[:, 1]).tolist()
    loss_sum, count = totals.sum(dim=0).tolist()
    return loss_sum / count, dict(zip(names, means))
