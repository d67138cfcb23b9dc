"""Names of the classifier's backbones, kept apart from torch so that a flag is checked at once.

A vision transformer's name carries its sizes, ``vit-WIDTH-DEPTH-PATCH``: ``vit-1024-24-16`` is
ViT-L/16, RETFound's network. ``vit`` alone takes them from the weights.
"""

import re
from dataclasses import dataclass

from utils.cli import UserError

SMALL = "small"
VIT = "vit"
HEAD_WIDTH = 64  # of every published ViT but H/14, which has 16 heads of 80
_HUGE = (1280, 16)  # width and heads of ViT-H
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# torchvision's image classification models, without the quantized ones.
_NAMES = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3
efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l
efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75
mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf
regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf
regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d
resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t
vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16
vit_l_32 wide_resnet101_2 wide_resnet50_2
"""
TORCHVISION_BACKBONES = tuple(_NAMES.split())


@dataclass(frozen=True)
class VitSizes:
    """Sizes of a vision transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).

    Attributes:
        width: Of a token, a multiple of ``HEAD_WIDTH``.
        depth: Blocks.
        patch: Side of a patch in pixels.
    """

    width: int
    depth: int
    patch: int

    @property
    def num_heads(self) -> int:
        """One head for every 64 of the width; 16 for ViT-H's 1280."""
        return _HUGE[1] if self.width == _HUGE[0] else self.width // HEAD_WIDTH

    @property
    def name(self) -> str:
        """As ``--backbone`` takes it."""
        return f"{VIT}-{self.width}-{self.depth}-{self.patch}"


def vit_sizes(name: str) -> VitSizes | None:
    """The sizes in a backbone's name; None if it is no ``vit-WIDTH-DEPTH-PATCH``.

    Raises:
        UserError: If such a network cannot be built.
    """
    found = re.fullmatch(rf"{VIT}-(\d+)-(\d+)-(\d+)", name)
    if found is None:
        return None
    sizes = VitSizes(*map(int, found.groups()))
    if sizes.width % HEAD_WIDTH or not min(sizes.width, sizes.depth, sizes.patch):
        raise UserError(
            f"backbone {name}: vit-WIDTH-DEPTH-PATCH has a width that is a multiple of "
            f"{HEAD_WIDTH} (heads are that wide), and no size of 0"
        )
    return sizes


def is_backbone(name: str) -> bool:
    """Whether a classifier can be built on it, given weights for ``vit`` without sizes.

    Raises:
        UserError: As ``vit_sizes``.
    """
    return name in (SMALL, VIT, *TORCHVISION_BACKBONES) or vit_sizes(name) is not None
