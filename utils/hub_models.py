"""Models of transformers from a folder or the hub: safetensors only, and no code of a repository.

Shapes: N images of H x W pixels and C channels, D features.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from utils.cli import UserError
from utils.run_folder import hash_folder, sha256_file

LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "open_clip_pytorch_model.bin")
_WEIGHTS = "model.safetensors"


def local_folder(name_or_path: str, *, flag: str, offline: bool) -> Path:
    """The folder of a model, downloaded if it is a name on the hub.

    Args:
        name_or_path: A folder, or a name such as ``facebook/dinov2-large``.
        flag: What messages call it.
        offline: Whether only what was downloaded before may be used.

    Raises:
        UserError: If there is no such folder and no such name, or a download is needed.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        found = snapshot_download(
            name_or_path, allow_patterns=list(_FILES), local_files_only=offline
        )
    except LOADING_ERRORS as error:
        raise UserError(
            f"{flag} {name_or_path}: no such folder, and no model of this name "
            f"{'was downloaded before (offline)' if offline else 'could be downloaded'}: {error}"
        ) from error
    return Path(found)


def load_model(
    folder: Path, kind: str, *, flag: str, spare: str = "", **config: object
) -> transformers.PreTrainedModel:
    """A frozen float32 model of transformers.

    Args:
        folder: With ``config.json`` and safetensors.
        kind: A class of transformers.
        flag: What messages call the folder.
        spare: Part of the names of weights that may be missing, as nothing depends on them.
        config: Values that take the place of the configuration's.

    Raises:
        UserError: If it is not complete, or another model.
    """
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **config,
        )
    except LOADING_ERRORS as error:
        raise UserError(
            f"{flag} {folder}: cannot be loaded: {error}\nIt must hold config.json and "
            f"{_WEIGHTS}. Of a model you trust that has only pytorch_model.bin, make such a "
            "folder once: transformers.AutoModel.from_pretrained(NAME).save_pretrained(FOLDER), "
            "and the same with AutoProcessor."
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    missing = [name for name in missing if not (spare and spare in name)]
    if missing:
        raise UserError(f"{flag} {folder}: these weights lack {len(missing)}: {missing[0]} ...")
    return model.eval().requires_grad_(False)


def model_type(folder: Path, *, flag: str) -> str:
    """``model_type`` of a folder's ``config.json``."""
    return str(read_json(folder / "config.json", flag=flag).get("model_type"))


def read_json(path: Path, *, flag: str) -> dict:
    """A JSON file of a model's folder.

    Raises:
        UserError: If it is missing or holds no table.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: {path} is missing or not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{flag}: {path} holds no table")
    return found


def hash_weights(folder: Path) -> str:
    """SHA-256 of ``model.safetensors``, as the hub shows it; of the folder if it is in parts."""
    single = folder / _WEIGHTS
    return sha256_file(single) if single.is_file() else hash_folder(folder, (".safetensors",))


def input_settings(folder: Path, *, flag: str) -> dict:
    """The folder's ``preprocessor_config.json``; empty if it has none."""
    path = folder / "preprocessor_config.json"
    return read_json(path, flag=flag) if path.is_file() else {}
