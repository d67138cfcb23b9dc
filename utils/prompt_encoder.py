"""Prompts to the embeddings that a U-Net reads, each distinct prompt once."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

from utils.sampling import one_thread
from utils.text_encoding import (
    encode_text,
    max_tokens,
    num_caption_chunks,
    token_lengths,
    tokenize,
)

MAX_CACHE_BYTES = 2 * 2**30  # in main memory; 18,000 prompts of SD 1.x in 16 bits


class PromptEncoder:
    """Text to embeddings, each text once; the latest used are kept, up to a number of bytes.

    On a CPU texts are encoded one at a time, so that no embedding depends on its neighbours; on a
    GPU all that are missing of a group, at once. Long ones in as many chunks as the model was
    trained on (`utils.text_encoding`). Any thread may call it.

    Args:
        tokenizer: The pipeline's.
        text_encoder: On the device and in the type to compute in.
        dtype: What the embeddings are kept in; the U-Net's (default: the text encoder's).
        max_bytes: Of all embeddings that are kept.
    """

    def __init__(
        self,
        tokenizer,
        text_encoder,
        *,
        dtype: torch.dtype | None = None,
        max_bytes: int = MAX_CACHE_BYTES,
    ) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder.eval()
        self._dtype = dtype or text_encoder.dtype
        self._max_bytes = max_bytes
        self._num_chunks = num_caption_chunks(text_encoder)
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        """Lengths of texts in tokens with start and end; beyond `max_tokens` they are cut."""
        return token_lengths(self._tokenizer, texts)

    @property
    def max_tokens(self) -> int:
        """How many tokens the model reads, with start and end."""
        return max_tokens(self._tokenizer, self._num_chunks)

    def __call__(self, text: str) -> torch.Tensor:
        """Embedding of a text: (K L, D), on the text encoder's device."""
        return self.embed([text])[0]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of N texts: (N, K L, D), on the text encoder's device."""
        on_cpu = self._text_encoder.device.type == "cpu"
        with self._lock:
            found = {text: self._cache[text] for text in texts if text in self._cache}
            missing = [text for text in dict.fromkeys(texts) if text not in found]
            size = 1 if on_cpu else max(1, len(missing))
            for start in range(0, len(missing), size):
                batch = missing[start : start + size]
                # Copies: a row that is kept must not keep the rest of its batch.
                found |= zip(batch, map(torch.clone, self._encode(batch)))
            self._keep(found)
        return torch.stack([found[text] for text in texts]).to(self._text_encoder.device)

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        ids = tokenize(self._tokenizer, texts, self._num_chunks)  # (N, K, L)
        with one_thread():
            return encode_text(self._text_encoder, ids).to("cpu", self._dtype)

    def _keep(self, found: Mapping[str, torch.Tensor]) -> None:
        """Put embeddings, all of one size, to the end of the cache; what is beyond it goes."""
        for text, embedding in found.items():
            self._cache[text] = embedding
            self._cache.move_to_end(text)
        while len(self._cache) > 1 and len(self._cache) * embedding.nbytes > self._max_bytes:
            self._cache.popitem(last=False)
