"""Networks that turn gray images into features and logits: small, transformers, torchvision's.

Shapes: B images (B, 1, H, W) float in [0, 1]; D features; L labels. The gray channel is repeated
where a network wants three. Normalisation is part of the network, so no caller can forget it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from utils.backbone_names import SMALL, TORCHVISION_BACKBONES, vit_sizes
from utils.cli import UserError
from utils.vit import VitBackbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # what torchvision's weights were trained with
IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)  # what Google's two networks were trained with
_GOOGLE = ("inception_v3", "googlenet")
SMALL_WIDTHS = (24, 32, 64, 128)


class Network(nn.Module):
    """Normalisation, backbone (images to features) and a linear head (features to logits)."""

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_labels: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        """Join the parts; ``mean`` and ``std`` have one value per channel the backbone takes."""
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(feature_dim, num_labels)
        shape = (1, len(mean), 1, 1)
        self.register_buffer("mean", torch.tensor(mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(shape), persistent=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate layer (B, D) of gray images (B, 1, H, W) in [0, 1]."""
        normalised = (images - self.mean) / self.std  # (B, 1 or 3, H, W)
        return self.backbone(normalised.contiguous(memory_format=torch.channels_last))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, L) of gray images (B, 1, H, W) in [0, 1]."""
        return self.head(self.features(images))


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride > 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(width_in, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallBackbone(nn.Module):
    """A residual network of 0.6 M parameters for one gray channel, fast on a CPU.

    A stride-2 stem and three stages of two blocks, each stage halving the map; mean and maximum
    over the last map, because a small lesion is lost in the mean alone.
    """

    feature_dim = 2 * SMALL_WIDTHS[-1]

    def __init__(self):
        super().__init__()
        stem, *stages = SMALL_WIDTHS
        layers = [nn.Conv2d(1, stem, 5, 2, 2, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
        width_in = stem
        for width in stages:
            layers += [_Block(width_in, width, 2), _Block(width, width, 1)]
            width_in = width
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, 256) of normalised images (B, 1, H, W)."""
        y = self.layers(x)  # (B, 128, H / 16, W / 16)
        return torch.cat([y.mean(dim=(2, 3)), y.amax(dim=(2, 3))], dim=1)


def build_network(
    name: str, *, num_labels: int, resolution: int, seed: int, mean: float = 0.5, std: float = 0.25
) -> Network:
    """A network with random weights, the same for the same seed.

    Args:
        name: ``small``, ``vit-WIDTH-DEPTH-PATCH`` or a torchvision classification model.
        num_labels: L.
        resolution: Side of the images in pixels; some transformers are built for it.
        seed: Of the random weights; the global generator is left as it was.
        mean: Mean gray value of the data, used by ``small`` (the others use ImageNet's).
        std: Standard deviation of the gray values, likewise.

    Raises:
        UserError: If the name is unknown, or the model cannot take this resolution.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == SMALL:
            backbone = SmallBackbone()
            network = Network(backbone, backbone.feature_dim, num_labels, [mean], [std])
        elif sizes := vit_sizes(name):
            backbone, scale = VitBackbone(sizes, side=resolution), (IMAGENET_MEAN, IMAGENET_STD)
            network = Network(backbone, sizes.width, num_labels, *scale)
        else:
            backbone, feature_dim = _torchvision_backbone(name, resolution)
            scale = (_HALF, _HALF) if name in _GOOGLE else (IMAGENET_MEAN, IMAGENET_STD)
            network = Network(backbone, feature_dim, num_labels, *scale)
        nn.init.trunc_normal_(network.head.weight, std=0.01)
        nn.init.zeros_(network.head.bias)
    return network.to(memory_format=torch.channels_last)


def _torchvision_backbone(name: str, resolution: int) -> tuple[nn.Module, int]:
    """A torchvision model without its last linear layer, and how many features it gives."""
    if name not in TORCHVISION_BACKBONES:
        raise UserError(
            f"backbone {name!r} is neither {SMALL!r} nor a vit-WIDTH-DEPTH-PATCH nor a "
            "torchvision model"
        )
    from torchvision import models

    options = {}
    if name.startswith("vit_"):
        options = {"image_size": resolution}
    elif name.startswith("maxvit_"):
        options = {"input_size": (resolution, resolution)}
    elif name in _GOOGLE:
        options = {"aux_logits": False, "init_weights": True}
    try:
        model = models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name} cannot take {resolution} px images: {error}") from error
    if name.startswith("squeezenet"):  # its last layer is a convolution over the labels
        model.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return model, 512
    head = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    feature_dim = model.get_submodule(head).in_features
    model.set_submodule(head, nn.Identity())
    return model, feature_dim
