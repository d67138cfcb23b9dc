"""A diagnosis classifier as a feature network whose features are its probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image

from utils.classifier import Classifier, probabilities, to_gray, to_unit


class DiagnosisNetwork:
    """See ``utils.features.FeatureExtractor``; ``dim`` is the number of labels."""

    name, num_logits = "diagnoses", 0

    def __init__(self, classifier: Classifier):
        """Take over a classifier."""
        self.classifier, self.device = classifier, classifier.device
        self.classifier.network.eval()
        self.dim, self.input_px = len(classifier.labels), classifier.resolution

    @property
    def facts(self) -> Mapping[str, object]:
        """All that the probabilities depend on besides the image."""
        config = asdict(self.classifier.config)
        return {"name": self.name, "sha256": self.classifier.sha256, "classifier": config}

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A square image as the classifier sees it, (H, W, 1) uint8."""
        return to_gray(image, resolution=self.input_px, resize_mode="stretch")[:, :, None]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, H, W, 1) uint8 to probabilities (N, L)."""
        logits = self.classifier.network(to_unit(pixels[..., 0]))
        return probabilities(logits, multi_label=self.classifier.multi_label), None
