"""How well a network of ``utils/captioner_networks.py`` foretells a report, token by token.

Shapes: N images of H = W pixels, T tokens of an image with D features, L tokens of a report, V of
the vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from transformers import BlipForConditionalGeneration, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


def encode(network: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor | None:
    """What the decoder reads of images, (N, T, D); None for BLIP, which generates from images."""
    if isinstance(network, BlipForConditionalGeneration):
        return None
    return network.encoder(pixel_values).last_hidden_state


def encoded(tokens: torch.Tensor) -> dict[str, BaseModelOutput]:
    """Argument for tokens of `encode`, for one call: `generate` changes what it is given."""
    return {"encoder_outputs": BaseModelOutput(last_hidden_state=tokens)}


def token_losses(
    network: PreTrainedModel,
    pixel_values: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy of each token after the first, given the image and the true tokens before.

    Args:
        network: Of ``build_network`` or ``load_network``, as it is or prepared by accelerate.
        pixel_values: (N, 3, H, W), as ``InputSettings`` says.
        ids: (N, L) int64, each row from ``bos`` to ``eos``, then padding.
        mask: (N, L), 1 up to ``eos``, then 0.
        label_smoothing: Share of the target that is spread over the vocabulary, in [0, 1).
        tokens: Of `encode`, where they are known: the images are not encoded again.

    Returns:
        (N, L - 1) float32 in nats, 0 for padding.
    """
    seen, targets = ids[:, :-1], ids[:, 1:]  # padding comes last: no token before it attends to it
    if isinstance(extract_model_from_parallel(network), BlipForConditionalGeneration):
        output = network(pixel_values, input_ids=seen, attention_mask=mask[:, :-1])
    else:
        known = {} if tokens is None else encoded(tokens)
        output = network(
            pixel_values, decoder_input_ids=seen, decoder_attention_mask=mask[:, :-1], **known
        )
    losses = F.cross_entropy(
        output.logits.float().transpose(1, 2),  # N x V x (L - 1)
        targets,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses * mask[:, 1:]


def report_loss(
    network: PreTrainedModel,
    pixel_values: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean of ``token_losses`` over the batch's tokens that are no padding, a scalar."""
    losses = token_losses(network, pixel_values, ids, mask, label_smoothing=label_smoothing)
    return losses.sum() / mask[:, 1:].sum()
