"""Image encoders of a captioner: a small one of convolutions, or a pretrained transformer.

Pretrained ones are read from safetensors, and no code of a repository is run. The caller seeds
torch's global generator, of which new weights are. Shapes: P patches along a side, D features.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, ViTConfig, ViTModel

from utils import hub_models
from utils.backbone_weights import read_state
from utils.backbones import IMAGENET_MEAN, IMAGENET_STD
from utils.cli import UserError
from utils.conv_encoder import ConvEncoderConfig, ConvEncoderModel
from utils.feature_network import CLIP_MEAN, CLIP_STD
from utils.vit import own_layout, resize_positions, sizes_of

SMALL = "small"
FLAG = "--encoder"
_HALF = (0.5, 0.5, 0.5)
_NO_POOLER = {"add_pooling_layer": False}  # many checkpoints lack it, and no token depends on it
_OWN_INTERPOLATION = ("beit", "dinov2_with_registers")

# Of timm's names, those of transformers; query, key and value stand in one matrix there.
_RENAMED = {
    r"^cls_token$": "embeddings.cls_token",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^norm\.": "layernorm.",
    r"^blocks\.(\d+)\.norm1\.": r"layers.\1.layernorm_before.",
    r"^blocks\.(\d+)\.norm2\.": r"layers.\1.layernorm_after.",
    r"^blocks\.(\d+)\.attn\.proj\.": r"layers.\1.attention.o_proj.",
    r"^blocks\.(\d+)\.mlp\.": r"layers.\1.mlp.",
}
_QKV = re.compile(r"^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$")


@dataclass(frozen=True)
class InputSettings:
    """What an encoder takes: (N, 3, resolution, resolution), ``(x - mean) / std``, x in [0, 1].

    Attributes:
        resolution: Side in pixels.
        mean: Of each of the three channels.
        std: Likewise.
    """

    resolution: int
    mean: tuple[float, ...] = _HALF
    std: tuple[float, ...] = _HALF


@dataclass(frozen=True)
class EncoderKind:
    """A model type of transformers: its class, and what it takes if its folder does not say."""

    name: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    options: Mapping[str, object] = field(default_factory=dict)


_CLIP = EncoderKind("CLIPVisionModel", CLIP_MEAN, CLIP_STD)
_SIGLIP = EncoderKind("SiglipVisionModel", _HALF, _HALF)
_KINDS = {
    "beit": EncoderKind("BeitModel", _HALF, _HALF, _NO_POOLER),
    "blip_vision_model": EncoderKind("BlipVisionModel", CLIP_MEAN, CLIP_STD),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "deit": EncoderKind("DeiTModel", options=_NO_POOLER),
    "dinov2": EncoderKind("Dinov2Model"),
    "dinov2_with_registers": EncoderKind("Dinov2WithRegistersModel"),
    ConvEncoderConfig.model_type: EncoderKind("ConvEncoderModel", _HALF, _HALF),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "swin": EncoderKind("SwinModel", options=_NO_POOLER),
    "vit": EncoderKind("ViTModel", _HALF, _HALF, _NO_POOLER),
    "vit_mae": EncoderKind("ViTMAEModel", options={"mask_ratio": 0.0}),
}


def load_encoder(
    name_or_path: str, *, resolution: int, offline: bool
) -> tuple[PreTrainedModel, InputSettings]:
    """An encoder for images of a resolution.

    Args:
        name_or_path: ``small``; a folder or hub name of a supported model, of which a whole CLIP
            gives its vision tower and a masked autoencoder its encoder without mask; or a file of
            weights in the layout of MAE and timm, such as ``encoder.safetensors``.
        resolution: Side in pixels. Position embeddings of another one are interpolated.
        offline: Whether only local files may be used.

    Raises:
        UserError: If it is missing, not complete, not supported, or does not take the resolution.
    """
    if name_or_path == SMALL:
        config = ConvEncoderConfig(image_size=resolution)
        return ConvEncoderModel(config), InputSettings(resolution)
    if Path(name_or_path).is_file():
        encoder = _from_timm(Path(name_or_path))
        settings = InputSettings(resolution, IMAGENET_MEAN, IMAGENET_STD)
        return fit_resolution(encoder, resolution), settings
    folder = hub_models.local_folder(name_or_path, flag=FLAG, offline=offline)
    kind = check_kind(hub_models.model_type(folder, flag=FLAG), flag=f"{FLAG} {name_or_path}")
    encoder = hub_models.load_model(folder, kind.name, flag=FLAG, **kind.options)
    if kind.name == "ViTMAEModel":
        encoder = _without_mask(encoder)
    settings = input_settings(folder, kind, resolution=resolution, flag=FLAG)
    return fit_resolution(encoder, resolution), settings


def check_kind(model_type: str, *, flag: str) -> EncoderKind:
    """What is known of a model type.

    Raises:
        UserError: If it is not supported.
    """
    if model_type not in _KINDS:
        raise UserError(
            f"{flag}: an image encoder of type {model_type!r}; supported are {', '.join(_KINDS)}"
        )
    return _KINDS[model_type]


def input_settings(folder: Path, kind: EncoderKind, *, resolution: int, flag: str) -> InputSettings:
    """Mean and deviation of ``preprocessor_config.json``, or of the kind's published models."""
    found = hub_models.input_settings(folder, flag=flag)
    mean, std = found.get("image_mean", kind.mean), found.get("image_std", kind.std)
    return InputSettings(resolution, tuple(mean), tuple(std))


