"""Parts of U-Nets: two kinds of block, an encoder that pools between blocks, a decoder with skips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """conv3-BN-ReLU-conv3-BN plus a conv1-BN shortcut, then ReLU: [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice conv3-BN-ReLU: [B, in, H, W] -> [B, out, H, W]."""
    layers: list[nn.Module] = []
    for width in (in_channels, out_channels):
        layers += [nn.Conv2d(width, out_channels, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def doubled(model: str, base_channels: int, levels: int) -> list[int]:
    """Channels of `levels` blocks, doubling at each; ValueError, with the model's name, for too few or too many."""
    if not 2 <= levels <= 7:
        raise ValueError(f"`levels` of {model} must be 2 to 7; got {levels}.")
    return [base_channels * 2**level for level in range(levels)]


class PooledEncoder(nn.Module):
    """Image [B, 3, H, W] -> a feature map from every block, max-pooled between: strides 1, 2, 4, ...

    Args:
        channels: of the blocks.
        block: (in_channels, out_channels) -> module.
    """

    def __init__(self, channels: Sequence[int], block: Callable[[int, int], nn.Module]):
        super().__init__()
        self.channels = list(channels)
        self.strides = [2**number for number in range(len(self.channels))]
        self.multiple = self.strides[-1]
        self.stages = nn.ModuleList(
            block(inner, outer) for inner, outer in zip([3, *self.channels], self.channels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.rest(self.stages[0](images))

    def rest(self, first: Tensor) -> list[Tensor]:
        """All the feature maps, from the first block's."""
        features = [first]
        for stage in list(self.stages)[1:]:
            features.append(stage(self.pool(features[-1])))
        return features


class UNetDecoder(nn.Module):
    """Feature pyramid -> [B, channels, H, W]: up x2, concatenate the skip, double convolution, until stride 1.

    Args:
        pyramid: channels of the feature maps, each at half the resolution of the one before.
        channels: of the output.
        stride: of the first feature map; blocks without a skip follow down to stride 1, each half as wide.
        up: "bilinear" keeps the width; "transposed" is a 2 x 2 transposed convolution to the block's width.
    """

    def __init__(
        self,
        pyramid: Sequence[int],
        channels: int,
        *,
        stride: int = 1,
        up: Literal["bilinear", "transposed"] = "bilinear",
    ):
        super().__init__()
        if up not in ("bilinear", "transposed"):
            raise ValueError(f"`up` must be 'bilinear' or 'transposed'; got {up!r}.")
        skips = list(reversed(pyramid[:-1]))
        skips += [0] * (stride.bit_length() - 1)
        blocks: list[nn.Module] = []
        ups: list[nn.Module] = []
        width = pyramid[-1]
        for skip in skips:
            outer = skip or max(width // 2, 1)
            raised = outer if up == "transposed" else width
            ups.append(
                nn.ConvTranspose2d(width, raised, 2, stride=2)
                if up == "transposed"
                else nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            )
            blocks.append(double_conv(raised + skip, outer))
            width = outer
        self.blocks, self.ups = nn.ModuleList(blocks), nn.ModuleList(ups)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        skips = list(reversed(features[:-1]))
        for number, (up, block) in enumerate(zip(self.ups, self.blocks, strict=True)):
            x = up(x)
            x = block(torch.cat([x, skips[number]], dim=1) if number < len(skips) else x)
        return self.out(x)
