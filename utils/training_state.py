"""What a training run carries from step to step: its plan, its averaged weights, its files.

A checkpoint holds what is trained (``unet``, ``text_encoder`` or ``lora``) and its average
(``unet_ema``, ...) in diffusers' format, so that each loads in a plain pipeline; accelerate adds
optimizer, schedule and random states.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError

from utils.cli import UserError
from utils.run_folder import write_json
from utils.trained_model import TrainedModel, load_weights, save_weights, trained_parameters

EMA_SUFFIX = "_ema"


@dataclass(frozen=True)
class Plan:
    """Which part of the data stream a run goes through.

    Attributes:
        num_images: Images in the data set.
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


def make_ema(model: TrainedModel, *, decay: float) -> EMAModel:
    """Running average of what is trained, starting at what it is now; updated in one call."""
    return EMAModel(trained_parameters(model), decay=decay, foreach=True)


@contextmanager
def averaged_weights(ema: EMAModel | None, model: TrainedModel) -> Iterator[None]:
    """Let a model work with its averaged weights, if it has any, and give it its own back."""
    if ema is None:
        yield
        return
    ema.store(trained_parameters(model))
    ema.copy_to(trained_parameters(model))
    try:
        yield
    finally:
        ema.restore(list(trained_parameters(model)))


def register_files(accelerator, ema: EMAModel | None) -> None:
    """Let accelerate save and load what is trained, and its average, in diffusers' format."""

    def save(models: list, weights: list, folder: str) -> None:
        weights.clear()  # or accelerate would write the model a second time
        if not accelerator.is_main_process:
            return
        model = accelerator.unwrap_model(models[0])
        save_weights(model, Path(folder))
        if ema is not None:
            _save_ema(ema, model, Path(folder))

    def load(models: list, folder: str) -> None:
        model = accelerator.unwrap_model(models.pop())  # what is left, accelerate would load itself
        if ema is not None:
            _load_ema(ema, model, Path(folder))
        load_weights(model, Path(folder))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _counters_path(model: TrainedModel, folder: Path) -> Path:
    first, *_ = model.folders()
    return folder / f"{first}{EMA_SUFFIX}" / "config.json"


def _save_ema(ema: EMAModel, model: TrainedModel, folder: Path) -> None:
    with averaged_weights(ema, model):
        save_weights(model, folder, EMA_SUFFIX)
    counters = ema.state_dict()
    del counters["shadow_params"]
    path = _counters_path(model, folder)
    # Beside the U-Net's own entries, where EMAModel.from_pretrained looks for them.
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, config | counters)


def _load_ema(ema: EMAModel, model: TrainedModel, folder: Path) -> None:
    path = _counters_path(model, folder)
    if not path.is_file():
        raise UserError(
            f"{path.parent} is missing: that run had no --use_ema; leave it out here too"
        )
    counters = json.loads(path.read_text(encoding="utf-8"))
    device, decay = ema.shadow_params[0].device, ema.decay
    load_weights(model, folder, EMA_SUFFIX)
    weights = [parameter.detach() for parameter in trained_parameters(model)]
    ema.load_state_dict(counters | {"shadow_params": weights})
    ema.decay = decay  # the flag of the resumed run counts
    ema.to(device)


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
