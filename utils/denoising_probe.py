"""What a model makes of real held-out images with noise, beside what the first model makes of them.

The mean squared difference of two models' predictions at the same noisy latents is, up to the
weights of the timesteps, the Kullback-Leibler divergence of their denoising steps (Ho et al. 2020,
https://arxiv.org/abs/2006.11239): the distance that tuning by a reward has to be kept from running
away with. Shapes: N images, C latent channels, h x w latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.dataset import Dataset
from utils.diffusion import PipelineParts, image_errors, load_pipeline_parts, training_target
from utils.prompt_template import template_of, with_prompts
from utils.sampling import one_thread, vae_factor
from utils.text_encoding import settle_num_caption_chunks
from utils.training_batches import make_loader
from utils.training_data import SampleOptions, encode_batch, make_training_set
from utils.validation import TIMESTEP_BUCKETS

MAX_IMAGES = 256
_BATCH = 8
_NUM_PASSES = TIMESTEP_BUCKETS  # over the images, at other timesteps and noise each


@dataclass(frozen=True)
class Denoised:
    """What a model predicts.

    Attributes:
        predictions: (P N, C, h, w) float32 on the CPU, of P passes over N images.
        loss: Mean squared error, unweighted; lower is better.
    """

    predictions: torch.Tensor
    loss: float

    def distance(self, other: Denoised) -> float:
        """Mean squared difference of two models' predictions."""
        return float((self.predictions - other.predictions).double().square().mean())


@dataclass(frozen=True)
class DenoisingProbe:
    """The same noisy images for every model.

    Attributes:
        dataset: N held-out real images with texts.
        resolution: Side in pixels.
        resize_mode: How an image becomes a square; one that draws nothing.
        seed: Of noise and timesteps.
        device: Where the models run.
    """

    dataset: Dataset
    resolution: int
    resize_mode: str
    seed: int
    device: str

    @torch.inference_mode()
    def ask(self, model_dir: Path | str, *, offline: bool) -> Denoised:
        """Let a pipeline predict."""
        parts = load_pipeline_parts(model_dir, offline=offline)
        for part in (parts.unet, parts.vae, parts.text_encoder):
            part.to(self.device).eval()
        predictions, errors = [], []
        with one_thread():  # the last bits of a sum depend on it
            for batch in tqdm(
                list(self._batches(parts, template_of(model_dir))), desc="denoising", leave=False
            ):
                found, error = self._predict(parts, batch)
                predictions.append(found.cpu())
                errors.append(error.cpu())
        del parts
        torch.cuda.empty_cache()  # the stages need it; nothing where there is no GPU
        return Denoised(torch.cat(predictions), float(torch.cat(errors).double().mean()))

    def _batches(self, parts: PipelineParts, template: str | None) -> Iterator[dict]:
        side = self.resolution // vae_factor(parts.vae.config)
        options = SampleOptions(
            seed=self.seed,
            resolution=self.resolution,
            resize_mode=self.resize_mode,
            random_flip=False,
            caption_dropout_prob=0.0,
            latent_shape=(parts.vae.config.latent_channels, side, side),
            num_timesteps=parts.noise_scheduler.config.num_train_timesteps,
        ).held_out()
        drawn = np.random.default_rng(self.seed).permutation(len(self.dataset))[:MAX_IMAGES]
        chosen = self.dataset.select(sorted(drawn.tolist()))
        records = with_prompts(chosen.records, template, chosen.root)
        dataset = Dataset(records, chosen.root)
        captions = (record.text for record in dataset)
        chunks = settle_num_caption_chunks(
            parts.tokenizer, parts.text_encoder, captions, long_captions=None
        )
        samples = make_training_set(dataset, options, parts.tokenizer, chunks)
        positions = range(_NUM_PASSES * len(dataset))
        groups = [positions[at : at + _BATCH] for at in range(0, len(positions), _BATCH)]
        return iter(make_loader(samples, groups, num_workers=0, pin_memory=False))

    def _predict(self, parts: PipelineParts, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        latents, text = encode_batch(parts, batch, self.device)
        timesteps, noise = (batch[key].to(self.device) for key in ("timestep", "noise"))
        noisy = parts.noise_scheduler.add_noise(latents, noise, timesteps)
        target = training_target(parts.noise_scheduler, latents, noise, timesteps)
        prediction = parts.unet(noisy, timesteps, text).sample.float()
        return prediction, image_errors(prediction, target)
