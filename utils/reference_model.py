"""The frozen model that preferences are measured against: what is trained, as it was at the start.

It is the starting pipeline's, also in a resumed run, never a checkpoint's.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.trained_model import TrainedModel
from utils.unet_speed import prepare_unet


class Reference:
    """With adapters, the model itself while they are off; else a frozen copy of it."""

    def __init__(self, accelerator, model: TrainedModel, compile_mode: str) -> None:
        """Keep what is needed; call it before the model is trained, resumed or wrapped.

        Args:
            accelerator: Tells device and arithmetic.
            model: What is going to be trained.
            compile_mode: See `utils.unet_speed.prepare_unet`.
        """
        self._accelerator = accelerator
        self._copy = None
        if not model.has_adapters:
            self._copy = copy.deepcopy(model).requires_grad_(False).to(accelerator.device)
            prepare_unet(
                self._copy.unet,
                device_type=accelerator.device.type,
                precision=accelerator.mixed_precision,
                compile_mode=compile_mode,
            )

    @torch.no_grad()
    def predict(self, model, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor):
        """Prediction (N, C, h, w), as the model's forward pass made it at the start.

        Args:
            model: As accelerate prepared it; the adapters in it are off meanwhile.
            noisy: Latents with noise, (N, C, h, w).
            timesteps: (N,) int64.
            text: Embeddings (N, L, D).
        """
        if self._copy is not None:
            with self._accelerator.autocast():
                return self._copy(noisy, timesteps, text).sample
        with adapters_off(self._accelerator.unwrap_model(model).unet):
            return model(noisy, timesteps, text).sample


@contextmanager
def adapters_off(unet: torch.nn.Module) -> Iterator[None]:
    """Let a U-Net compute without its adapters, which stay trainable."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in unet.modules() if isinstance(layer, BaseTunerLayer)]
    assert layers, "the U-Net has no adapters"
    # Not peft's own switch: it also freezes the adapters and thaws them, and what wraps or splits
    # the model goes by what needed a gradient when it first looked.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
