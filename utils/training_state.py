"""What a training run carries from step to step: its plan and its averaged weights."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError

from utils.cli import UserError
from utils.trained_model import TrainedModel, trained_parameters


@dataclass(frozen=True)
class Plan:
    """Which part of the data stream a run goes through.

    Attributes:
        num_images: Samples until each image of the data set was shown once: as many as there are
            images, and more by what is rehearsed between them.
        images_per_step: Over all processes and accumulated batches.
        first_step: Optimizer steps done before this run.
        last_step: Optimizer steps done at its end.
        first_position: Position in the stream of the first sample of this run.
    """

    num_images: int
    images_per_step: int
    first_step: int
    last_step: int
    first_position: int

    def position(self, step: int) -> int:
        """Samples of the stream that are used up after ``step`` steps."""
        return self.first_position + (step - self.first_step) * self.images_per_step

    def epoch(self, step: int) -> float:
        """Passes over the data after ``step`` steps."""
        return self.position(step) / self.num_images

    def ends_epoch(self, step: int, interval: int) -> bool:
        """Whether this step ends epoch 0, or ``interval`` epochs after one that counted."""
        done = self.position(step) // self.num_images
        before = self.position(step - 1) // self.num_images
        return any(epoch % interval == 0 for epoch in range(before, done))


def steps_of_epochs(num_epochs: int, *, num_images: int, images_per_step: int) -> int:
    """Optimizer steps until every image was seen ``num_epochs`` times."""
    return math.ceil(num_epochs * num_images / images_per_step)


class Average(EMAModel):
    """Diffusers' running average of weights, updated in one pass without a second copy of them.

    The copy would be 3.2 GiB for Stable Diffusion 1.x; for the demo's U-Net on a CPU a step takes
    3.1 ms so, 7.8 ms with it.
    """

    @torch.no_grad()
    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Move by ``1 - decay`` of the way to these parameters, all of which are trained."""
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        torch._foreach_lerp_(self.shadow_params, list(parameters), 1 - self.cur_decay_value)


def make_ema(model: TrainedModel, *, decay: float) -> Average:
    """Running average of what is trained, starting at what it is now."""
    return Average(trained_parameters(model), decay=decay, foreach=True)


def load_unet(path: str | Path, **where) -> UNet2DConditionModel:
    """Load a U-Net alone, in float32.

    Args:
        path: Its folder, or a pipeline's folder or name on the hub.
        where: Arguments of ``from_pretrained``, e.g. ``subfolder`` and ``revision``.

    Raises:
        UserError: If it is not there or cannot be read.
    """
    try:
        return UNet2DConditionModel.from_pretrained(path, dtype=torch.float32, **where)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: its U-Net cannot be loaded: {error}") from error
