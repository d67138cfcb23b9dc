"""What feature networks have in common: how an image becomes their input, and what they say.

Shapes: N images, H x W pixels, C channels (1 for gray, else 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image

from utils.backbones import IMAGENET_MEAN, IMAGENET_STD
from utils.images import resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training set
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """From a square image to a network's input.

    Attributes:
        side: Of the input in pixels.
        mean: Of each channel in [0, 1], subtracted.
        std: Of each channel, what is divided by.
        enlarge: Pillow's filter for images below ``side``; None leaves them as they are.
    """

    side: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    enlarge: str | None = "BICUBIC"

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A square image, mode ``L`` or ``RGB``, as (H, W, C) uint8; gray stays one channel.

        One above ``side`` is reduced to it, antialiased (Lanczos).
        """
        if image.width != image.height:
            raise ValueError(f"a network takes square images, not {image.width} x {image.height}")
        if image.width > self.side:
            image = resize(image, self.side, "stretch")
        elif image.width < self.side and self.enlarge is not None:
            image = image.resize((self.side, self.side), Image.Resampling[self.enlarge])
        pixels = np.array(image)
        return pixels[:, :, None] if image.mode == "L" else pixels

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) uint8 to (N, 3, H, W) float32, channels last in memory."""
        mean, std = (pixels.new_tensor(v, dtype=torch.float32) for v in (self.mean, self.std))
        return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


class FeatureNetwork:
    """The part of a feature extractor that does not depend on its network.

    A subclass says ``note`` and ``pooling`` and defines ``forward``; see
    ``utils.features.FeatureExtractor``.
    """

    note: str
    pooling: str

    def __init__(self, name: str, preprocessing: Preprocessing, *, device: str):
        """Nothing is loaded here; ``weights``, ``sha256``, ``dim``, ``num_logits`` come after."""
        self.name, self.preprocessing, self.device = name, preprocessing, device
        self.input_px = preprocessing.side
        self.weights = self.sha256 = ""
        self.dim = self.num_logits = 0

    @property
    def facts(self) -> Mapping[str, object]:
        """All that the numbers depend on besides the image, in JSON's types."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "input_px": self.input_px,
            "preprocessing": asdict(self.preprocessing),
            "pooling": self.pooling,
        }

    def prepare(self, image: Image.Image) -> np.ndarray:
        """See ``Preprocessing.prepare``."""
        return self.preprocessing.prepare(image)
