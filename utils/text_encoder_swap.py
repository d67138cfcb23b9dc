"""Another text encoder in a pipeline: one that knows the field's words, with its tokenizer.

BERT-like models (PubMedBERT, CXR-BERT, RadBERT) and CLIP's text tower. Where its embeddings are
wider or narrower than what the U-Net reads, the U-Net gets a linear layer in front of its cross
attention that is trained with it (diffusers' ``encoder_hid_proj``), so that the pipeline folder
loads in plain diffusers.
"""

from dataclasses import replace
from pathlib import Path

import torch
import transformers
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError

from utils.cli import UserError
from utils.diffusion import PipelineParts
from utils.text_encoding import name_padding, num_caption_chunks, set_num_caption_chunks

FLAG = "--text_encoder_name_or_path"
MAX_TOKENS = 77  # as Stable Diffusion's own; longer captions are what --long_captions is for

# Model type in config.json to class. CXR-BERT brings code of its own, which is never run: its
# encoder and its tokenizer are BERT's.
_MODELS = {
    "bert": "BertModel",
    "cxr-bert": "BertModel",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}
_TOKENIZERS = {"cxr-bert": "BertTokenizer"}
_POOLER = "pooler."  # of no use here, and often left out of a checkpoint
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)


def replace_text_encoder(
    parts: PipelineParts,
    name_or_path: str,
    *,
    seed: int,
    offline: bool,
    cache_dir: str | Path | None = None,
) -> PipelineParts:
    """The pipeline with this text encoder and its tokenizer, frozen, in float32.

    Only safetensors are read, and no code of the repository is run.

    Args:
        parts: The pipeline.
        name_or_path: Folder with the model and its tokenizer, or its name on the hub. Of a full
            CLIP the text tower is taken.
        seed: Of the projection's weights, where the widths differ.
        offline: Whether to use only what is on this disk.
        cache_dir: Where downloads are kept.

    Raises:
        UserError: If it is not there, not complete, or not a model that can be used.
    """
    where = {"cache_dir": cache_dir, "local_files_only": offline}
    try:
        tokenizer, text_encoder, missing = _load(name_or_path, where)
    except _LOADING_ERRORS as error:
        raise UserError(
            f"{FLAG} {name_or_path}: cannot be loaded: {error}\n"
            "It must be a folder with config.json, model.safetensors and the tokenizer's files, as "
            "save_pretrained of transformers writes them, or the name of such a repository on the "
            "hub (with --offline: one downloaded before). Of a model you trust that has only "
            "pytorch_model.bin, make such a folder: AutoModel.from_pretrained(NAME)."
            "save_pretrained(FOLDER), and the same with AutoTokenizer."
        ) from error
    _check(name_or_path, tokenizer, text_encoder, missing)
    config = text_encoder.config
    if config.model_type != "clip_text_model":
        config.use_attention_mask = True  # CLIP was trained with padding in sight, BERT was not
    tokenizer.model_max_length = min(
        tokenizer.model_max_length, config.max_position_embeddings, MAX_TOKENS
    )
    name_padding(tokenizer, text_encoder)
    set_num_caption_chunks(text_encoder, num_caption_chunks(parts.text_encoder))
    unet = fit_unet(parts.unet, config.hidden_size, seed=seed)
    return replace(parts, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer)


def _load(name_or_path: str, where: dict) -> tuple:
    """Tokenizer, text encoder, and the names of its weights that the files do not have."""
    raw, _ = transformers.PreTrainedConfig.get_config_dict(name_or_path, **where)
    kind = raw.get("model_type")
    if kind not in _MODELS:
        raise ValueError(f"its model type is {kind!r}; known are {', '.join(_MODELS)}")
    tokenizer_class = getattr(transformers, _TOKENIZERS.get(kind, "AutoTokenizer"))
    tokenizer = tokenizer_class.from_pretrained(name_or_path, trust_remote_code=False, **where)
    text_encoder, info = getattr(transformers, _MODELS[kind]).from_pretrained(
        name_or_path,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **where,
    )
    missing = set(info["missing_keys"])
    for name, weights in text_encoder.named_parameters():
        if name in missing and name.startswith(_POOLER):
            torch.nn.init.zeros_(weights)  # else random, and saved so
    for bearer in (text_encoder.config.__dict__, tokenizer.init_kwargs):
        bearer.pop("auto_map", None)  # or whoever loads the pipeline might be told to run code
    return tokenizer, text_encoder.eval().requires_grad_(False), missing


def _check(name_or_path: str, tokenizer, text_encoder, missing: set[str]) -> None:
    """Refuse what loads, but is no whole text encoder with its tokenizer."""
    lacking = sorted(name for name in missing if not name.startswith(_POOLER))
    num_words = text_encoder.config.vocab_size
    problems = {
        f"its files lack {len(lacking)} weights, {', '.join(lacking[:3])} ...": lacking,
        "its tokenizer is not a fast one, as chunks of captions need": not tokenizer.is_fast,
        "its tokenizer has no padding token": tokenizer.pad_token_id is None,
        # Where its files are missing, transformers makes a tokenizer without words.
        f"its tokenizer knows {len(tokenizer)} tokens, the model {num_words}: they do not belong "
        "together, or the tokenizer's files are missing": (
            not num_words / 2 <= len(tokenizer) <= num_words
        ),
    }
    for problem, is_so in problems.items():
        if is_so:
            raise UserError(f"{FLAG} {name_or_path}: {problem}")


def fit_unet(unet: UNet2DConditionModel, text_width: int, *, seed: int) -> UNet2DConditionModel:
    """A U-Net with the same weights that reads text embeddings of this width.

    A projection that is there and fits is kept. A new one has normal weights of standard
    deviation ``1 / sqrt(text_width)`` and no bias, which keeps the size of the embeddings.

    Args:
        unet: Any of Stable Diffusion 1.x or 2.x; its weights become the new one's.
        text_width: Of the text encoder.
        seed: Of a new projection's weights.

    Raises:
        UserError: If it projects something else already, such as image embeddings.
    """
    config = unet.config
    if text_width == (config.encoder_hid_dim or config.cross_attention_dim):
        return unet
    if config.encoder_hid_dim_type not in (None, "text_proj"):
        raise UserError(
            f"{FLAG}: the U-Net has a projection of its own ({config.encoder_hid_dim_type})"
        )
    prefix = "encoder_hid_proj."
    weights = {name: w for name, w in unet.state_dict().items() if not name.startswith(prefix)}
    changes = {"encoder_hid_dim": None, "encoder_hid_dim_type": None}
    if text_width != config.cross_attention_dim:
        changes = {"encoder_hid_dim": text_width, "encoder_hid_dim_type": "text_proj"}
        shape = (config.cross_attention_dim, text_width)
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        weights[f"{prefix}weight"] = normal / text_width**0.5
        weights[f"{prefix}bias"] = torch.zeros(config.cross_attention_dim)
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        fitted = UNet2DConditionModel.from_config(config, **changes)
    fitted.load_state_dict(weights, assign=True)
    return fitted.train(unet.training)
