"""BiomedCLIP, a ViT and a BERT in open_clip's layout, without open_clip.

Zhang et al. 2023 (https://arxiv.org/abs/2303.00915). The image tower is timm's ViT (class token),
the text tower transformers' BERT (first token) and two linear layers. Shapes: N images, M texts of
W tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from torch import nn

from utils import hub_models
from utils.backbone_weights import read_state
from utils.cli import UserError
from utils.clip_models import FLAG, OPEN_CLIP_CONFIG, PretrainedPair
from utils.feature_network import CLIP_MEAN, CLIP_STD, Preprocessing
from utils.run_folder import sha256_file
from utils.vit import HEAD_WIDTH, Trunk

WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_TRUNK, _BERT = "visual.trunk.", "text.transformer."
_IMAGE_HEAD, _TEXT_HEAD = "visual.head.proj.weight", "text.proj.{}.weight"
_DEFAULT_CONTEXT = 77
# What the architecture is known by; another value is another network.
_WANTED = {
    ("vision_cfg", "timm_pool"): ("", "token"),
    ("vision_cfg", "timm_proj"): ("linear",),
    ("text_cfg", "hf_pooler_type"): ("cls_last_hidden_state_pooler",),
    ("text_cfg", "hf_proj_type"): ("mlp",),
}


class BiomedClip(PretrainedPair):
    """BiomedCLIP, and every open_clip model of its architecture."""

    def __init__(self, name: str, folder: Path, *, device: str):
        """Load both towers; pickled code in the weight file is never run."""
        config = hub_models.read_json(folder / OPEN_CLIP_CONFIG, flag=FLAG)
        model, settings = config.get("model_cfg", {}), config.get("preprocess_cfg", {})
        for (part, key), known in _WANTED.items():
            found = model.get(part, {}).get(key)
            if found not in known:
                raise UserError(
                    f"{FLAG} {name}: {OPEN_CLIP_CONFIG} says {key} {found!r}; only BiomedCLIP's "
                    f"architecture is known ({known[0]!r})"
                )
        files = [folder / file for file in WEIGHT_FILES if (folder / file).is_file()]
        if not files:
            raise UserError(f"{FLAG} {name}: none of {', '.join(WEIGHT_FILES)} is there")
        state, source = read_state(files[0]), str(files[0])
        trunk = Trunk(_part(state, _TRUNK), source=source)
        mean, std = settings.get("mean", CLIP_MEAN), settings.get("std", CLIP_STD)
        preprocessing = Preprocessing(trunk.side, tuple(mean), tuple(std))
        super().__init__(name, folder, preprocessing, device=device)
        self.trunk = trunk.to(device)
        self.image_head = _linear(state, _IMAGE_HEAD, source).to(device)
        self.bert = _bert(_part(state, _BERT), source).to(device)
        first, last = (_linear(state, _TEXT_HEAD.format(i), source) for i in (0, 2))
        self.text_head = nn.Sequential(first, nn.GELU(), last).to(device)
        self.max_tokens = model["text_cfg"].get("context_length", _DEFAULT_CONTEXT)
        self.sha256, self.dim = sha256_file(files[0]), self.image_head.out_features
        self.check_tokenizer(self.bert.config.vocab_size)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, side, side) normalised to (N, D)."""
        return self.image_head(self.trunk.tokens(images)[:, 0])

    def text_features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(M, W) token numbers and mask to (M, D)."""
        hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        return self.text_head(hidden[:, 0])


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below a prefix, without it."""
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {name: tensor for name, tensor in found.items() if not name.endswith("position_ids")}


def _linear(state: Mapping[str, torch.Tensor], name: str, source: str) -> nn.Linear:
    """A linear layer without bias."""
    if name not in state:
        raise UserError(f"{source}: not BiomedCLIP's architecture: {name} is missing")
    rows, columns = state[name].shape
    layer = nn.Linear(columns, rows, bias=False).requires_grad_(False)
    layer.weight.copy_(state[name])
    return layer


def _bert(state: Mapping[str, torch.Tensor], source: str) -> transformers.BertModel:
    """A BERT in the sizes of its tensors."""
    table, inner = "embeddings.{}_embeddings.weight", "encoder.layer.0.intermediate.dense.weight"
    try:
        num_words, width = state[table.format("word")].shape
        config = transformers.BertConfig(
            vocab_size=num_words,
            hidden_size=width,
            num_hidden_layers=len({k.split(".")[2] for k in state if k.startswith("encoder.")}),
            num_attention_heads=width // HEAD_WIDTH,
            intermediate_size=len(state[inner]),
            max_position_embeddings=len(state[table.format("position")]),
            type_vocab_size=len(state[table.format("token_type")]),
        )
        bert = transformers.BertModel(config, add_pooling_layer=False)
        bert.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{source}: its text tower is not BERT's: {error}") from error
    return bert.eval().requires_grad_(False)
