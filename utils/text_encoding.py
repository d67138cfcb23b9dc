"""Captions to token ids to the embeddings that the U-Net reads.

A caption's tokens are cut into K chunks, each with a start and an end of its own; each chunk is
encoded alone, and the embeddings stand one after the other. K belongs to the trained model: it is
kept in the text encoder's configuration as ``num_caption_chunks``, which plain diffusers ignores
(it reads the first chunk). K = 1 is Stable Diffusion's own way.

Shapes: N captions, K chunks, L tokens of a chunk, D text width.
"""

from collections.abc import Iterable, Sequence

import torch

from utils.run_folder import get_logger

MAX_CAPTION_CHUNKS = 4  # 300 tokens of CLIP; attention's cost over the text grows with each

_logger = get_logger("train")


def num_caption_chunks(text_encoder) -> int:
    """K, the number of chunks that a pipeline with this text encoder was trained on."""
    return getattr(_plain(text_encoder).config, "num_caption_chunks", 1)


def set_num_caption_chunks(text_encoder, num_chunks: int) -> None:
    """Keep K in the configuration; 1 leaves it as plain diffusers would have it."""
    config = _plain(text_encoder).config
    if num_chunks > 1:
        config.num_caption_chunks = num_chunks
    elif hasattr(config, "num_caption_chunks"):
        del config.num_caption_chunks


def settle_num_caption_chunks(
    tokenizer, text_encoder, captions: Iterable[str], *, long_captions: str | None
) -> int:
    """Decide on K for a training run, keep it in the text encoder's configuration, return it.

    Args:
        tokenizer: Counts the tokens.
        text_encoder: Tells the K that it was trained on before.
        captions: All that will be trained on or measured; read for ``chunk`` only.
        long_captions: ``truncate``: K is 1. ``chunk``: as many as any caption needs, at most
            `MAX_CAPTION_CHUNKS`, and no fewer than before. None: ``chunk`` if the model was
            trained so before, else ``truncate``.
    """
    before = num_caption_chunks(text_encoder)
    chosen = 1
    if long_captions == "chunk" or (long_captions is None and before > 1):
        longest = max(token_lengths(tokenizer, list(captions)), default=0)
        per_chunk = max_tokens(tokenizer, 2) - max_tokens(tokenizer, 1)
        needed = -(-(longest - tokenizer.num_special_tokens_to_add()) // per_chunk)
        chosen = max(before, min(needed, MAX_CAPTION_CHUNKS))
        _logger.info("captions are encoded in %d chunk(s) of %d tokens", chosen, per_chunk)
    set_num_caption_chunks(text_encoder, chosen)
    return chosen


def max_tokens(tokenizer, num_chunks: int = 1) -> int:
    """Tokens that are read of a caption, one start and one end included: 77, 152, 227, 302."""
    added = tokenizer.num_special_tokens_to_add()
    return num_chunks * (tokenizer.model_max_length - added) + added


def token_lengths(tokenizer, captions: Sequence[str]) -> list[int]:
    """Number of tokens of each caption, one start and one end included, before any cut."""
    if not captions:
        return []
    encoded = tokenizer(list(captions), truncation=False, padding=False, verbose=False)
    return [len(ids) for ids in encoded.input_ids]


def tokenize(tokenizer, captions: Sequence[str], num_chunks: int = 1) -> torch.Tensor:
    """Token ids (N, K, L) int64, each chunk padded to the length that the text encoder takes.

    Args:
        tokenizer: A fast one.
        captions: N texts, N >= 1; what goes beyond `max_tokens` is cut.
        num_chunks: K. Chunks that a caption does not fill are those of the empty caption.
    """
    options = {
        "max_length": tokenizer.model_max_length,
        "padding": "max_length",
        "truncation": True,
        "return_tensors": "pt",
    }
    if num_chunks == 1:
        return tokenizer(list(captions), **options).input_ids[:, None]
    # The empty caption first, for the chunks to fill up with.
    encoded = tokenizer(["", *captions], return_overflowing_tokens=True, **options)
    chunks, caption = encoded.input_ids, encoded.overflow_to_sample_mapping  # (M, L), (M,)
    first = torch.searchsorted(caption, torch.arange(len(captions) + 1))
    place = torch.arange(len(caption)) - first[caption]  # of a chunk in its caption
    ids = chunks[0].repeat(len(captions) + 1, num_chunks, 1)  # (N + 1, K, L)
    kept = place < num_chunks
    ids[caption[kept], place[kept]] = chunks[kept]
    return ids[1:]


def embed_text(text_encoder, input_ids: torch.Tensor) -> torch.Tensor:
    """Text embeddings (N, K L, D) for token ids (N, K, L), in the encoder's type, with gradients.

    Padding is masked where the encoder's configuration says ``use_attention_mask``, as
    ``StableDiffusionPipeline.encode_prompt`` does. Every chunk is encoded on its own.

    Args:
        text_encoder: The model, also as accelerate prepared it.
        input_ids: From `tokenize`, on any device.
    """
    chunks = input_ids.flatten(0, 1).to(_plain(text_encoder).device)  # (N K, L)
    mask = _text_mask(_plain(text_encoder).config, chunks)
    embeddings = text_encoder(chunks, attention_mask=mask)[0]  # (N K, L, D)
    return embeddings.reshape(len(input_ids), -1, embeddings.shape[-1])


@torch.no_grad()
def encode_text(text_encoder, input_ids: torch.Tensor) -> torch.Tensor:
    """`embed_text` without gradients: (N, K, L) int64 to (N, K L, D)."""
    return embed_text(text_encoder, input_ids)


def name_padding(tokenizer, text_encoder) -> None:
    """Let an encoder that masks padding know the token its tokenizer pads with.

    CLIP's published configurations name others than its tokenizer uses.
    """
    config = text_encoder.config
    if getattr(config, "use_attention_mask", False):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id


def _text_mask(config, chunks: torch.Tensor) -> torch.Tensor | None:
    """1 on text and 0 on padding, (M, L) int64; None for encoders that read padding too."""
    if not getattr(config, "use_attention_mask", False):
        return None
    padding = chunks == config.pad_token_id
    if config.pad_token_id == config.eos_token_id:
        padding &= padding.cumsum(dim=-1) > 1  # the first one is the text's end
    return (~padding).long()


def _plain(text_encoder):
    """The model inside a wrapper of DDP or DeepSpeed."""
    return getattr(text_encoder, "module", text_encoder)
