"""Models that embed images and texts in one space: CLIP, SigLIP, and BiomedCLIP's open_clip folder.

Shapes: N images of H x W pixels and C channels, M texts of W tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from utils import hub_models
from utils.cli import UserError
from utils.feature_network import CLIP_MEAN, CLIP_STD, FeatureNetwork, Preprocessing
from utils.features import run_network

FLAG = "--retrieval_encoder"
OPEN_CLIP_CONFIG = "open_clip_config.json"
_TOKEN_STEP = 16  # texts are padded to a multiple, so that a text's numbers are its own


@dataclass(frozen=True)
class _TextTower:
    """What ``run_network`` asks of a network; its "images" are tokens and their mask (2, W)."""

    forward: Callable[[torch.Tensor], tuple[torch.Tensor, None]]
    dim: int
    device: str
    num_logits: int = 0


class PretrainedPair(FeatureNetwork):
    """An image and a text tower; as a feature extractor it is the image tower.

    A subclass defines ``image_features`` and ``text_features``, whose results get unit length.
    """

    note = "An image-text model: compares only with the same weights."
    pooling = "projected embedding, of unit length"
    token_step = _TOKEN_STEP

    def __init__(self, name: str, folder: Path, preprocessing: Preprocessing, *, device: str):
        """Read the folder's tokenizer; the towers are the subclass's."""
        super().__init__(name, preprocessing, device=device)
        self.weights = name
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except hub_models.LOADING_ERRORS as error:
            raise UserError(f"{FLAG} {name}: its tokenizer cannot be loaded: {error}") from error

    def check_tokenizer(self, num_words: int) -> None:
        """Refuse a tokenizer that is not the text tower's, as when its files are missing."""
        known = len(self.tokenizer)
        if not num_words / 2 <= known <= num_words or self.tokenizer.pad_token_id is None:
            raise UserError(
                f"{FLAG} {self.name}: its tokenizer knows {known} tokens, its text tower "
                f"{num_words}: the tokenizer's files are missing or another model's"
            )

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, side, side) normalised to (N, D)."""
        raise NotImplementedError

    def text_features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(M, W) token numbers and which of them are no padding, to (M, D)."""
        raise NotImplementedError

    @torch.inference_mode()
    def embed_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, side, side, C) uint8 on the device to (N, D) of unit length."""
        return F.normalize(self.image_features(self.preprocessing.normalise(pixels)), dim=1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """See ``FeatureExtractor.forward``; there are no classes."""
        return self.embed_pixels(pixels), None

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Embeddings of texts; what is longer than the text tower reads is cut off.

        Args:
            texts: M of them; M may be 0.
            batch_size: Texts at once on a GPU; on a CPU the result is the same for any.

        Returns:
            (M, D) float32 of unit length.
        """
        tower = _TextTower(self._forward_tokens, self.dim, self.device)
        return run_network(tower, map(self._tokens, texts), batch_size=batch_size).pool

    def _tokens(self, text: str) -> np.ndarray:
        """(2, W) int64: token numbers, and ones up to where padding starts."""
        numbers = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        width = min(self.max_tokens, -(-len(numbers) // self.token_step) * self.token_step)
        padding = width - len(numbers)
        ids = numbers + [self.tokenizer.pad_token_id] * padding
        return np.array([ids, [1] * len(numbers) + [0] * padding])

    def _forward_tokens(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        return F.normalize(self.text_features(tokens[:, 0], tokens[:, 1]), dim=1), None


class TransformersPair(PretrainedPair):
    """CLIP (arXiv 2103.00020) or SigLIP (arXiv 2303.15343) of transformers."""

    def __init__(self, name: str, folder: Path, *, device: str):
        """Load both towers."""
        kind = hub_models.model_type(folder, flag=FLAG)
        if kind not in ("clip", "siglip"):
            raise UserError(
                f"{FLAG} {name}: its model type is {kind!r}; give a CLIP or SigLIP, "
                f"or a folder with {OPEN_CLIP_CONFIG} such as BiomedCLIP's"
            )
        network = hub_models.load_model(folder, "AutoModel", flag=FLAG)
        config, settings = network.config, hub_models.input_settings(folder, flag=FLAG)
        preprocessing = Preprocessing(
            config.vision_config.image_size,
            tuple(settings.get("image_mean", CLIP_MEAN if kind == "clip" else (0.5,) * 3)),
            tuple(settings.get("image_std", CLIP_STD if kind == "clip" else (0.5,) * 3)),
        )
        super().__init__(name, folder, preprocessing, device=device)
        self.network, self.sha256 = network.to(device), hub_models.hash_weights(folder)
        self.max_tokens = config.text_config.max_position_embeddings
        self.masked = kind == "clip"
        if kind == "siglip":  # it reads the last position and was trained with padding in sight
            self.token_step = self.max_tokens
        self.check_tokenizer(config.text_config.vocab_size)
        self.dim = config.projection_dim if kind == "clip" else config.vision_config.hidden_size

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, side, side) normalised to (N, D)."""
        return self.network.get_image_features(pixel_values=images).pooler_output

    def text_features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(M, W) token numbers and mask to (M, D)."""
        seen = {"attention_mask": mask} if self.masked else {}
        return self.network.get_text_features(input_ids=tokens, **seen).pooler_output


def load_image_text_model(
    path_or_hub_name: str, *, device: str = "cpu", offline: bool = True
) -> PretrainedPair:
    """Load an image-text model.

    Args:
        path_or_hub_name: Folder or hub name of a CLIP or SigLIP of transformers, or of an
            open_clip model in BiomedCLIP's architecture.
        device: Where it runs.
        offline: Whether a download is forbidden.

    Raises:
        UserError: If it is not there, not complete, or another model.
    """
    folder = hub_models.local_folder(path_or_hub_name, flag=FLAG, offline=offline)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        from utils.biomed_clip import BiomedClip

        return BiomedClip(path_or_hub_name, folder, device=device)
    return TransformersPair(path_or_hub_name, folder, device=device)
