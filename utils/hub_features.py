"""CLIP and DINOv2 as feature networks, through transformers.

Shapes: N images of H x W pixels and C channels, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from utils import hub_models
from utils.backbones import IMAGENET_MEAN, IMAGENET_STD
from utils.cli import UserError
from utils.extractor_names import CLIP_MODEL, DINOV2_MODEL
from utils.feature_network import CLIP_MEAN, CLIP_STD, FeatureNetwork, Preprocessing

FLAG = "--feature_weights"
_DINOV2_PX = 224  # it takes any multiple of its patch; FD-DINOv2 is measured at this one


class ClipFeatures(FeatureNetwork):
    """CLIP's projected image embedding, of unit length (Radford et al. 2021, arXiv 2103.00020)."""

    note = (
        "CLIP's image embedding, of unit length as in CMMD, which compares only on "
        "openai/clip-vit-large-patch14-336."
    )
    pooling = "projected image embedding, of unit length"

    def __init__(self, weights: str, *, device: str, offline: bool):
        """Load the image tower from a folder or the hub."""
        folder = hub_models.local_folder(weights, flag=FLAG, offline=offline)
        _check_kind(folder, ("clip", "clip_vision_model"), CLIP_MODEL)
        # The width of the projection stands in the configuration of both towers together.
        both = hub_models.read_json(folder / "config.json", flag=FLAG)
        width = {"projection_dim": both["projection_dim"]} if "projection_dim" in both else {}
        network = hub_models.load_model(folder, "CLIPVisionModelWithProjection", flag=FLAG, **width)
        settings = hub_models.input_settings(folder, flag=FLAG)
        mean, std = settings.get("image_mean", CLIP_MEAN), settings.get("image_std", CLIP_STD)
        side = network.config.image_size
        super().__init__("clip", Preprocessing(side, tuple(mean), tuple(std)), device=device)
        self.network = network.to(device)
        self.weights, self.sha256 = weights, hub_models.hash_weights(folder)
        self.dim = network.config.projection_dim

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, side, side, C) uint8 to pool features (N, D) of length 1."""
        images = self.preprocessing.normalise(pixels)
        return F.normalize(self.network(pixel_values=images).image_embeds, dim=1), None


class DinoFeatures(FeatureNetwork):
    """DINOv2's class token after the last norm (Oquab et al. 2023, arXiv 2304.07193)."""

    note = (
        "DINOv2's class token, as in FD-DINOv2, which compares only on facebook/dinov2-large "
        "and up to the resize."
    )
    pooling = "class token after the last norm"

    def __init__(self, weights: str, *, device: str, offline: bool):
        """Load the network from a folder or the hub."""
        folder = hub_models.local_folder(weights, flag=FLAG, offline=offline)
        _check_kind(folder, ("dinov2", "dinov2_with_registers"), DINOV2_MODEL)
        network = hub_models.load_model(folder, "AutoModel", flag=FLAG)
        settings = hub_models.input_settings(folder, flag=FLAG)
        mean = settings.get("image_mean", IMAGENET_MEAN)
        std = settings.get("image_std", IMAGENET_STD)
        crop = settings.get("crop_size", _DINOV2_PX)  # a number in older files
        side = crop["height"] if isinstance(crop, dict) else crop
        super().__init__("dinov2", Preprocessing(side, tuple(mean), tuple(std)), device=device)
        self.network = network.to(device)
        self.weights, self.sha256 = weights, hub_models.hash_weights(folder)
        self.dim = network.config.hidden_size

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, side, side, C) uint8 to pool features (N, D)."""
        images = self.preprocessing.normalise(pixels)
        return self.network(pixel_values=images).last_hidden_state[:, 0], None


def _check_kind(folder, kinds: tuple[str, ...], wanted: str) -> None:
    found = hub_models.model_type(folder, flag=FLAG)
    if found not in kinds:
        raise UserError(f"{FLAG} {folder}: its model type is {found!r}; give {wanted}")
