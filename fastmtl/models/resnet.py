"""ResNet-34, 50 and 101 as feature pyramids, with torchvision's parameter names so that its weights can be loaded.

Source: He et al. 2016, Deep Residual Learning for Image Recognition; the 3x3 convolution of a bottleneck has the
stride, as in torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..utils.suggestions import nearest
from .published import Published


class Basic(nn.Module):
    """Two 3x3 convolutions with an identity shortcut, or a 1x1 convolution if the shape changes."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, with an identity or 1x1 shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


_KINDS: dict[str, tuple[type[Basic] | type[Bottleneck], Sequence[int]]] = {
    "resnet34": (Basic, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """Image [B, 3, H, W] -> feature maps at strides 2 (before the pooling), 4, 8, 16, 32.

    Args:
        kind: "resnet34", "resnet50" or "resnet101".
        width: multiplies all channels.
        depth: multiplies the blocks of each layer, at least one each.
        num_layers: how many of the four layers to keep; 3 ends at stride 16.
    """

    def __init__(self, kind: str, *, width: float = 1.0, depth: float = 1.0, num_layers: int = 4):
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"unknown ResNet {kind!r}; {nearest(kind, list(_KINDS))}")
        if not 1 <= num_layers <= 4:
            raise ValueError(f"`num_layers` must be 1 to 4; got {num_layers}.")
        block, repeats = _KINDS[kind]
        base = max(1, round(64 * width))
        self.published = {"imagenet": Published(f"timm/{kind}.tv_in1k")}  # torchvision's, in IMAGENET1K_V1
        self.channels = [base]
        self.strides = [2 ** (number + 1) for number in range(num_layers + 1)]
        self.multiple = self.strides[-1]
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = [f"layer{number + 1}" for number in range(num_layers)]
        inner = base
        for number, name in enumerate(self.layers):
            planes = base * 2**number
            blocks: list[nn.Module] = []
            for index in range(max(1, math.ceil(repeats[number] * depth))):
                blocks.append(block(inner, planes, 2 if number and not index else 1))
                inner = planes * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
            self.channels.append(inner)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(images)))
        features = [x]
        x = self.maxpool(x)
        for name in self.layers:
            x = self.get_submodule(name)(x)
            features.append(x)
        return features
