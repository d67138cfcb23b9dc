"""BERTScore: how like two texts are, word piece by word piece, in a language model's embeddings.

Zhang et al. 2020 (https://arxiv.org/abs/1904.09675), without the weighting by rarity and without
rescaling. Shapes: N pairs, T tokens, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from utils.cli import UserError
from utils.hub_models import LOADING_ERRORS

FLAG = "--bert_score_model"
_PAIRS = 32  # at once


class BertScore:
    """An encoder of the BERT family from a folder, read up to one layer.

    The authors chose the layer by agreement with people's judgement: 9 of BERT-base (8 of the
    Chinese), 10 of RoBERTa-base, 17 of RoBERTa-large. Scores of different models or layers do not
    compare.
    """

    def __init__(self, folder: Path, *, layer: int | None, device: str = "cpu"):
        """Load the model; nothing is downloaded.

        Args:
            folder: With ``config.json``, safetensors and tokenizer.
            layer: Whose output is used, from 1; None: the last one's.
            device: Where it runs.

        Raises:
            UserError: If it is not complete, no encoder, or has fewer layers.
        """
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            model, info = transformers.AutoModel.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except LOADING_ERRORS as error:
            raise UserError(
                f"{FLAG} {folder}: cannot be loaded: {error}\nIt must be a folder with config.json,"
                " model.safetensors and the files of the tokenizer, as save_pretrained writes it."
            ) from error
        missing = [key for key in sorted(info["missing_keys"]) if not key.startswith("pooler.")]
        if missing or model.config.is_encoder_decoder or self._tokenizer.pad_token_id is None:
            raise UserError(
                f"{FLAG} {folder}: needs an encoder of the BERT family with its tokenizer"
                + (f"; {len(missing)} weights are missing: {missing[0]} ..." if missing else "")
            )
        layer = model.config.num_hidden_layers if layer is None else layer
        if not 1 <= layer <= model.config.num_hidden_layers:
            raise UserError(
                f"{FLAG} {folder} has {model.config.num_hidden_layers} layers, not layer {layer}"
            )
        self._model, self._layer, self._device = model.eval().to(device), layer, device
        self._max_tokens = min(
            self._tokenizer.model_max_length, model.config.max_position_embeddings
        )

    @torch.inference_mode()
    def f1(self, *, references: Sequence[str], written: Sequence[str]) -> np.ndarray:
        """BERTScore F1 of each pair; higher is better, and unlike texts score well above 0.

        A text longer than the model reads is cut.

        Args:
            references: N true texts.
            written: N written texts.

        Returns:
            (N,) float64 in [-1, 1]; 0 where a text is empty.
        """
        scores = []
        for start in range(0, len(references), _PAIRS):
            real, new = (texts[start : start + _PAIRS] for texts in (references, written))
            pieces = self._embed([*real, *new])
            scores += [_f1(*pair) for pair in zip(pieces[: len(real)], pieces[len(real) :])]
        return np.array(scores, np.float64)

    def _embed(self, texts: Sequence[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each text its embeddings (T, D) of unit length, and which are words (T,) bool."""
        tokens = self._tokenizer(
            [text.strip() for text in texts],
            truncation=True,
            max_length=self._max_tokens,
            padding=True,
            return_tensors="pt",
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"].bool()
        hidden = self._model(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            output_hidden_states=True,
        ).hidden_states[self._layer]
        units = F.normalize(hidden.float(), dim=-1).cpu()
        ends = torch.tensor([self._tokenizer.cls_token_id, self._tokenizer.sep_token_id])
        words = ~torch.isin(ids, ends)
        return [(u[kept], w[kept]) for u, w, kept in zip(units, words, mask)]


def _f1(real: tuple[torch.Tensor, torch.Tensor], new: tuple[torch.Tensor, torch.Tensor]) -> float:
    """F1 of the best matches; the marks at both ends may be matched and do not count themselves."""
    if not real[1].any() or not new[1].any():
        return 0.0
    likeness = new[0] @ real[0].T
    precision = likeness.max(dim=1).values[new[1]].mean()
    recall = likeness.max(dim=0).values[real[1]].mean()
    return min(1.0, float(2 * precision * recall / (precision + recall)))
