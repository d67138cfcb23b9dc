"""Weights a backbone starts from: a local file or torchvision's; pickled code is never run."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.backbone_names import SMALL, VIT, WEIGHT_SUFFIXES, vit_sizes
from utils.backbones import Network
from utils.cli import UserError
from utils.run_folder import sha256_file
from utils.vit import VitBackbone, fitted_state, own_layout, sizes_of

_PREFIXES = ("module.", "backbone.")  # of data-parallel checkpoints and of our own
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # training heads that are not built here
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_MAX_LISTED = 5


def full_name(name: str, source: str) -> str:
    """A backbone's name: ``vit`` gets the sizes of its weights, others stay as they are.

    Args:
        name: As ``--backbone`` has it.
        source: As for ``load_backbone_weights``.

    Raises:
        UserError: If ``vit`` has no weight file, or it holds no vision transformer.
    """
    if name != VIT:
        return name
    if not Path(source).is_file():
        raise UserError(
            f"--backbone {VIT} takes its sizes from --backbone_weights, and {source!r} is no file; "
            "a random one is called by its sizes, such as vit-192-6-8"
        )
    return sizes_of(own_layout(_clean(read_state(Path(source)))), source=source)[0].name


def load_backbone_weights(network: Network, name: str, source: str, *, offline: bool) -> str:
    """Fill the backbone, not the head, from a file or from torchvision's published weights.

    Args:
        network: Filled in place.
        name: Its backbone's name.
        source: ``none``; a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file; or a weight name
            of torchvision such as ``IMAGENET1K_V1`` or ``DEFAULT``.
        offline: Whether a download is forbidden.

    Returns:
        Where the weights came from, in words, with the file's SHA-256.

    Raises:
        UserError: If there is no such file or weight name, or the weights do not fit.
    """
    if source == "none":
        return "random weights"
    if source.endswith(WEIGHT_SUFFIXES) or Path(source).exists():
        path = Path(source)
    else:
        path = _published_weights(name, source, offline=offline)
    state = _clean(read_state(path))
    if isinstance(network.backbone, VitBackbone):
        state = fitted_state(state, network.backbone, source=str(path))
    _check_fit(path, state, network.backbone.state_dict())
    network.backbone.load_state_dict(state)
    return f"{path.name} (sha256 {sha256_file(path)})"


def _published_weights(name: str, source: str, *, offline: bool) -> Path:
    """The file of torchvision's weights ``source``, downloaded unless ``offline``."""
    if name == SMALL or vit_sizes(name):
        raise UserError(
            f"--backbone_weights {source}: no such file, and {name!r} has no published weights"
        )
    from torchvision import models

    choices = models.get_model_weights(name)
    if source not in choices.__members__:
        raise UserError(
            f"--backbone_weights {source}: no such file, and no weights of {name}; "
            f"torchvision has {', '.join(choices.__members__)}"
        )
    url = choices[source].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        if offline:
            raise UserError(
                f"--offline: {path} is missing; fetch {url} on a machine with a network and "
                f"put it there, or give its path as --backbone_weights"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_prefix(path))
    return path


def _hash_prefix(path: Path) -> str | None:
    """The first digits of the SHA-256 that torchvision puts into its file names."""
    found = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return found and found.group(1)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight file; pickled code is never run.

    Raises:
        UserError: If the file is missing, broken, or holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"weights: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # MAE's files hold the flags of their training beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: not a readable file of weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = isinstance(state, Mapping) and all(torch.is_tensor(v) for v in state.values())
    if not tensors or not state:
        raise UserError(f"{path}: holds no table of tensors")
    return dict(state)


def _clean(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The keys as this project's backbones name them."""
    cleaned = {}
    for key, value in state.items():
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        if not key.startswith(_AUXILIARY):
            cleaned[_OLD_DENSENET.sub(r"\1\2", key)] = value
    return cleaned


def _check_fit(
    path: Path, state: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    """Drop the head from ``state``; refuse what is missing, left over or of another shape."""
    missing = sorted(set(wanted) - set(state))
    extra = sorted(set(state) - set(wanted))
    for key in [key for key in extra if _is_head(key)]:
        del state[key]
    extra = [key for key in extra if not _is_head(key)]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in sorted(set(wanted) & set(state))
        if state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{kind}: {', '.join(keys[:_MAX_LISTED])} ({len(keys)} in all)"
        for kind, keys in (("missing", missing), ("not known", extra), ("wrong shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(f"{path}: these weights are of another network. " + "; ".join(problems))


def _is_head(key: str) -> bool:
    """Whether a tensor belongs to the last layer, which is always trained anew."""
    return re.match(r"(fc|head|heads\.head|classifier(\.\d+)?)\.(weight|bias)$", key) is not None
