"""How much arithmetic a training step is, and how much the device can do."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

PASSES_PER_STEP = 3  # the backward pass is about two forward passes
_MATRIX_SIDES = {"cuda": 8192, "cpu": 2048}
_SECONDS = 1.0


def unet_flops(unet, *, text_length: int) -> int:
    """FLOPs of one image's forward pass through a U-Net; a multiplication and an addition are two.

    Counted on the device "meta": nothing is computed.

    Args:
        unet: A ``UNet2DConditionModel``; its configuration counts, not its weights.
        text_length: Tokens of the text embeddings.
    """
    config = unet.config
    with torch.device("meta"):
        model = type(unet).from_config(config)
        side = config.sample_size
        latents = torch.empty(1, config.in_channels, side, side)
        text = torch.empty(1, text_length, config.cross_attention_dim)
        timesteps = torch.empty(1, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(latents, timesteps, text)
    return counter.get_total_flops()


def matmul_rate(device: torch.device) -> float:
    """FLOPs a second of large bf16 matrix products on this device, measured for about a second."""
    side = _MATRIX_SIDES.get(device.type, 2048)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = left @ right  # not timed: the library is loaded here
    count, began = 0, _now(device)
    while (ended := _now(device)) - began < _SECONDS:
        for _ in range(10):
            torch.matmul(left, right, out=product)
        count += 10
    return 2 * side**3 * count / (ended - began)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
