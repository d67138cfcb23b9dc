"""A look at a model in training: pictures of fixed prompts, and the loss on held-out images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.diffusion import PipelineParts, assemble_pipeline, diffusion_loss, training_target
from utils.image_files import save_png
from utils.provenance import DIGITAL_SOURCE_TYPE
from utils.text_encoding import encode_text, num_caption_chunks, tokenize
from utils.training_data import TrainingSet, encode_batch, make_loader

SAMPLER_STEPS = 20  # as in diffusers' example


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
        image = pipeline(
            prompt_embeds=embed(prompts[place]),
            negative_prompt_embeds=embed(""),
            height=resolution,
            width=resolution,
            num_inference_steps=SAMPLER_STEPS,
            generator=torch.Generator().manual_seed(seed + place),
        ).images[0]
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
    accelerator, parts: PipelineParts, unet, samples: TrainingSet, *, batch_size: int
) -> float:
    """Unweighted mean loss over every image once, with the noise and timestep fixed for each.

    Args:
        accelerator: Tells the process's share.
        parts: The pipeline around the U-Net, on the device unless the samples are encoded.
        unet: The U-Net; left in training mode.
        samples: The held-out images.
        batch_size: Images at once and process.
    """
    positions = range(len(samples.dataset))[accelerator.process_index :: accelerator.num_processes]
    batches = [positions[at : at + batch_size] for at in range(0, len(positions), batch_size)]
    unet.eval()
    total = torch.zeros(2, device=accelerator.device)  # sum of losses, number of images
    for batch in make_loader(samples, batches, num_workers=0, pin_memory=False):
        with accelerator.autocast():
            latents, text = encode_batch(parts, batch, accelerator.device)
        timesteps, noise = (batch[key].to(accelerator.device) for key in ("timestep", "noise"))
        noisy = parts.noise_scheduler.add_noise(latents, noise, timesteps)
        target = training_target(parts.noise_scheduler, latents, noise, timesteps)
        loss = diffusion_loss(unet(noisy, timesteps, text).sample, target)
        total += torch.stack([loss * len(noise), torch.tensor(len(noise), device=loss.device)])
    unet.train()
    loss_sum, count = accelerator.reduce(total).tolist()
    return loss_sum / count
