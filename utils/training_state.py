"""What a training run carries from step to step: its plan, its averaged weights, its U-Net files.

A checkpoint holds ``unet`` and ``unet_ema`` in diffusers' format, so that each loads in a plain
pipeline; accelerate adds optimizer, schedule and random states.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError

from utils.cli import UserError


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


def make_ema(unet: UNet2DConditionModel, *, decay: float, foreach: bool) -> EMAModel:
    """Running average of a U-Net's weights, starting at what they are now."""
    return EMAModel(
        unet.parameters(),
        decay=decay,
        foreach=foreach,
        model_cls=UNet2DConditionModel,
        model_config=unet.config,
    )


@contextmanager
def averaged_weights(ema: EMAModel | None, unet: UNet2DConditionModel) -> Iterator[None]:
    """Let a U-Net work with its averaged weights, if it has any, and give it its own back."""
    if ema is None:
        yield
        return
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    try:
        yield
    finally:
        ema.restore(unet.parameters())


def register_unet_files(accelerator, ema: EMAModel | None) -> None:
    """Let accelerate save and load the U-Net, and its average, in diffusers' format."""

    def save(models: list, weights: list, folder: str) -> None:
        weights.clear()  # or accelerate would write the U-Net a second time
        if not accelerator.is_main_process:
            return
        for model in models:
            accelerator.unwrap_model(model).save_pretrained(Path(folder) / "unet")
        if ema is not None:
            ema.save_pretrained(Path(folder) / "unet_ema")

    def load(models: list, folder: str) -> None:
        while models:  # what is left in the list, accelerate would load itself
            model = accelerator.unwrap_model(models.pop())
            model.load_state_dict(load_unet(Path(folder) / "unet").state_dict())
        if ema is not None:
            _load_ema(ema, Path(folder) / "unet_ema")

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def load_unet(path: str | Path, **where) -> UNet2DConditionModel:
    """Load a U-Net alone, in float32.

    Args:
        path: Its folder, or a pipeline's folder or name on the hub.
        where: Arguments of ``from_pretrained``, e.g. ``subfolder`` and ``revision``.

    Raises:
        UserError: If it is not there or cannot be read.
    """
    try:
        return UNet2DConditionModel.from_pretrained(path, **where)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: its U-Net cannot be loaded: {error}") from error


def _load_ema(ema: EMAModel, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: that run had no --use_ema; leave it out here too")
    device, decay = ema.shadow_params[0].device, ema.decay
    counters = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = [parameter.detach() for parameter in load_unet(folder).parameters()]
    ema.load_state_dict(counters | {"shadow_params": weights})
    ema.decay = decay  # the flag of the resumed run counts
    ema.to(device)
