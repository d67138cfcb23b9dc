"""Images passed through a pipeline's VAE and back: what no generator with this VAE can beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image

from utils import images as pictures
from utils.classifier import batched
from utils.cli import UserError
from utils.diffusion import encode_pixels, load_pipeline
from utils.module_hash import hash_module
from utils.sampling import vae_factor

BATCH_SIZE = 4  # images at once, whatever the caller's batch, so that the same bytes come out


class Reconstruction:
    """A VAE as a function from image to image.

    Attributes:
        sha256: Of the VAE's weights and configuration.
        factor: Pixels a side for each latent; sides of images must be multiples of it.
    """

    def __init__(self, model: str | Path, *, device: str, offline: bool):
        """Load the VAE of a pipeline folder or hub name.

        Raises:
            UserError: If there is no pipeline.
        """
        self.vae = load_pipeline(model, offline=offline).vae.to(device)
        self.sha256 = hash_module(self.vae)
        self.factor = vae_factor(self.vae.config)

    def check_resolution(self, resolution: int) -> None:
        """Refuse a side that the VAE cannot take.

        Raises:
            UserError: Naming the flag.
        """
        if resolution % self.factor:
            raise UserError(
                f"--resolution {resolution}: the VAE of --model takes multiples of {self.factor}, "
                f"such as {resolution // self.factor * self.factor or self.factor}"
            )

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """A square image as (3, H, W) float32 in [-1, 1]."""
        return pictures.to_tensor(image)

    @torch.inference_mode()
    def apply(self, pixels: Iterable[torch.Tensor]) -> Iterator[Image.Image]:
        """Encode tensors of ``prepare`` to the posterior's mean, and decode it to 8-bit images.

        An image without colour comes back without: generators of gray scans drop it too.
        """
        for batch in batched(pixels, BATCH_SIZE):
            whole = torch.stack(batch + batch[:1] * (BATCH_SIZE - len(batch)))
            mean, _ = encode_pixels(self.vae, whole)
            decoded = self.vae.decode(mean.to(self.vae.dtype)).sample
            for image, original in zip(pictures.to_uint8(decoded), batch):
                gray = bool((original == original[:1]).all())
                yield image.convert("L") if gray else image
