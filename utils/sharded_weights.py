"""Whole weights out of a model that is split over processes (FSDP2), and back into its average.

Under FSDP2 every parameter is a DTensor of which each process holds a part, and so is every tensor
of its average. What diffusers loads, or what one process alone computes with, must be put together
first. All functions that say "every process" wait for the others.
"""

import copy

import torch
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor, distribute_tensor

from utils.trained_model import TrainedModel, trained_parameters


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, e.g. of a gradient norm; call it on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def blank_copy(model: TrainedModel) -> TrainedModel:
    """The same module without memory for its parameters; made before the model is split.

    A split module cannot be copied.
    """
    blanks = {
        id(parameter): torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, blanks)


def whole_model(
    model, blank: TrainedModel, ema: EMAModel | None = None, *, device, keep: bool = True
) -> TrainedModel | None:
    """A plain model with all weights of a split one; call it on every process.

    Args:
        model: As ``accelerator.prepare`` returned it.
        blank: Its `blank_copy`.
        ema: Average of what is trained, split too; its tensors take the place of the weights.
        device: Where the plain model goes.
        keep: Whether this process needs it; the others only send their parts.

    Returns:
        The plain model, or None where it is not needed.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    averages = {} if ema is None else dict(zip(trained, ema.shadow_params, strict=True))
    weights = {}
    for name, parameter in model.named_parameters():
        tensor = whole(averages.get(name, parameter.detach()))  # one at a time on the device
        if keep:
            weights[name] = tensor.to(device)
    if not keep:
        return None
    plain = copy.deepcopy(blank)
    missing = plain.load_state_dict(weights, strict=False, assign=True).missing_keys
    lost = set(missing) & {name for name, _ in plain.named_parameters()}
    assert not lost, f"the split model has other names: {min(lost)} is missing"
    return plain.to(device)


def split_average(ema: EMAModel, model, averages: list[torch.Tensor]) -> None:
    """Let an average consist of these tensors, split as the model is; call it on every process.

    Args:
        ema: Average of what is trained.
        model: As ``accelerator.prepare`` returned it.
        averages: Whole, one per trained parameter, the same on every process.
    """
    split = []
    for parameter, average in zip(trained_parameters(model), averages, strict=True):
        tensor = average.detach().to(parameter.device, parameter.dtype)
        split.append(distribute_tensor(tensor, parameter.device_mesh, parameter.placements))
    ema.shadow_params = split