def fit_resolution(encoder: PreTrainedModel, resolution: int) -> PreTrainedModel:
    """The encoder for images of a resolution, whole: with a pooler, of new weights, if it has none.

    Position embeddings are interpolated once, here, bicubic as in ``vit.resize_positions``. BEiT,
    with its tables of relative positions, and DINOv2 with registers do it their own way for every
    image.

    Raises:
        UserError: If it does not take gray images repeated to three channels, or its patches do
            not divide the resolution.
    """
    config = copy.deepcopy(encoder.config)
    channels = getattr(config, "num_channels", 3)  # BLIP's has no such entry
    if channels != 3 or resolution % config.patch_size:
        raise UserError(
            f"--resolution {resolution}: an encoder of type {config.model_type} with {channels} "
            f"channels and patches of {config.patch_size} px; supported are 3 channels, and the "
            "resolution must be a multiple of the patch"
        )
    if config.model_type not in _OWN_INTERPOLATION:
        config.image_size = resolution
    fitted = type(encoder)(config)
    wanted, per_side = fitted.state_dict(), resolution // config.patch_size
    state = {
        name: tensor if tensor.shape == wanted[name].shape else _resized(tensor, per_side)
        for name, tensor in encoder.state_dict().items()
    }
    missing, unknown = fitted.load_state_dict(state, strict=False)
    assert not unknown and all(name.startswith("pooler.") for name in missing), missing
    return fitted


def _resized(positions: torch.Tensor, per_side: int) -> torch.Tensor:
    """Position embeddings (..., K + S * S, D) of K special tokens, which stay, for P * P."""
    rows = positions.reshape(-1, positions.shape[-1])
    num_special = len(rows) - math.isqrt(len(rows)) ** 2  # 0 to 2
    square = torch.cat([rows[:1], rows[num_special:]])[None]  # its first row is not resized
    resized = torch.cat([rows[:num_special], resize_positions(square, per_side)[0, 1:]])
    return resized.reshape(*positions.shape[:-2], *resized.shape)


def _without_mask(mae: PreTrainedModel) -> ViTModel:
    """A masked autoencoder's encoder as a plain vision transformer, of the same tensor names."""
    known = ViTConfig().to_dict().keys() - {"model_type", "architectures"}
    shared = {name: value for name, value in mae.config.to_dict().items() if name in known}
    encoder = ViTModel(ViTConfig(**shared), add_pooling_layer=False)
    encoder.load_state_dict(mae.state_dict())
    return encoder


def _from_timm(path: Path) -> ViTModel:
    """A vision transformer from a file in the layout of MAE and timm, without decoder and heads.

    Raises:
        UserError: If it holds no such network, or one whose tokens pass no norm.
    """
    state = read_state(path)
    sizes, per_side = sizes_of(own_layout(state), source=f"{FLAG} {path}")
    if "norm.weight" not in state:
        raise UserError(
            f"{FLAG} {path}: it was fine-tuned as a classifier (no norm.weight): give the "
            "pre-trained file"
        )
    config = ViTConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.num_heads,
        intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
        image_size=per_side * sizes.patch,
        patch_size=sizes.patch,
        layer_norm_eps=1e-6,  # timm's
    )
    found = {}
    for name, tensor in state.items():
        if match := _QKV.match(name):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"layers.{match[1]}.attention.{part}_proj.{match[2]}"] = third
        for pattern, replacement in _RENAMED.items():
            if re.match(pattern, name):
                found[re.sub(pattern, replacement, name)] = tensor
    encoder = ViTModel(config, add_pooling_layer=False)
    try:
        encoder.load_state_dict(found)
    except RuntimeError as error:
        raise UserError(f"{FLAG} {path}: not a vision transformer of timm: {error}") from error
    return encoder
