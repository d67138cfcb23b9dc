"""A trained network as a folder: ``config.json`` and ``model.safetensors``, written whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from utils.backbone_weights import read_state
from utils.cli import UserError
from utils.run_folder import atomic_path, write_json

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def check_files(folder: Path, *, what: str, hint: str = "") -> None:
    """Refuse a folder without its two files.

    Args:
        folder: Where they should lie.
        what: What is looked for, for the message.
        hint: Where one comes from, for the message.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: no {what} here ({name} is missing){hint}")


def load_weights(network: torch.nn.Module, folder: Path) -> None:
    """Fill a network that was built as the folder's configuration says.

    Raises:
        UserError: If the weights do not fit it.
    """
    path = folder / WEIGHTS_NAME
    state = read_state(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: the weights are not those of {CONFIG_NAME}: {error}") from error


def weight_bytes(network: torch.nn.Module) -> bytes:
    """The weight file's content, the same for the same weights wherever they lie."""
    state = sorted(network.state_dict().items())
    tensors = {key: value.detach().cpu().contiguous() for key, value in state}
    return save(tensors, {"format": "pt"})


def hash_weights(network: torch.nn.Module) -> str:
    """SHA-256 of the weight file, the same before and after saving."""
    return hashlib.sha256(weight_bytes(network)).hexdigest()


def save_network(network: torch.nn.Module, config: Mapping[str, object], folder: Path) -> None:
    """Write the folder; the configuration last, so that a half-written one does not load."""
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        temporary.write_bytes(weight_bytes(network))
    write_json(folder / CONFIG_NAME, config)
