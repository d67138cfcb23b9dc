"""A small image-text encoder, trained on the real pairs, for retrieval without a downloaded model.

A convolutional image tower and a bag of words meet in one space by the symmetric InfoNCE loss of
CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020). Shapes: B pairs, D dimensions,
H = W pixels. On the CPU the same seed gives the same bytes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch import nn

from utils.backbone_names import SMALL
from utils.backbones import build_network
from utils.classifier import to_gray, to_unit

EMBEDDING_DIM = 128
WORD_DIM = 128
MAX_GRAMS = 20_000
MIN_GRAM_COUNT = 2  # what stands in one text only would be learnt by heart
INITIAL_SCALE, MAX_SCALE = 1 / 0.07, 100.0  # of the cosines, as in CLIP
# Scripts without spaces by the character, numbers whole, words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\d+(?:[.,]\d+)?|[^\W\d_]+")


def grams_of(text: str) -> list[str]:
    """Words of a text and pairs of neighbours, in lower case."""
    words = _WORD.findall(text.lower())
    return words + [f"{one} {other}" for one, other in pairwise(words)]


def learn_grams(texts: Iterable[str]) -> dict[str, int]:
    """The most frequent words and pairs of texts -> their row, from 1; row 0 is the unknown."""
    counts = Counter(gram for text in texts for gram in set(grams_of(text)))
    frequent = sorted(
        (gram for gram, count in counts.items() if count >= MIN_GRAM_COUNT),
        key=lambda gram: (-counts[gram], gram),
    )
    return {gram: row for row, gram in enumerate(frequent[:MAX_GRAMS], start=1)}


class TextTower(nn.Module):
    """Mean of the word and word-pair vectors of a text, and two layers on top."""

    def __init__(self, grams: dict[str, int]):
        super().__init__()
        self.grams = grams
        self.words = nn.EmbeddingBag(len(grams) + 1, WORD_DIM, mode="mean")
        self.layers = nn.Sequential(
            nn.LayerNorm(WORD_DIM),
            nn.Linear(WORD_DIM, 2 * WORD_DIM),
            nn.GELU(),
            nn.Linear(2 * WORD_DIM, EMBEDDING_DIM),
        )

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, D), not normalised."""
        device = self.words.weight.device
        rows = [[self.grams[g] for g in grams_of(text) if g in self.grams] or [0] for text in texts]
        starts = np.cumsum([0, *map(len, rows[:-1])])
        flat = torch.tensor([row for own in rows for row in own], device=device)
        return self.layers(self.words(flat, torch.from_numpy(starts).to(device)))


class Towers(nn.Module):
    """Image tower, text tower and the learnt scale of their cosines."""

    def __init__(
        self, grams: dict[str, int], *, input_px: int, gray: tuple[float, float], seed: int
    ):
        """Random weights from ``seed``; ``gray`` is mean and deviation of the gray values."""
        super().__init__()
        options = {"num_labels": EMBEDDING_DIM, "resolution": input_px, "seed": seed}
        self.image = build_network(SMALL, **options, mean=gray[0], std=gray[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text = TextTower(grams)
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Gray images (B, 1, H, W) in [0, 1] to (B, D) of unit length."""
        return F.normalize(self.image(images).float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to (B, D) of unit length."""
        return F.normalize(self.text(texts).float(), dim=1)

    def loss(
        self, images: torch.Tensor, texts: Sequence[str], related: torch.Tensor
    ) -> torch.Tensor:
        """InfoNCE of a batch of pairs; arguments as in ``contrastive_loss``."""
        scale = self.log_scale.exp().clamp(max=MAX_SCALE)
        return contrastive_loss(
            self.embed_images(images), self.embed_texts(texts), scale=scale, related=related
        )


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, *, scale: torch.Tensor, related: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE in which related pairs are no negatives of each other.

    Args:
        images: (B, D) of unit length.
        texts: (B, D) of unit length; text i belongs to image i.
        scale: Of the cosines, the inverse temperature.
        related: (B, B) bool: pairs with the same text or a common label.
    """
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    logits = (scale * images @ texts.T).masked_fill(related & ~own, -torch.inf)
    wanted = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2


class ContrastiveEncoder:
    """Trained towers with their preprocessing; see ``utils.image_text.ImageTextModel``."""

    name, dim, num_logits = "train", EMBEDDING_DIM, 0

    def __init__(self, towers: Towers, *, input_px: int, device: str):
        """Take over trained towers."""
        self.towers = towers.to(device).eval()
        self.input_px, self.device = input_px, device
        weights = {key: value.contiguous().cpu() for key, value in towers.state_dict().items()}
        facts = "\n".join(towers.text.grams)
        self.sha256 = hashlib.sha256(save(weights, {"grams": facts})).hexdigest()

    def prepare(self, image: Image.Image) -> np.ndarray:
        """See ``ImageTextModel.prepare``; gray, C = 1; an oblong image is stretched."""
        return to_gray(image, resolution=self.input_px, resize_mode="stretch")[..., None]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, H, W, 1) uint8 to embeddings (N, D) of unit length; there are no classes."""
        return self.towers.embed_images(to_unit(pixels[..., 0])), None

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """See ``ImageTextModel.embed_texts``."""
        return self.towers.embed_texts(texts).cpu().numpy()
