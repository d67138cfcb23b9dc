"""The type of the arithmetic: bfloat16 where the device computes in it, else float32."""

import os

import torch

from utils.run_folder import get_logger

_logger = get_logger("train")


def has_fast_bf16(device_type: str) -> bool:
    """Whether a device multiplies bf16 faster than float32.

    Args:
        device_type: ``cuda`` or ``cpu``.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    has = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version since 2.11
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))


def choose_precision(wanted: str | None, device: torch.device) -> str:
    """``no``, ``fp16`` or ``bf16``.

    Args:
        wanted: The flag; None takes what ``accelerate launch`` was told, and if that is nothing
            (which it passes on as ``no``), bf16 where the device has it.
        device: Where the model computes.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = wanted or launched
    if precision == "fp16" and device.type == "cpu":
        _logger.warning("fp16 needs a GPU; this run computes in float32. On a CPU try bf16.")
        return "no"
    if wanted is None and precision == "no" and has_fast_bf16(device.type):
        return "bf16"
    return precision
