"""How a U-Net computes fast on a device: memory layout, attention, compilation.

None of it changes what is computed beyond rounding, nor the names of the weights.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

COMPILE_MODES = ("no", "regional", "whole")


def prepare_unet(
    unet, *, device_type: str, precision: str, compile_mode: str, is_split: bool = False
) -> None:
    """Let a U-Net compute as is fastest on its device; call before accelerate prepares it.

    On a GPU the layout is channels last. On a CPU it stays contiguous: the demo's U-Net takes 431
    ms a step so, 464 ms channels last (bf16, batch 16, one core); in float32 both take the same.
    There, attention computes in float32 also under bf16, see `Float32Attention`. Compiling all of
    it gained nothing there (443 ms, channels last, after 153 s for the first step).

    Args:
        unet: A ``UNet2DConditionModel``; changed in place.
        device_type: ``cuda`` or ``cpu``.
        precision: ``no``, ``fp16`` or ``bf16``, of the arithmetic around it.
        compile_mode: One of `COMPILE_MODES`; ``regional`` compiles the transformer blocks only.
        is_split: Whether FSDP will split it, which takes contiguous weights only.
    """
    if device_type == "cuda" and not is_split:
        unet.to(memory_format=torch.channels_last)
    if device_type == "cpu" and precision == "bf16":
        use_float32_attention(unet)
    if compile_mode == "regional":
        unet.compile_repeated_blocks()
    elif compile_mode == "whole":
        unet.compile()


def use_float32_attention(unet) -> None:
    """Give each plain attention of a U-Net `Float32Attention`; special ones keep their own."""
    processors: Mapping[str, object] = unet.attn_processors
    layers = {
        f"{name}.processor": layer
        for name, layer in unet.named_modules()
        if isinstance(layer, Attention)
    }
    chosen = {
        name: Float32Attention() if _is_plain(layers[name], processor) else processor
        for name, processor in processors.items()
    }
    unet.set_attn_processor(chosen)


def _is_plain(layer: Attention, processor: object) -> bool:
    parts = (layer.spatial_norm, layer.group_norm, layer.norm_q, layer.norm_k, layer.norm_cross)
    return (
        type(processor) is AttnProcessor2_0
        and not any(parts)
        and not layer.residual_connection
        and layer.rescale_output_factor == 1
    )


class Float32Attention:
    """Attention whose softmax and products are float32, with projections in the autocast type.

    PyTorch's attention for CPUs is slower in bf16 than in float32, three times in the backward
    pass (2.15): the demo's U-Net takes 431 ms a step with this, 470 ms without (bf16, batch 16,
    one core). It also rounds less.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,  # (N, tokens, D)
        encoder_hidden_states: torch.Tensor | None = None,  # (N, L, E)
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend to the text, or without it to the image itself; returns (N, tokens, D)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (
            each.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float() for each in projected
        )  # (N, heads, tokens, D / heads)
        if attention_mask is not None:
            length = context.shape[1]
            attention_mask = attn.prepare_attention_mask(attention_mask, length, len(context))
            attention_mask = attention_mask.unflatten(0, (-1, attn.heads)).float()
        with torch.autocast(query.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        output = mixed.transpose(1, 2).flatten(2).to(projected[0].dtype)
        for layer in attn.to_out:  # projection, dropout
            output = layer(output)
        return output
