"""The masked autoencoder: transformers' ViTMAE in any size, its loss, its encoder for others.

He et al. 2022 (https://arxiv.org/abs/2111.06377). Shapes: B images, T patches, P pixels of a patch
in three channels, H = W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from utils.backbone_names import VitSizes
from utils.backbones import IMAGENET_MEAN, IMAGENET_STD
from utils.mae_flags import DECODER_HEAD_WIDTH
from utils.vit import MLP_RATIO, sine_positions

_TOKEN_STD = 0.02  # of the class and mask token at the start, as in MAE's code
_PIXEL_EPS = 1e-6  # added to a patch's variance, as ViTMAE's loss does

_RENAMED = {
    r"^vit\.embeddings\.cls_token$": "cls_token",
    r"^vit\.embeddings\.position_embeddings$": "pos_embed",
    r"^vit\.embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^vit\.layernorm\.": "norm.",
    r"^vit\.layers\.(\d+)\.layernorm_before\.": r"blocks.\1.norm1.",
    r"^vit\.layers\.(\d+)\.layernorm_after\.": r"blocks.\1.norm2.",
    r"^vit\.layers\.(\d+)\.attention\.o_proj\.": r"blocks.\1.attn.proj.",
    r"^vit\.layers\.(\d+)\.mlp\.(fc[12])\.": r"blocks.\1.mlp.\2.",
}
_QUERY = re.compile(r"^vit\.layers\.(\d+)\.attention\.q_proj\.(weight|bias)$")


@dataclass(frozen=True)
class MaeOptions:
    """Sizes and task of a masked autoencoder.

    Attributes:
        encoder: Width, depth and patch of what is kept.
        resolution: Side of the images in pixels, a multiple of the patch.
        decoder_width: A multiple of ``DECODER_HEAD_WIDTH``.
        decoder_depth: Blocks.
        mask_ratio: Share of the patches that the encoder does not see, in (0, 1).
        norm_pix_loss: Whether a patch's pixels are to be told relative to its mean and deviation.
    """

    encoder: VitSizes
    resolution: int
    decoder_width: int
    decoder_depth: int
    mask_ratio: float
    norm_pix_loss: bool

    @property
    def num_patches(self) -> int:
        """T."""
        return (self.resolution // self.encoder.patch) ** 2


def build_mae(options: MaeOptions, *, seed: int) -> ViTMAEForPreTraining:
    """An autoencoder with random weights, the same for the same seed, initialised as MAE's code."""
    width, inner = options.encoder.width, options.decoder_width
    config = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=options.encoder.depth,
        num_attention_heads=options.encoder.num_heads,
        intermediate_size=MLP_RATIO * width,
        image_size=options.resolution,
        patch_size=options.encoder.patch,
        decoder_hidden_size=inner,
        decoder_num_hidden_layers=options.decoder_depth,
        decoder_num_attention_heads=inner // DECODER_HEAD_WIDTH,
        decoder_intermediate_size=MLP_RATIO * inner,
        layer_norm_eps=1e-6,  # of timm's transformers, which are to take the encoder
        mask_ratio=options.mask_ratio,
        norm_pix_loss=options.norm_pix_loss,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTMAEForPreTraining(config)
        _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: ViTMAEForPreTraining) -> None:
    """What MAE's code starts from; transformers 5 leaves all tokens and positions at zero."""
    embeddings, decoder = model.vit.embeddings, model.decoder
    for positions in (embeddings.position_embeddings, decoder.decoder_pos_embed):
        side = round((positions.shape[1] - 1) ** 0.5)
        positions.copy_(sine_positions(side, positions.shape[2]))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    projection = embeddings.patch_embeddings.projection.weight
    nn.init.xavier_uniform_(projection.view(len(projection), -1))
    for token in (embeddings.cls_token, decoder.mask_token):
        nn.init.normal_(token, std=_TOKEN_STD)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Gray images (B, 1, H, W) in [0, 1] to what a vision transformer takes, (B, 3, H, W)."""
    mean, std = (images.new_tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def encoder_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder in the layout of MAE and timm, query, key and value in one matrix.

    Args:
        state: Of a ``ViTMAEForPreTraining``.

    Returns:
        Name -> tensor, which ``utils.vit`` and timm understand.
    """
    found = {}
    for name, tensor in state.items():
        if query := _QUERY.match(name):
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"blocks.{query[1]}.attn.qkv.{query[2]}"] = torch.cat(parts)
        for pattern, replacement in _RENAMED.items():
            if re.match(pattern, name):
                found[re.sub(pattern, replacement, name)] = tensor.contiguous()
    return found


def to_gray(pixels: torch.Tensor) -> torch.Tensor:
    """What ``normalise`` undoes: (B, 3, H, W) to (B, 1, H, W) in [0, 1], the channels' mean."""
    mean, std = (pixels.new_tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels * std + mean).mean(dim=1, keepdim=True).clamp(0, 1)


@torch.inference_mode()
def reconstruct(
    model: ViTMAEForPreTraining, pixels: torch.Tensor, masking: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, what the encoder sees of them, and the images with the rest filled in.

    With ``norm_pix_loss`` the model tells a patch relative to its mean and deviation; both are
    taken from the image, as in the paper's pictures.

    Args:
        model: In evaluation mode.
        pixels: (B, 3, H, W) of ``normalise``.
        masking: (B, T) uniform noise; the patches with the highest are masked.

    Returns:
        All (B, 1, H, W) in [0, 1]; masked patches of the second are mid-gray.
    """
    output = model(pixels, noise=masking)
    patches = model.patchify(pixels)  # B x T x P
    filled = output.logits.float()
    if model.config.norm_pix_loss:
        mean, var = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
        filled = filled * (var + _PIXEL_EPS).sqrt() + mean
    hidden = output.mask.bool()[..., None].expand_as(patches)  # B x T x P
    gray = to_gray(pixels)
    seen = model.unpatchify((~hidden).float())[:, :1] > 0
    filled = to_gray(model.unpatchify(filled))
    return gray, torch.where(seen, gray, 0.5), torch.where(seen, gray, filled)
