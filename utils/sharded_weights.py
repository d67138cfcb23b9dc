"""Whole weights out of a model that is split over processes (FSDP2), and back into its average.

Under FSDP2 every parameter is a DTensor of which each process holds a part, and so is every tensor
of an average that was made of them. What diffusers loads must be put together first. All functions
that say "every process" wait for the others; they also work for models that are not split.
"""

from collections.abc import Mapping

import torch
from diffusers.training_utils import EMAModel
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, e.g. of a gradient norm; call it on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a prepared model by name, whole; call it on every process.

    Args:
        accelerator: Prepared the model.
        model: As ``accelerator.prepare`` returned it.

    Returns:
        On the main process the weights, on the CPU where they were split. On the others, nothing
        where they were split.
    """
    if not accelerator.is_fsdp2:
        return accelerator.unwrap_model(model).state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def scatter_weights(accelerator, model: torch.nn.Module, weights: Mapping) -> None:
    """Put whole weights into a prepared model; call it on every process.

    Args:
        accelerator: Prepared the model.
        model: As ``accelerator.prepare`` returned it.
        weights: As `gather_weights` returns them; of a split model only the main process's count.
    """
    if not accelerator.is_fsdp2:
        accelerator.unwrap_model(model).load_state_dict(weights)
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, dict(weights), options=options)


def gather_average(accelerator, model: torch.nn.Module, ema: EMAModel) -> dict[str, torch.Tensor]:
    """The averaged weights by name, whole; call it on every process.

    Args:
        accelerator: Prepared the model.
        model: As ``accelerator.prepare`` returned it.
        ema: Average of ``model.parameters()``, made after the model was prepared.

    Returns:
        On the main process the averages, on the CPU; on the others, nothing.
    """
    average = {}
    names = (name for name, _ in accelerator.unwrap_model(model).named_parameters())
    for name, part in zip(names, ema.shadow_params, strict=True):
        tensor = whole(part)  # one at a time: a device need not hold them all
        if accelerator.is_main_process:
            average[name] = tensor.cpu()
    return average


def scatter_average(accelerator, model: torch.nn.Module, ema: EMAModel, average: Mapping) -> None:
    """Put whole averages, as `gather_average` returns them, into an average; on every process.

    Args:
        accelerator: Prepared the model.
        model: As ``accelerator.prepare`` returned it.
        ema: Average of ``model.parameters()``, made after the model was prepared.
        average: By name, the same on every process.
    """
    names = (name for name, _ in accelerator.unwrap_model(model).named_parameters())
    for name, part in zip(names, ema.shadow_params, strict=True):
        tensor = average[name].to(part.device, part.dtype)
        if isinstance(part, DTensor):
            tensor = distribute_tensor(tensor, part.device_mesh, part.placements)
        part.copy_(tensor)


def part_of(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights of one submodule, e.g. of ``unet.``, under the names that it gives them."""
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def with_weights(module, weights: Mapping[str, torch.Tensor]):
    """A module of diffusers like the given one that has these weights, which are not copied.

    Args:
        module: Tells class and configuration; may be split.
        weights: All of its weights, whole.
    """
    with torch.device("meta"):
        plain = type(module).from_config(module.config)
    plain.load_state_dict(weights, assign=True)
    return plain
