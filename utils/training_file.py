"""The state of a training on one device as one safetensors file: no pickle, whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from utils.cli import UserError
from utils.run_folder import atomic_path

Tensors = Mapping[str, torch.Tensor]


def save_state(
    path: Path,
    networks: Mapping[str, Tensors],
    optimizer: torch.optim.Optimizer,
    *,
    noise: torch.Generator,
    facts: Mapping[str, object],
) -> None:
    """Write the file, atomically.

    Args:
        path: Where.
        networks: Name -> state of a network.
        optimizer: With one tensor an entry, as AdamW.
        noise: Generator of all that is random.
        facts: What else there is to remember, as JSON has it.

    Raises:
        UserError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {**networks, "optimizer": _of_optimizer(optimizer), "noise": {"": noise.get_state()}}
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().clone().contiguous()
        for part, own in parts.items()
        for name, tensor in own.items()
    }
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"facts": json.dumps(facts)})
    except SafetensorError as error:  # of a full disk, among others
        raise UserError(f"{path} could not be written: {error}") from error


def load_state(
    path: Path,
    networks: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    noise: torch.Generator,
) -> dict[str, object]:
    """Fill networks, optimiser and generator with what ``save_state`` wrote.

    Returns:
        The facts.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, "pt", device="cpu") as file:
        facts = json.loads(file.metadata()["facts"])
        for full in file.keys():  # noqa: SIM118 (no mapping)
            part, name = full.split(".", 1)
            parts.setdefault(part, {})[name] = file.get_tensor(full)
    for name, network in networks.items():
        network.load_state_dict(parts[name])
    noise.set_state(parts["noise"][""])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts.get("optimizer", {}).items():
        number, entry = name.split(".", 1)
        state.setdefault(int(number), {})[entry] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return facts


def _of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """``<number of the parameter>.<entry>`` -> tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": t for number, own in state.items() for name, t in own.items()}
