"""The features of a local vision transformer, such as RETFound, for evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from utils.backbone_weights import read_state
from utils.feature_network import FeatureNetwork, Preprocessing
from utils.run_folder import sha256_file
from utils.vit import Trunk


class VitFeatures(FeatureNetwork):
    """Mean of the patch tokens, normalised as the checkpoint says."""

    note = "A vision transformer of the user's: compares only with the same weights."

    def __init__(self, weights: Path, *, device: str):
        """Read the weight file; pickled code in it is never run."""
        self.trunk = Trunk(read_state(weights), source=str(weights)).to(device)
        super().__init__("vit", Preprocessing(self.trunk.side), device=device)
        averaged = isinstance(self.trunk.after_mean, nn.LayerNorm)
        self.pooling = (
            "norm of the mean of the patch tokens (fc_norm)"
            if averaged
            else "mean of the normed patch tokens"
        )
        self.dim, self.weights, self.sha256 = self.trunk.width, str(weights), sha256_file(weights)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, side, side, C) uint8 to pool features (N, D)."""
        return self.trunk(self.preprocessing.normalise(pixels)), None
