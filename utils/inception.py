"""The Inception of the FID: Google's 2015 network in its TensorFlow shape, as a table of layers.

It differs from torchvision's Inception v3 in its weights (1008 classes), its padding-blind average
pools, a max pool in the last block and its resize. Layer names are those of the two public weight
files, so either fits. Shapes: N images, H x W pixels; features are (N, 2048), logits (N, 1008).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from utils.cli import UserError
from utils.extractor_names import FID_FILES
from utils.tensorflow_resize import resize_like_tensorflow1

INPUT_PX = 299
NUM_FEATURES, NUM_CLASSES = 2048, 1008
BATCH_NORM_EPS = 1e-3
_MAX_LISTED = 3

# One layer: (name, output channels, kernel height, kernel width, stride, padded to keep the size).
Layer = tuple[str, int, int, int, int, bool]


def _layer(name: str, channels: int, size: str = "1x1", *, stride: int = 1) -> Layer:
    height, width = map(int, size.split("x"))
    return name, channels, height, width, stride, stride == 1


def _block_35(pool_channels: int) -> list[list[Layer]]:
    return [
        [_layer("branch1x1", 64)],
        [_layer("branch5x5_1", 48), _layer("branch5x5_2", 64, "5x5")],
        [
            _layer("branch3x3dbl_1", 64),
            _layer("branch3x3dbl_2", 96, "3x3"),
            _layer("branch3x3dbl_3", 96, "3x3"),
        ],
        [_layer("branch_pool", pool_channels)],
    ]


def _block_17(inner: int) -> list[list[Layer]]:
    return [
        [_layer("branch1x1", 192)],
        [
            _layer("branch7x7_1", inner),
            _layer("branch7x7_2", inner, "1x7"),
            _layer("branch7x7_3", 192, "7x1"),
        ],
        [
            _layer("branch7x7dbl_1", inner),
            _layer("branch7x7dbl_2", inner, "7x1"),
            _layer("branch7x7dbl_3", inner, "1x7"),
            _layer("branch7x7dbl_4", inner, "7x1"),
            _layer("branch7x7dbl_5", 192, "1x7"),
        ],
        [_layer("branch_pool", 192)],
    ]


_SHRINK_35_TO_17 = [
    [_layer("branch3x3", 384, "3x3", stride=2)],
    [
        _layer("branch3x3dbl_1", 64),
        _layer("branch3x3dbl_2", 96, "3x3"),
        _layer("branch3x3dbl_3", 96, "3x3", stride=2),
    ],
    [],
]
_SHRINK_17_TO_8 = [
    [_layer("branch3x3_1", 192), _layer("branch3x3_2", 320, "3x3", stride=2)],
    [
        _layer("branch7x7x3_1", 192),
        _layer("branch7x7x3_2", 192, "1x7"),
        _layer("branch7x7x3_3", 192, "7x1"),
        _layer("branch7x7x3_4", 192, "3x3", stride=2),
    ],
    [],
]
# Layers "…a" and "…b" both read what comes before them; their outputs are joined.
_BLOCK_8 = [
    [_layer("branch1x1", 320)],
    [
        _layer("branch3x3_1", 384),
        _layer("branch3x3_2a", 384, "1x3"),
        _layer("branch3x3_2b", 384, "3x1"),
    ],
    [
        _layer("branch3x3dbl_1", 448),
        _layer("branch3x3dbl_2", 384, "3x3"),
        _layer("branch3x3dbl_3a", 384, "1x3"),
        _layer("branch3x3dbl_3b", 384, "3x1"),
    ],
    [_layer("branch_pool", 192)],
]
# (name, branches, pool of the last branch)
_BLOCKS = (
    ("Mixed_5b", _block_35(32), "average"),
    ("Mixed_5c", _block_35(64), "average"),
    ("Mixed_5d", _block_35(64), "average"),
    ("Mixed_6a", _SHRINK_35_TO_17, "halve"),
    ("Mixed_6b", _block_17(128), "average"),
    ("Mixed_6c", _block_17(160), "average"),
    ("Mixed_6d", _block_17(160), "average"),
    ("Mixed_6e", _block_17(192), "average"),
    ("Mixed_7a", _SHRINK_17_TO_8, "halve"),
    ("Mixed_7b", _BLOCK_8, "average"),
    ("Mixed_7c", _BLOCK_8, "max"),  # as in the published TensorFlow graph, unlike the paper
)


class _Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU; ``fold`` merges the first two."""

    def __init__(self, in_channels: int, layer: Layer):
        super().__init__()
        _, channels, height, width, stride, padded = layer
        padding = (height // 2, width // 2) if padded else 0
        self.conv = nn.Conv2d(
            in_channels, channels, (height, width), stride=stride, padding=padding, bias=False
        )
        self.bn = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.packed: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, *, rectify: bool = True) -> torch.Tensor:
        folded = self.conv.bias is not None
        if folded and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            return self._fused(x, "relu" if rectify else "none")
        x = self.bn(self.conv(x))
        return F.relu(x, inplace=True) if rectify else x

    def _fused(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """Both in one pass over memory, with weights in oneDNN's own order (a CPU's only)."""
        conv, ops = self.conv, torch.ops.mkldnn
        layout = (conv.padding, conv.stride, conv.dilation, conv.groups)
        if self.packed is None:
            self.packed = ops._reorder_convolution_weight(conv.weight, *layout, x.shape)
        return ops._convolution_pointwise(x, self.packed, conv.bias, *layout, activation, [], None)

    def fold(self) -> None:
        """Merge the batch normalisation into the convolution (in float64; same function)."""
        norm = self.bn
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = self.conv.weight.double() * scale[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        self.conv.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.conv.bias = nn.Parameter(bias.float(), requires_grad=False)
        self.bn = nn.Identity()

    def absorb_pixel_range(self) -> None:
        """Take pixels in [0, 255] instead of ``(x - 128) / 128``; only without padding."""
        weight, bias = self.conv.weight, self.conv.bias
        bias -= weight.double().sum(dim=(1, 2, 3)).float()
        weight /= 128


class _Block(nn.Module):
    """Parallel branches of convolutions, joined; the last branch pools first."""

    def __init__(self, in_channels: int, branches: list[list[Layer]], pool: str):
        super().__init__()
        self.pool = pool
        self.names = [[layer[0] for layer in branch] for branch in branches]
        self.out_channels = 0
        for branch in branches:
            width = in_channels
            for layer in branch:
                self.add_module(layer[0], _Convolution(width, layer))
                width = width if layer[0].endswith("a") else layer[1]
            joined = sum(layer[1] for layer in branch if layer[0][-1] in "ab")
            self.out_channels += joined or width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [self._branch(names, x) for names in self.names[:-1]]
        outputs.append(self._pooled(x))
        return torch.cat(outputs, dim=1)

    def _branch(self, names: list[str], x: torch.Tensor) -> torch.Tensor:
        forks = []
        for name in names:
            layer = getattr(self, name)
            if name.endswith(("a", "b")):
                forks.append(layer(x))
            else:
                x = layer(x)
        return torch.cat(forks, dim=1) if forks else x

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        """The last branch. Means and a 1 x 1 convolution commute: it comes first, it is thinner."""
        if self.pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        (name,) = self.names[-1]
        layer = getattr(self, name)
        if self.pool == "max":
            return layer(F.max_pool2d(x, 3, stride=1, padding=1))
        x = layer(x, rectify=False)
        x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return F.relu(x, inplace=True)


class FidInception(nn.Module):
    """uint8 RGB images in; pool features and unbiased logits out."""

    def __init__(self):
        """Build it with random weights; ``load`` fills it."""
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, ("", 32, 3, 3, 2, False))
        self.Conv2d_2a_3x3 = _Convolution(32, ("", 32, 3, 3, 1, False))
        self.Conv2d_2b_3x3 = _Convolution(32, ("", 64, 3, 3, 1, True))
        self.Conv2d_3b_1x1 = _Convolution(64, ("", 80, 1, 1, 1, True))
        self.Conv2d_4a_3x3 = _Convolution(80, ("", 192, 3, 3, 1, False))
        channels = 192
        for name, branches, pool in _BLOCKS:
            block = _Block(channels, branches, pool)
            self.add_module(name, block)
            channels = block.out_channels
        assert channels == NUM_FEATURES, channels
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    @classmethod
    def load(cls, state: Mapping[str, torch.Tensor], *, source: str) -> FidInception:
        """Fill the network with a weight file's tensors and make it fast.

        Args:
            state: Name -> tensor.
            source: What messages call the file.

        Raises:
            UserError: If these are not the weights of the FID Inception.
        """
        network = cls()
        state = {key: value for key, value in state.items() if "num_batches" not in key}
        wanted = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
        wrong = [k for k in wanted if k not in state or state[k].shape != wanted[k].shape]
        wrong += [key for key in state if key not in wanted]
        if wrong:
            raise UserError(
                f"{source}: not the weights of the FID Inception (torchvision's Inception v3 is "
                f"another network): {', '.join(wrong[:_MAX_LISTED])} and others do not fit, "
                f"{len(wrong)} in all. Use {FID_FILES}"
            )
        network.load_state_dict(state, strict=False)
        network.requires_grad_(False).eval()
        for layer in network.modules():
            if isinstance(layer, _Convolution):
                layer.fold()
        network.Conv2d_1a_3x3.absorb_pixel_range()
        return network.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pool features and unbiased logits.

        Args:
            images: (N, 3, H, W) uint8.

        Returns:
            (N, 2048) and (N, 1008), float32. The logits leave out the bias, as the published
            inception score does.
        """
        x = images.float()
        if x.shape[-2:] != (INPUT_PX, INPUT_PX):
            x = resize_like_tensorflow1(x, INPUT_PX)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)  # N x 64 x 73 x 73
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)  # N x 192 x 35 x 35
        for name, _, _ in _BLOCKS:
            x = getattr(self, name)(x)
        pool = x.mean(dim=(2, 3))  # N x 2048
        return pool, pool @ self.fc.weight.T
