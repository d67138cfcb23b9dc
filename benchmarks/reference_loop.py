"""The training step that diffusers documents for Stable Diffusion, as the thing to compare with.

Written from what the example ``text_to_image`` does: images are read and captions tokenized for
every batch; VAE and text encoder run every step, in the type of the arithmetic; noise and timesteps
are drawn on the device; mean squared error; clipped gradients; AdamW as PyTorch makes it by
default; a running average of the weights, as the documented command has it; two looks at the loss
per step, for the log and for the progress bar; contiguous layout.
Left out is what costs only the example time: trackers, checkpoints, validation.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

from benchmarks.blocks import Block, BlockTimer
from utils.dataset import Dataset, load_dataset
from utils.diffusion import load_pipeline_parts

_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ReferenceOptions:
    """How the reference trains; the values that the compared run has too."""

    batch_size: int
    resolution: int
    precision: str
    learning_rate: float
    num_workers: int
    seed: int


class ReferenceLoop:
    """A U-Net in training as the example trains it; goes on from block to block."""

    def __init__(self, model: Path, data_dir: Path, options: ReferenceOptions) -> None:
        """Load the pipeline and the data set and prepare them by accelerate."""
        self.options = options
        self.accelerator = Accelerator(mixed_precision=options.precision)
        self.parts = load_pipeline_parts(model, offline=True)
        self._type = _TYPES[options.precision]
        self.parts.vae.to(self.accelerator.device, self._type)
        self.parts.text_encoder.to(self.accelerator.device, self._type)
        unet = self.parts.unet.train()
        optimizer = torch.optim.AdamW(
            unet.parameters(),
            lr=options.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=1e-2,
            eps=1e-8,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        loader = self._make_loader(load_dataset(data_dir))
        self.unet, self.optimizer, self.loader, self.lr_scheduler = self.accelerator.prepare(
            unet, optimizer, loader, schedule
        )
        self.ema = EMAModel(unet.parameters())
        self.ema.to(self.accelerator.device)
        self._batches = self._endless()

    def _make_loader(self, dataset: Dataset) -> DataLoader:
        side = self.options.resolution
        look = transforms.Compose(
            [
                transforms.Resize(side, interpolation=transforms.InterpolationMode.LANCZOS),
                transforms.CenterCrop(side),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )
        tokenizer = self.parts.tokenizer

        def collate(records: list) -> dict:
            images = [Image.open(record.image_source).convert("RGB") for record in records]
            ids = tokenizer(
                [record.text for record in records],
                max_length=tokenizer.model_max_length,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
            ).input_ids
            return {"pixels": torch.stack([look(image) for image in images]), "ids": ids}

        return DataLoader(
            list(dataset),
            shuffle=True,
            drop_last=True,  # every step of the comparison has the same number of images
            collate_fn=collate,
            batch_size=self.options.batch_size,
            num_workers=self.options.num_workers,
            generator=torch.Generator().manual_seed(self.options.seed),
        )

    def _endless(self):
        while True:
            yield from self.loader

    def run_block(self, num_steps: int, *, untimed_steps: int) -> Block:
        """Make ``num_steps`` optimizer steps, of which the first are not timed."""
        timer = BlockTimer(self.accelerator.device, untimed_steps=untimed_steps)
        losses = []
        with tqdm(total=num_steps, desc="reference", unit="step", leave=False) as bar:
            for _ in range(num_steps):
                losses.append(self._step(next(self._batches), bar))
                timer.end_step()
        return timer.end(losses, images_per_step=self.options.batch_size)

    def _step(self, batch: dict, bar: tqdm) -> float:
        """One step; returns the loss as the example logs it."""
        accelerator, schedule = self.accelerator, self.parts.noise_scheduler
        with accelerator.accumulate(self.unet):
            with torch.no_grad():  # both are frozen
                posterior = self.parts.vae.encode(batch["pixels"].to(self._type)).latent_dist
                latents = posterior.sample() * self.parts.vae.config.scaling_factor
                text = self.parts.text_encoder(batch["ids"], return_dict=False)[0]
            noise = torch.randn_like(latents)
            num_timesteps = schedule.config.num_train_timesteps
            timesteps = torch.randint(0, num_timesteps, (len(latents),), device=latents.device)
            noisy = schedule.add_noise(latents, noise, timesteps)
            target = noise
            if schedule.config.prediction_type == "v_prediction":
                target = schedule.get_velocity(latents, noise, timesteps)
            prediction = self.unet(noisy, timesteps, text, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
            mean_loss = accelerator.gather(loss.repeat(self.options.batch_size)).mean().item()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())
        bar.update(1)
        bar.set_postfix(step_loss=loss.detach().item(), lr=self.lr_scheduler.get_last_lr()[0])
        return mean_loss
