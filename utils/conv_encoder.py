"""A small convolutional image encoder that transformers takes for one of its own.

A vision transformer learns to look at an image from tens of thousands of them; convolutions learn
it from hundreds. The layers are those of the diagnosis classifier ``small``; their last map, 16
pixels a place, are the tokens that a decoder's cross-attention reads.

Importing this module makes transformers know the encoder. Shapes:
N images of H = W = image_size, T = (H / 16)^2 tokens, D features.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from utils.backbones import SMALL_WIDTHS, SmallBackbone

TOKEN_PX = 16
_POSITION_STD = 0.3  # of tokens whose deviation is 1


class ConvEncoderConfig(PreTrainedConfig):
    """Sizes of a ``ConvEncoderModel``: only the side of its images can be chosen."""

    model_type = "oct_conv_encoder"
    image_size: int = 96
    patch_size: int = TOKEN_PX
    num_channels: int = 3
    hidden_size: int = SMALL_WIDTHS[-1]


class ConvEncoderModel(PreTrainedModel):
    """Gray image to tokens with their place."""

    config_class = ConvEncoderConfig
    main_input_name = "pixel_values"
    base_model_prefix = "encoder"

    def __init__(self, config: ConvEncoderConfig):
        super().__init__(config)
        per_side = -(-config.image_size // TOKEN_PX)
        self.backbone = SmallBackbone()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.positions = nn.Parameter(torch.empty(1, per_side**2, config.hidden_size))
        nn.init.normal_(self.positions, std=_POSITION_STD)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every layer has had its start from its own constructor."""

    def forward(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutput:
        """Tokens (N, T, D) of normalised images (N, 3, H, W), of which the first channel is read.

        Raises:
            ValueError: If the images have another side than ``image_size``.
        """
        side = self.config.image_size
        if pixel_values.shape[-2:] != (side, side):
            raise ValueError(f"images of {tuple(pixel_values.shape[-2:])} px; this takes {side}")
        tokens = self.backbone.layers(pixel_values[:, :1]).flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=self.norm(tokens) + self.positions)


AutoConfig.register(ConvEncoderConfig.model_type, ConvEncoderConfig)
AutoModel.register(ConvEncoderConfig, ConvEncoderModel)
