"""The two Inceptions as feature networks: the FID's own, and torchvision's, which is not.

Shapes: N images of H x W pixels and C channels.
"""

from __future__ import annotations

from pathlib import Path

import torch

from utils.backbone_weights import read_state
from utils.cli import UserError
from utils.extractor_names import TORCHVISION_FILE
from utils.feature_network import FeatureNetwork, Preprocessing
from utils.inception import INPUT_PX, NUM_CLASSES, NUM_FEATURES, FidInception
from utils.run_folder import sha256_file

_HALF = (0.5, 0.5, 0.5)
_MIDDLE = (128 / 255,) * 3  # the FID's range, (pixels - 128) / 128; inside the first convolution
_NUM_IMAGENET_CLASSES = 1000


class FidInceptionFeatures(FeatureNetwork):
    """FID's Inception: pool features (2048) and unbiased logits (1008).

    An image below 299 pixels is enlarged by the network itself, as TensorFlow 1 did.
    """

    note = "Inception v3 of the FID, as in torch-fidelity and pytorch-fid."
    pooling = "mean of the last map; logits without bias; TensorFlow 1's bilinear enlarging"

    def __init__(self, weights: Path, *, device: str):
        """Read the weight file; pickled code in it is never run."""
        preprocessing = Preprocessing(INPUT_PX, _MIDDLE, _MIDDLE, enlarge=None)
        super().__init__("inception", preprocessing, device=device)
        self.network = FidInception.load(read_state(weights), source=str(weights)).to(device)
        self.sha256, self.weights = sha256_file(weights), str(weights)
        self.dim, self.num_logits = NUM_FEATURES, NUM_CLASSES

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H, W, C) uint8 to pool features (N, 2048) and logits (N, 1008)."""
        return self.network(pixels.permute(0, 3, 1, 2).expand(-1, 3, -1, -1))


class TorchvisionInceptionFeatures(FeatureNetwork):
    """torchvision's Inception v3: another network, whose distance is not an FID."""

    note = "torchvision's Inception v3: not the FID's network, no published FID compares."
    pooling = "mean of the last map"

    def __init__(self, weights: Path, *, device: str):
        """Read torchvision's weight file; pickled code in it is never run."""
        from torchvision.models import inception_v3

        # The range this network was trained on is [-1, 1].
        preprocessing = Preprocessing(INPUT_PX, _HALF, _HALF, enlarge="BILINEAR")
        super().__init__("torchvision-inception", preprocessing, device=device)
        self.network = inception_v3(weights=None, init_weights=False, transform_input=False)
        try:
            self.network.load_state_dict(read_state(weights))
        except RuntimeError as error:
            raise UserError(
                f"{weights}: not the weights of torchvision's Inception v3; use {TORCHVISION_FILE}"
            ) from error
        self.head = self.network.fc.requires_grad_(False).to(device)
        self.network.fc = torch.nn.Identity()
        self.network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.sha256, self.weights = sha256_file(weights), str(weights)
        self.dim, self.num_logits = NUM_FEATURES, _NUM_IMAGENET_CLASSES

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 299, 299, C) uint8 to pool features (N, 2048) and logits (N, 1000)."""
        pool = self.network(self.preprocessing.normalise(pixels))
        return pool, self.head(pool)
