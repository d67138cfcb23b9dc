"""The classifier's optimiser: schedule, weight decay, mixed precision, weight averaging."""

from __future__ import annotations

import math

import torch

from utils.backbones import Network
from utils.cli import UserError

WARMUP_SHARE = 0.1
FINAL_LR_SHARE = 0.01
GRADIENT_NORM = 5.0


def learning_rate_at(step: int, *, total_steps: int, peak: float) -> float:
    """Rate of step ``step`` (0 is the first): linear warm-up, then a cosine to a hundredth."""
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    return peak * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def update_average(average: Network, network: Network, *, decay: float, step: int) -> None:
    """Move the averaged weights and batch statistics towards the current ones.

    The decay grows from 0.1 to ``decay``, so that the random start is soon forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), network.state_dict().values()):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)  # batch counters


def parameter_groups(network: Network, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and kernels with weight decay; biases and norms (one axis) without."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Precision:
    """Autocast and, for fp16, loss scaling."""

    def __init__(self, device: str, name: str):
        self.device_type = torch.device(device).type
        if name == "fp16" and self.device_type != "cuda":
            raise UserError("--mixed_precision fp16 needs a CUDA device; use bf16 or no")
        self.dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def descend(
        self,
        loss: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        network: Network,
        *,
        rate: float,
    ) -> None:
        """One optimiser step at this learning rate, the gradient's norm cut at five."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        self.scaler.step(optimizer)
        self.scaler.update()
