"""FSDP2 and DeepSpeed, where `accelerate launch` was told to use them: what they need, cannot do.

Everything else about them stands in `utils.trained_weights`.
"""

import argparse

import torch
from accelerate.utils import DistributedType

from utils.cli import UserError
from utils.sharded_weights import whole

MAX_ZERO_STAGE = 2  # beyond it the weights themselves are split


def set_up_engine(args: argparse.Namespace, accelerator, precision: str) -> None:
    """Hand the flags to the engine that splits the training, if there is one.

    Args:
        args: The flags.
        accelerator: Made with them.
        precision: ``no``, ``fp16`` or ``bf16``.

    Raises:
        UserError: If its configuration or the flags ask for what does not work with it.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        _refuse("FSDP", _conflicts_of_fsdp(args, accelerator.state.fsdp_plugin))
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        _refuse("DeepSpeed", _conflicts_of_deepspeed(args, config, precision))
        config["train_micro_batch_size_per_gpu"] = args.train_batch_size
        config["gradient_clipping"] = args.max_grad_norm
        # Weights and moments stay float32.
        config["torch_autocast"] = {"enabled": precision == "bf16", "dtype": "bfloat16"}


def _conflicts_of_fsdp(args: argparse.Namespace, plugin) -> tuple[tuple[bool, str], ...]:
    return (
        (plugin.fsdp_version != 2, "only version 2 works here: set fsdp_version: 2"),
        (
            plugin.activation_checkpointing,
            "leave out fsdp_activation_checkpointing; --gradient_checkpointing does it",
        ),
        (
            plugin.cpu_ram_efficient_loading,
            "set fsdp_cpu_ram_efficient_loading: false; every process loads the whole model",
        ),
        (args.offload_ema, "--offload_ema: the average is split over the GPUs and stays there"),
        (args.use_8bit_adam, "--use_8bit_adam: it does not work on split weights"),
        _needs_a_whole_reference(args),
    )


def _needs_a_whole_reference(args: argparse.Namespace) -> tuple[bool, str]:
    return (
        args.preference_pairs is not None and args.train != "lora",
        "--preference_pairs: every GPU would hold a second, whole U-Net as reference; --train lora "
        "needs none",
    )


def _conflicts_of_deepspeed(
    args: argparse.Namespace, config: dict, precision: str
) -> tuple[tuple[bool, str], ...]:
    rounded = [name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled") is True]
    return (
        (
            config["zero_optimization"]["stage"] > MAX_ZERO_STAGE,
            f"ZeRO works up to stage {MAX_ZERO_STAGE}; to split the weights too, take FSDP "
            "(configs/fsdp.yaml)",
        ),
        (
            bool(rounded),
            f"{' '.join(rounded)}: enabled rounds the weights and their average; disable it as in "
            "configs/deepspeed_zero2.json, --mixed_precision bf16 computes in bf16 all the same",
        ),
        (precision == "fp16", "--mixed_precision fp16 does not work with it; take bf16 or no"),
        _needs_a_whole_reference(args),
    )


def _refuse(engine: str, conflicts: tuple[tuple[bool, str], ...]) -> None:
    messages = [message for is_wrong, message in conflicts if is_wrong]
    if messages:
        raise UserError("\n".join(f"{engine}: {message}" for message in messages))


def clip_gradients(accelerator, parameters: list, max_norm: float) -> torch.Tensor | float:
    """Limit the gradient's norm; call it on every process, where gradients are complete.

    DeepSpeed has clipped them already, and made its step.

    Returns:
        The norm before, whole on every process.
    """
    return whole(accelerator.clip_grad_norm_(parameters, max_norm))


def precision_used(accelerator) -> str:
    """``no``, ``fp16`` or ``bf16``; of DeepSpeed's own autocast accelerate knows nothing."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        return "bf16" if config["torch_autocast"]["enabled"] else "no"
    return accelerator.mixed_precision
