"""Vision transformers from a local checkpoint in the layout of MAE and timm, such as RETFound.

RETFound is Zhou et al. 2023 (https://doi.org/10.1038/s41586-023-06555-x), MAE He et al. 2022
(https://arxiv.org/abs/2111.06377). The network is torchvision's, whose attention holds query, key
and value in one matrix as timm's does, so that its tensors are only renamed. Shapes: N images, T
patch tokens, D width.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torchvision.models import VisionTransformer

from utils.backbone_weights import read_state
from utils.cli import UserError
from utils.extractor_names import VIT_FILE
from utils.feature_network import FeatureNetwork, Preprocessing
from utils.run_folder import sha256_file

HEAD_WIDTH = 64  # of every published ViT-S, B, L and H/14 but the last, which has 80
_MAX_LISTED = 3

# What training needs and a feature does not: MAE's decoder, classification heads.
_NOT_THE_TRUNK = ("decoder_", "mask_token", "head.", "fc_norm.", "norm.")
_RENAMED = {
    r"^cls_token$": "class_token",
    r"^pos_embed$": "encoder.pos_embedding",
    r"^patch_embed\.proj\.": "conv_proj.",
    r"^blocks\.(\d+)\.norm1\.": r"encoder.layers.encoder_layer_\1.ln_1.",
    r"^blocks\.(\d+)\.norm2\.": r"encoder.layers.encoder_layer_\1.ln_2.",
    r"^blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.encoder_layer_\1.self_attention.in_proj_",
    r"^blocks\.(\d+)\.attn\.proj\.": r"encoder.layers.encoder_layer_\1.self_attention.out_proj.",
    r"^blocks\.(\d+)\.mlp\.fc1\.": r"encoder.layers.encoder_layer_\1.mlp.0.",
    r"^blocks\.(\d+)\.mlp\.fc2\.": r"encoder.layers.encoder_layer_\1.mlp.3.",
}


class Trunk(nn.Module):
    """A vision transformer up to its last layer's tokens."""

    def __init__(self, state: Mapping[str, torch.Tensor], *, source: str):
        """Build it in the sizes of a checkpoint's tensors and fill it.

        Args:
            state: Name -> tensor, as timm and MAE name them; decoder and heads are passed over.
                The tokens pass the norm ``norm``, or with ``fc_norm`` their mean does.
            source: What messages call the file.

        Raises:
            UserError: If these are not such a network's tensors.
        """
        super().__init__()
        self.network = _build(state, source)
        after_mean = "fc_norm.weight" in state
        self.width = self.network.hidden_dim
        self.after_mean = nn.LayerNorm(self.width, eps=1e-6) if after_mean else nn.Identity()
        if after_mean:
            self.network.encoder.ln = nn.Identity()
        norm = {f"after_mean.{k}": state.get(f"fc_norm.{k}") for k in ("weight", "bias")}
        if not after_mean:
            norm = {f"network.encoder.ln.{k}": state.get(f"norm.{k}") for k in ("weight", "bias")}
        found = {f"network.{name}": tensor for name, tensor in _renamed(state).items()}
        found |= {name: tensor for name, tensor in norm.items() if tensor is not None}
        wanted = {name: tensor.shape for name, tensor in self.state_dict().items()}
        wrong = [n for n in wanted if n not in found or found[n].shape != wanted[n]]
        wrong += [name for name in found if name not in wanted]
        if wrong:
            raise UserError(
                f"{source}: not a vision transformer in the layout of MAE and timm: "
                f"{', '.join(wrong[:_MAX_LISTED])} do not fit, {len(wrong)} in all"
            )
        self.load_state_dict(found)
        self.float().eval().requires_grad_(False)

    @property
    def side(self) -> int:
        """Of the input in pixels, which the position embeddings fix."""
        return self.network.image_size

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, side, side) normalised to (N, 1 + T, D), the class token first."""
        patches = self.network.conv_proj(images).flatten(2).transpose(1, 2)  # N x T x D
        first = self.network.class_token.expand(len(images), -1, -1)
        return self.network.encoder(torch.cat([first, patches], dim=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, side, side) normalised to the mean of the patch tokens (N, D)."""
        return self.after_mean(self.tokens(images)[:, 1:].mean(dim=1))


def _build(state: Mapping[str, torch.Tensor], source: str) -> VisionTransformer:
    """Torchvision's network in the sizes of these tensors, without its head."""
    sizes = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    missing = [name for name in sizes if name not in state]
    if missing:
        raise UserError(
            f"{source}: no vision transformer here ({missing[0]} is missing). {VIT_FILE}"
        )
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    per_side = math.isqrt(state["pos_embed"].shape[1] - 1)
    if width % HEAD_WIDTH or per_side**2 + 1 != state["pos_embed"].shape[1]:
        raise UserError(
            f"{source}: a transformer of width {width}, {state['pos_embed'].shape[1]} positions; "
            f"known are heads of {HEAD_WIDTH} and a square of patches with a class token"
        )
    with torch.device("meta"):
        network = VisionTransformer(
            image_size=per_side * patch,
            patch_size=patch,
            num_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            num_heads=width // HEAD_WIDTH,
            hidden_dim=width,
            mlp_dim=len(state["blocks.0.mlp.fc1.weight"]),
        )
    network.heads = nn.Identity()
    return network.to_empty(device="cpu")


def _renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith(_NOT_THE_TRUNK):
            for pattern, replacement in _RENAMED.items():
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
    return renamed


class VitFeatures(FeatureNetwork):
    """Mean of the patch tokens, normalised as the checkpoint says."""

    note = "A vision transformer of the user's: compares only with the same weights."

    def __init__(self, weights: Path, *, device: str):
        """Read the weight file; pickled code in it is never run."""
        # MAE's own files hold the flags of their training beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = read_state(weights)
        self.trunk = Trunk(state, source=str(weights)).to(device)
        super().__init__("vit", Preprocessing(self.trunk.side), device=device)
        averaged = isinstance(self.trunk.after_mean, nn.LayerNorm)
        self.pooling = (
            "norm of the mean of the patch tokens (fc_norm)"
            if averaged
            else "mean of the normed patch tokens"
        )
        self.dim, self.weights, self.sha256 = self.trunk.width, str(weights), sha256_file(weights)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, side, side, C) uint8 to pool features (N, D)."""
        return self.trunk(self.preprocessing.normalise(pixels)), None
