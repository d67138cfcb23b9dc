"""Tokenizers of reports: one trained on a corpus, and the way from texts to tokens and back.

A tokenizer of transformers knows three special tokens: ``bos`` starts a report, ``eos`` ends it,
``pad`` fills up a batch. What a report says is never read as one of them, not even ``<eos>``.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from utils.cli import UserError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
_MIN_FREQUENCY = 2  # of a pair of tokens that becomes one: what stands once teaches nothing


def train_tokenizer(
    texts: Sequence[str], *, vocabulary_size: int = 4000
) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding (Radford et al. 2019, GPT-2) of a corpus.

    All 256 bytes are tokens, so that no text has an unknown one: a text comes back as it was, up to
    Unicode's normal form C. The same texts in any order give the same file.

    Args:
        texts: The corpus, one text or more.
        vocabulary_size: Most tokens, special ones included; a small corpus gives fewer.

    Raises:
        UserError: If there is no text, or bytes and special tokens do not fit the size.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [PAD, BOS, EOS]
    if vocabulary_size < len(alphabet) + len(special):
        raise UserError(
            f"a vocabulary of {vocabulary_size} tokens: {len(alphabet) + len(special)} or more are "
            "needed for the bytes and the special tokens"
        )
    if not texts:
        raise UserError("no text to train a tokenizer on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def encode_reports(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_tokens: int
) -> tuple[list[list[int]], int]:
    """Reports as numbers of tokens, from ``bos`` to ``eos``.

    Args:
        tokenizer: Of ``train_tokenizer`` or ``captioner_networks.build_network``.
        texts: The reports.
        max_tokens: Longest list, at least 2. Of a longer report the end is cut off, but for
            ``eos``.

    Returns:
        A list of numbers for each report, and how many were cut.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if not texts:
        return [], 0
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
    )["input_ids"]
    room = max_tokens - 2
    num_cut = sum(len(ids) > room for ids in encoded)
    return [[bos, *ids[:room], eos] for ids in encoded], num_cut


def decode_reports(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    """The texts of lists of tokens, spaces as the tokens have them, without special tokens."""
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
