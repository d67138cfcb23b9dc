"""The classifier's optimiser: schedule, weight decay, mixed precision, weight averaging."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.backbones import Network
from utils.cli import UserError

WARMUP_SHARE = 0.1
FINAL_LR_SHARE = 0.01
GRADIENT_NORM = 5.0
_EMBEDDINGS = (".class_token", ".pos_embedding")  # of torchvision's vision transformers
_SEED_STRIDE = 1_000_003  # more than the steps of a run, so that no two seeds share a step's


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


def parameter_groups(
    network: torch.nn.Module, weight_decay: float, *, layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """Parameters by weight decay and share of the learning rate (``lr_scale``).

    Matrices and kernels have weight decay; biases and norms (one axis), class tokens and position
    embeddings have none.

    Args:
        network: What to train.
        weight_decay: See above.
        layer_decay: See ``layer_scales``.
    """
    scales = layer_scales(network, layer_decay)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(_EMBEDDINGS)
            group = {"weight_decay": 0.0 if plain else weight_decay, "lr_scale": scales[name]}
            groups.setdefault(tuple(group.values()), group | {"params": []})
            groups[tuple(group.values())]["params"].append(parameter)
    return list(groups.values())


def layer_scales(network: torch.nn.Module, layer_decay: float) -> dict[str, float]:
    """Share of the learning rate of each parameter: ``layer_decay`` to the layers above it.

    Bao et al. 2021 (BEiT, https://arxiv.org/abs/2106.08254), as MAE and RETFound fine-tune: patch
    and position embeddings are layer 0, block i is layer i + 1, norm and head are the last.

    Raises:
        UserError: If it is not 1 and the network is no vision transformer.
    """
    names = [name for name, _ in network.named_parameters()]
    if layer_decay == 1:
        return dict.fromkeys(names, 1.0)
    found = {name: re.search(r"\bencoder_layer_(\d+)\.", name) for name in names}
    blocks = {name: int(match[1]) for name, match in found.items() if match}
    if not blocks:
        raise UserError("--layer_decay: only vision transformers (vit, vit_b_16, ...) have it")
    last = max(blocks.values()) + 2
    layers = dict.fromkeys(names, last) | {name: block + 1 for name, block in blocks.items()}
    layers |= {n: 0 for n in names if n.endswith(_EMBEDDINGS) or "conv_proj." in n}
    return {name: layer_decay ** (last - layer) for name, layer in layers.items()}


@contextmanager
def step_randomness(seed: int, step: int, device: str) -> Iterator[None]:
    """Dropout and drop path draw from torch's generators: a seed for this step, put back after."""
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed((seed * _SEED_STRIDE + step) % 2**63)
        yield


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
            group["lr"] = rate * group.get("lr_scale", 1.0)
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        self.scaler.step(optimizer)
        self.scaler.update()
