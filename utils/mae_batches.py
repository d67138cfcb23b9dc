"""What a masked autoencoder sees at each step: a pure function of the seed and the step.

Neither the number of processes nor an interruption changes it. Shapes: B images of a step over all
processes, T patches, H = W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from utils.classifier import to_unit
from utils.gray_images import GrayImages
from utils.mae_model import normalise
from utils.sample_order import SampleOrder

# Mild, for a crop of a fifth, as with photographs, loses the layer or the lesion.
AREA_RANGE = (0.6, 1.0)
MAX_ASPECT = 1.15  # a crop's width by its height, or the inverse
_CHANCE, _HELD_OUT = 1, 2  # streams of random numbers; 0 is the order's, in utils.sample_order


@dataclass(frozen=True)
class StepBatch:
    """This process's part of a step.

    Attributes:
        images: (B / processes, 3, H, W) float32, normalised, on the CPU.
        masking: (B / processes, T) uniform noise; the patches with the highest are masked.
        names: Where each image comes from.
    """

    images: torch.Tensor
    masking: torch.Tensor
    names: list[str]


@dataclass(frozen=True)
class StepPlan:
    """How the steps go through the images.

    Attributes:
        seed: Of order, crops and masks.
        batch_size: B, a multiple of the number of processes.
        num_patches: T.
        flip: Whether to mirror half of the images.
        rank: Number of this process.
        num_processes: See above.
    """

    seed: int
    batch_size: int
    num_patches: int
    flip: bool
    rank: int = 0
    num_processes: int = 1

    def batches(self, images: GrayImages, steps: range) -> Iterator[StepBatch]:
        """This process's part of each step."""
        order = SampleOrder(self.seed, len(images))
        size = self.batch_size // self.num_processes
        mine = slice(self.rank * size, (self.rank + 1) * size)
        first = [step * self.batch_size + mine.start for step in steps]
        plan = (np.array([order[p][1] for p in range(start, start + size)]) for start in first)
        no_crops = np.random.default_rng(0)  # of the reader; here every image is square
        for step, (indices, gray) in zip(steps, images.batches(plan, rng=no_crops)):
            affine, masking = self._draw(step)
            crops = random_crop(to_unit(gray), affine[mine])
            names = [images.records[int(index)].where for index in indices]
            yield StepBatch(normalise(crops), masking[mine], names)

    def _draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops (B, 2, 3) and masking noise (B, T) of a step, for all processes."""
        rng = np.random.default_rng((self.seed, _CHANCE, step))
        affine = draw_crops(self.batch_size, rng, flip=self.flip)
        masking = rng.random((self.batch_size, self.num_patches), dtype=np.float32)
        return affine, torch.from_numpy(masking)


def draw_crops(count: int, rng: np.random.Generator, *, flip: bool) -> torch.Tensor:
    """Crops that hold 60 to 100 % of the image, as affine matrices (count, 2, 3).

    Args:
        count: How many.
        rng: Draws area, width by height, place, and with ``flip`` which are mirrored.
        flip: See above.
    """
    area = rng.uniform(*AREA_RANGE, count)
    aspect = np.exp(rng.uniform(-1, 1, count) * math.log(MAX_ASPECT))
    width, height = (np.minimum(1, np.sqrt(area * a)) for a in (aspect, 1 / aspect))
    left, top = ((1 - size) * rng.uniform(-1, 1, count) for size in (width, height))
    sign = np.where(rng.random(count) < 0.5, -1, 1) if flip else 1
    zero = np.zeros(count)
    rows = [[sign * width, zero, left], [zero, height, top]]
    return torch.from_numpy(np.array(rows).transpose(2, 0, 1)).float()


def random_crop(images: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Crops, enlarged to the images' size, bilinear.

    Args:
        images: (N, 1, H, W).
        affine: (N, 2, 3) of ``draw_crops``.

    Returns:
        (N, 1, H, W).
    """
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def held_out_batches(
    images: GrayImages, *, seed: int, num_patches: int, batch_size: int
) -> list[StepBatch]:
    """Validation images whole, each with a mask that is always the same."""
    rng = np.random.default_rng((seed, _HELD_OUT))
    masking = torch.from_numpy(rng.random((len(images), num_patches), dtype=np.float32))
    pixels = torch.from_numpy(np.stack(list(images)))
    names = [record.where for record in images.records]
    cuts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    return [StepBatch(normalise(to_unit(pixels[c])), masking[c], names[c]) for c in cuts]
