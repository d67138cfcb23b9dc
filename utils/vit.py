"""Vision transformers in the layout of MAE and timm, such as RETFound's, to train or frozen.

RETFound is Zhou et al. 2023 (https://doi.org/10.1038/s41586-023-06555-x), MAE He et al. 2022
(https://arxiv.org/abs/2111.06377). The network is torchvision's, whose attention holds query, key
and value in one matrix as timm's does, so that its tensors are only renamed. Shapes: N images, T
patch tokens, D width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import EncoderBlock
from torchvision.ops import StochasticDepth

from utils.backbone_names import HEAD_WIDTH, VitSizes
from utils.cli import UserError
from utils.extractor_names import VIT_FILE

MLP_RATIO = 4  # hidden width of a block's perceptron, in widths
_MAX_LISTED = 3
_POSITIONS = "network.encoder.pos_embedding"
_PATCHES = "network.conv_proj.weight"
_FIRST_MLP = "network.encoder.layers.encoder_layer_0.mlp.0.weight"

# What training needs and a feature does not: MAE's decoder, classification heads.
_NOT_THE_TRUNK = ("decoder_", "mask_token", "head.")
_BLOCK = r"network.encoder.layers.encoder_layer_\1"
_RENAMED = {
    r"^cls_token$": "network.class_token",
    r"^pos_embed$": _POSITIONS,
    r"^patch_embed\.proj\.": "network.conv_proj.",
    r"^norm\.": "network.encoder.ln.",
    r"^fc_norm\.": "after_mean.",
    r"^blocks\.(\d+)\.norm1\.": rf"{_BLOCK}.ln_1.",
    r"^blocks\.(\d+)\.norm2\.": rf"{_BLOCK}.ln_2.",
    r"^blocks\.(\d+)\.attn\.qkv\.": rf"{_BLOCK}.self_attention.in_proj_",
    r"^blocks\.(\d+)\.attn\.proj\.": rf"{_BLOCK}.self_attention.out_proj.",
    r"^blocks\.(\d+)\.mlp\.fc1\.": rf"{_BLOCK}.mlp.0.",
    r"^blocks\.(\d+)\.mlp\.fc2\.": rf"{_BLOCK}.mlp.3.",
}


def sine_positions(per_side: int, width: int) -> torch.Tensor:
    """Position embeddings that a transformer starts from: sines and cosines of row and column.

    As the encoder of MAE has them: (sin row, cos row, sin column, cos column), a quarter of the
    width each, with frequencies from 1 down to about 1e-4; zeros for the class token.

    Args:
        per_side: Patches along a side, P.
        width: D, a multiple of 4.

    Returns:
        (1, 1 + P * P, D) float32.
    """
    frequencies = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(per_side, dtype=torch.float64)[:, None] * frequencies  # P x D/4
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # P x D/2
    rows, columns = waves.repeat_interleave(per_side, dim=0), waves.repeat(per_side, 1)
    patches = torch.cat([rows, columns], dim=1)
    return torch.cat([torch.zeros_like(patches[:1]), patches])[None].float()


class VitBackbone(nn.Module):
    """A vision transformer with random weights, whose feature is the mean of its patch tokens.

    The mean, not the tokens, passes the last norm, as when MAE and RETFound are fine-tuned.
    Position embeddings start as ``sine_positions`` and are trained.
    """

    def __init__(self, sizes: VitSizes, *, side: int, mlp_dim: int = 0, averaged: bool = True):
        """Build it.

        Args:
            sizes: Of the network.
            side: Of the input in pixels, which the position embeddings fix.
            mlp_dim: Hidden width of the perceptrons; 0 is ``MLP_RATIO`` widths.
            averaged: Whether the last norm is the mean's (timm's ``fc_norm``), not the tokens'.

        Raises:
            UserError: If the side is not a multiple of the patch.
        """
        super().__init__()
        if side % sizes.patch:
            raise UserError(
                f"{sizes.name} cannot take {side} px images: not a multiple of {sizes.patch}"
            )
        self.network = VisionTransformer(
            image_size=side,
            patch_size=sizes.patch,
            num_layers=sizes.depth,
            num_heads=sizes.num_heads,
            hidden_dim=sizes.width,
            mlp_dim=mlp_dim or MLP_RATIO * sizes.width,
        )
        self.network.heads = nn.Identity()
        with torch.no_grad():
            start = sine_positions(side // sizes.patch, sizes.width)
            self.network.encoder.pos_embedding.copy_(start)
        self.width = sizes.width
        self.after_mean = nn.LayerNorm(self.width, eps=1e-6) if averaged else nn.Identity()
        if averaged:
            self.network.encoder.ln = nn.Identity()

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


class Trunk(VitBackbone):
    """A vision transformer from a checkpoint, frozen."""

    def __init__(self, state: Mapping[str, torch.Tensor], *, source: str):
        """Build it in the sizes of a checkpoint's tensors and fill it.

        Args:
            state: Name -> tensor, as timm and MAE name them; decoder and heads are passed over.
                The tokens pass the norm ``norm``, or with ``fc_norm`` their mean does.
            source: What messages call the file.

        Raises:
            UserError: If these are not such a network's tensors.
        """
        found = own_layout(state)
        sizes, per_side = sizes_of(found, source=source)
        averaged = "after_mean.weight" in found
        shape = {"side": per_side * sizes.patch, "mlp_dim": len(found[_FIRST_MLP])}
        with torch.device("meta"):
            super().__init__(sizes, averaged=averaged, **shape)
        self.to_empty(device="cpu")
        if averaged:
            found = _without_token_norm(found)
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


def own_layout(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as ``VitBackbone`` names them, without decoder and heads; its own names stay."""
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith(_NOT_THE_TRUNK):
            for pattern, replacement in _RENAMED.items():
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
    return renamed


