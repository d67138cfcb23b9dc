"""Where a report model looks at the scan while it writes a word: cross-attention as a map.

Attention is no explanation: other weights can give the same words (Jain and Wallace 2019,
https://arxiv.org/abs/1902.10186). A map shows what was read, not why a word was chosen.

Shapes: T tokens of a text, E tokens of the encoder, H = W pixels, h = w patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

# A run of letters and digits; where words are written without spaces, each character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_HEAT = np.array([[90, 0, 60], [150, 20, 70], [225, 85, 30], [250, 175, 50], [255, 245, 180]])
_OPACITY = 0.7  # of the last colour
_FULL_COLOUR = 3.0  # times as much as in an even reading, or the map's peak if that is more


@dataclass(frozen=True)
class WordMap:
    """What was looked at while a word was written.

    Attributes:
        word: As it stands in the text.
        start: Its first character in the text.
        end: Behind its last character.
        map: Share of the attention that each patch gets, (h, w) float32 in [0, 1]. The sum is 1
            less what class tokens get, which have no place.
    """

    word: str
    start: int
    end: int
    map: np.ndarray


def word_maps(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pixel_values: torch.Tensor,
    text: str,
) -> list[WordMap]:
    """A map of each word of a report, written by force (the true tokens before each token).

    Of the decoder's layers the last is shown, the one whose output chooses the token, and the mean
    of its heads; of a word's tokens the mean, each while it is being predicted.

    Args:
        network: Vision-encoder-decoder or BLIP, in evaluation mode.
        tokenizer: A fast one, which tells where a token stands.
        pixel_values: (1, 3, H, W), on the network's device.
        text: The report. Words beyond the longest text that the decoder takes have no map.
    """
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    room = network.config.get_text_config(decoder=True).max_position_embeddings - 1
    ids, places = encoded["input_ids"][:room], encoded["offset_mapping"][:room]
    if not ids:
        return []
    attention = attention_rows(network, pixel_values, [tokenizer.bos_token_id, *ids])
    found = []
    for word in _WORD.finditer(text):
        tokens = [n for n, (a, b) in enumerate(places) if a < word.end() and word.start() < b]
        if tokens:
            heat = to_grid(attention[tokens].mean(axis=0))
            found.append(WordMap(word.group(), word.start(), word.end(), heat))
    return found


@torch.inference_mode()
def attention_rows(
    network: PreTrainedModel, pixel_values: torch.Tensor, ids: Sequence[int]
) -> np.ndarray:
    """Cross-attention (T, E) float32 of the last layer, mean over heads; rows sum to 1.

    Row t is that of token t as input, which predicts token t + 1.

    Args:
        network: See ``word_maps``.
        pixel_values: (1, 3, H, W).
        ids: T tokens.
    """
    tokens = torch.tensor([list(ids)], device=pixel_values.device)
    if isinstance(network, BlipForConditionalGeneration):
        seen = network.vision_model(pixel_values).last_hidden_state
        with _eager(network.text_decoder):
            found = network.text_decoder(
                input_ids=tokens, encoder_hidden_states=seen, output_attentions=True
            )
    else:
        seen = network.encoder(pixel_values)
        with _eager(network.decoder):
            found = network(encoder_outputs=seen, decoder_input_ids=tokens, output_attentions=True)
    return found.cross_attentions[-1][0].mean(dim=0).float().cpu().numpy()


@contextmanager
def _eager(decoder: PreTrainedModel) -> Iterator[None]:
    """Attention written out: the fast kernels do not tell their weights."""
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def to_grid(row: np.ndarray) -> np.ndarray:
    """Weights (E,) of an encoder's tokens as (h, w), without class and register tokens.

    The images are squares; tokens without a place come first (ViT, DeiT, CLIP, BLIP, DINOv2) or
    there is none (Swin).
    """
    side = math.isqrt(len(row))
    return row[len(row) - side * side :].reshape(side, side)


def span_map(maps: Sequence[WordMap], start: int, end: int) -> np.ndarray | None:
    """The mean map of the words in a part of the text; None where there is none."""
    chosen = [one.map for one in maps if one.start < end and start < one.end]
    return np.mean(chosen, axis=0) if chosen else None


def peak(heat: np.ndarray) -> float:
    """How many times as much as in an even reading the patch gets that is read most; >= 1."""
    return float(heat.max() / heat.mean())


def overlay(scan: np.ndarray, heat: np.ndarray) -> Image.Image:
    """The scan in gray, in colour over it what is read more than in an even reading.

    A nearly even map stays nearly gray: it would mislead to stretch it to the full colours.

    Args:
        scan: (H, W) uint8, as the network sees it.
        heat: (h, w), positive, any scale.
    """
    share = (heat / heat.mean() - 1) / (max(peak(heat), _FULL_COLOUR) - 1)
    picture = Image.fromarray(share.astype(np.float32))
    share = np.asarray(picture.resize(scan.shape[::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    stops = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(share, stops, channel) for channel in _HEAT.T], axis=-1)
    cover = _OPACITY * share[..., None]
    mixed = (1 - cover) * scan[..., None] + cover * colour
    return Image.fromarray(mixed.round().astype(np.uint8))
