"""Text decoders of a captioner, each with its tokenizer: a small one, or a pretrained one.

Pretrained ones are read from safetensors, and no code of a repository is run. The caller seeds
torch's global generator, of which new weights are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BlipConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils import hub_models
from utils.cli import UserError
from utils.report_tokenizer import train_tokenizer

SMALL = "small"
SMALL_WIDTH, SMALL_LAYERS, SMALL_HEADS = 128, 2, 4
FLAG = "--decoder"
_BLIP_START = "[DEC]"  # BLIP's first token, which the files of its tokenizer do not name

# Model type -> positions that no token can take: those of the RoBERTa family start after padding.
_RESERVED = {"bert": 0, "camembert": 2, "electra": 0, "gpt2": 0, "roberta": 2, "xlm-roberta": 2}
_CROSS_ATTENTION = ("crossattention", "ln_cross_attn")  # in the names of its tensors


def small_decoder(
    texts: Sequence[str], *, vocabulary_size: int, max_tokens: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GPT-2 with random weights, and a tokenizer trained on the texts.

    Raises:
        UserError: As ``train_tokenizer``.
    """
    tokenizer = train_tokenizer(texts, vocabulary_size=vocabulary_size)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=max_tokens,
        n_embd=SMALL_WIDTH,
        n_layer=SMALL_LAYERS,
        n_head=SMALL_HEADS,
        initializer_range=SMALL_WIDTH**-0.5,  # GPT-2's 0.02 is for six times the width
        is_decoder=True,
        add_cross_attention=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config), tokenizer


def load_decoder(
    name_or_path: str, *, offline: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model with cross-attention, of new weights if it has none, and its tokenizer.

    Args:
        name_or_path: Folder or hub name of a supported model.
        offline: Whether only local files may be used.

    Raises:
        UserError: If it is missing, not complete or not supported.
    """
    folder = hub_models.local_folder(name_or_path, flag=FLAG, offline=offline)
    model_type = hub_models.model_type(folder, flag=FLAG)
    check_type(model_type, flag=f"{FLAG} {name_or_path}")
    tokenizer = load_tokenizer(folder, flag=FLAG)
    causal = {} if model_type == "gpt2" else {"is_decoder": True}  # GPT-2 is always one
    source = hub_models.load_model(folder, "AutoModelForCausalLM", flag=FLAG, **causal)
    check_tokenizer(tokenizer, source.config, flag=f"{FLAG} {name_or_path}")
    config = copy.deepcopy(source.config)
    config.is_decoder = config.add_cross_attention = True
    decoder = AutoModelForCausalLM.from_config(config)
    missing, unknown = decoder.load_state_dict(source.state_dict(), strict=False)
    new = [name for name in missing if any(part in name for part in _CROSS_ATTENTION)]
    assert not unknown and new == missing, missing
    return decoder, tokenizer


def check_type(model_type: str, *, flag: str) -> None:
    """Refuse a language model without cross-attention.

    Raises:
        UserError: If it is not supported.
    """
    if model_type not in _RESERVED:
        raise UserError(
            f"{flag}: a text decoder of type {model_type!r}; supported are {', '.join(_RESERVED)}"
        )


def check_length(config: PreTrainedConfig, max_tokens: int) -> None:
    """Refuse reports longer than a decoder's positions.

    Args:
        config: Of the decoder.
        max_tokens: Longest report, first and last token included.

    Raises:
        UserError: Naming the flag.
    """
    longest = config.max_position_embeddings - _RESERVED.get(config.model_type, 0)
    if max_tokens > longest:
        raise UserError(f"--max_tokens {max_tokens}: the decoder reads {longest} at most")


def load_tokenizer(folder: Path, *, flag: str) -> PreTrainedTokenizerBase:
    """A folder's tokenizer, with a first, a last and a padding token.

    BERT's class token is the first and its separator the last; GPT-2 pads with its last token.

    Raises:
        UserError: If there is none, or it has no such tokens.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except hub_models.LOADING_ERRORS as error:
        raise UserError(f"{flag} {folder}: its tokenizer cannot be loaded: {error}") from error
    for name in ("is_local", "local_files_only"):  # would be saved, and say where the files lay
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise UserError(
            f"{flag} {folder}: its tokenizer has no token for the start (bos or cls) or the end "
            "(eos or sep) of a text"
        )
    return tokenizer


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, *, flag: str
) -> None:
    """Refuse a tokenizer that is not the decoder's, as when its files are missing.

    Raises:
        UserError: If the numbers of tokens do not fit.
    """
    if not config.vocab_size / 2 <= len(tokenizer) <= config.vocab_size:
        raise UserError(
            f"{flag}: its tokenizer knows {len(tokenizer)} tokens, its decoder "
            f"{config.vocab_size}: the tokenizer's files are missing or another model's"
        )


def set_blip_tokens(tokenizer: PreTrainedTokenizerBase, config: BlipConfig, *, flag: str) -> None:
    """Give a tokenizer the first and the last token with which BLIP was trained.

    Raises:
        UserError: If the configuration's are not the tokenizer's.
    """
    text = config.text_config
    if text.bos_token_id == len(tokenizer):
        tokenizer.add_special_tokens({"bos_token": _BLIP_START})
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(text.bos_token_id)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(text.sep_token_id)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if ids != (text.bos_token_id, text.sep_token_id, text.pad_token_id):
        raise UserError(
            f"{flag}: its config.json starts, ends and pads with the tokens {text.bos_token_id}, "
            f"{text.sep_token_id} and {text.pad_token_id}, which its tokenizer has not as such"
        )