def sizes_of(state: Mapping[str, torch.Tensor], *, source: str) -> tuple[VitSizes, int]:
    """The network's sizes, and how many patches it has along a side.

    Args:
        state: In ``own_layout``.
        source: What messages call the file.

    Raises:
        UserError: If the tensors are not a vision transformer's, or its sizes are not known.
    """
    if any(name not in state for name in (_PATCHES, _POSITIONS, _FIRST_MLP)):
        raise UserError(
            f"{source}: no vision transformer here (patch_embed.proj.weight, pos_embed or "
            f"blocks.0.mlp.fc1.weight is missing). {VIT_FILE}"
        )
    width, _, patch, _ = state[_PATCHES].shape
    num_positions = state[_POSITIONS].shape[1]
    per_side = math.isqrt(num_positions - 1)
    if width % HEAD_WIDTH or per_side**2 + 1 != num_positions:
        raise UserError(
            f"{source}: a transformer of width {width}, {num_positions} positions; "
            f"known are heads of {HEAD_WIDTH} and a square of patches with a class token"
        )
    depth = len(set(re.findall(r"encoder_layer_(\d+)\.", " ".join(state))))
    return VitSizes(width, depth, patch), per_side


def fitted_state(
    state: Mapping[str, torch.Tensor], backbone: VitBackbone, *, source: str
) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors for a classifier's backbone, in its own layout.

    As MAE's and RETFound's fine-tuning do: position embeddings of another image size are
    interpolated, the norm of the tokens goes, the norm of their mean starts afresh where the
    checkpoint has none. Whether the rest fits is for the caller to check.

    Args:
        state: As in a file, of timm's, MAE's or this project's layout.
        backbone: What it is for; unchanged.
        source: What messages call the file.

    Raises:
        UserError: As ``sizes_of``, and if the sizes are not the backbone's.
    """
    found = own_layout(state)
    there, wanted = (sizes_of(s, source=source)[0] for s in (found, backbone.state_dict()))
    if there != wanted:
        raise UserError(
            f"{source}: these weights are of another network, {there.name}, not {wanted.name}; "
            "--backbone vit takes the sizes of the weights"
        )
    found = {f"after_mean.{k}": v for k, v in backbone.after_mean.state_dict().items()} | found
    per_side = backbone.side // backbone.network.patch_size
    found[_POSITIONS] = resize_positions(found[_POSITIONS], per_side)
    return _without_token_norm(found)


def resize_positions(positions: torch.Tensor, per_side: int) -> torch.Tensor:
    """Position embeddings of a class token and a square of patches, for another square.

    Bicubic, as in MAE's fine-tuning (He et al. 2022); the class token's stays.

    Args:
        positions: (1, 1 + S * S, D).
        per_side: Patches along a side, P.

    Returns:
        (1, 1 + P * P, D) float32; the same values if S = P.
    """
    old = math.isqrt(positions.shape[1] - 1)
    positions = positions.float()
    if old == per_side:
        return positions
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # 1 x D x S x S
    grid = F.interpolate(grid, size=(per_side, per_side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _without_token_norm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if not k.startswith("network.encoder.ln.")}


def set_drop_path(network: nn.Module, rate: float) -> None:
    """Let training skip a transformer's branches at random, the deeper the more often.

    Huang et al. 2016 (https://arxiv.org/abs/1603.09382): the branches of block i of n are skipped
    with probability ``rate * i / (n - 1)`` for each image; evaluation skips none.

    Args:
        network: Changed in place; holds torchvision's transformer.
        rate: Of the last block, in [0, 1).

    Raises:
        UserError: If it is above 0 and there is no such transformer.
    """
    if not rate:
        return
    blocks = [module for module in network.modules() if isinstance(module, EncoderBlock)]
    if not blocks:
        raise UserError("--drop_path: only vision transformers (vit, vit_b_16, ...) have it")
    for number, block in enumerate(blocks):
        share = rate * number / max(1, len(blocks) - 1)
        block.dropout = StochasticDepth(share, "row")
        block.mlp[-1] = StochasticDepth(share, "row")  # in place of the dropout after the branch
