"""DAFormer's decoder: embeds every level, resizes it to the finest level and fuses all levels with context.

Source: Hoyer et al. 2022, DAFormer (the published head has separable ASPP; `fusion="conv"` is the lighter variant that
competition solutions use with the same encoders).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DILATIONS = (1, 6, 12, 18)


class DAFormerDecoder(nn.Module):
    """Feature pyramid -> logits [B, num_classes, h, w] at the finest level's size.

    Per level a linear layer to `channels` and bilinear resizing; then concatenation, fusion, dropout, 1x1 convolution.

    Args:
        pyramid: channels of the levels, finest first.
        num_classes: of the output.
        channels: width of the embeddings and of the fused map.
        fusion: "sep_aspp": parallel depthwise separable convolutions of dilations 1 (a plain 1x1), 6, 12, 18, then a
            3x3 convolution. "conv": one 3x3 convolution.
        dropout: probability that a whole channel is dropped before the last convolution.
    """

    def __init__(
        self,
        pyramid: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        fusion: Literal["sep_aspp", "conv"] = "sep_aspp",
        dropout: float = 0.1,
    ):
        super().__init__()
        # A 1x1 convolution is a Linear over channels and keeps the memory layout of the images.
        self.embed = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in pyramid)
        inner = channels * len(pyramid)
        if fusion == "sep_aspp":
            self.fuse: nn.Module = SeparableASPP(inner, channels)
        elif fusion == "conv":
            self.fuse = conv_norm(inner, channels, 3)
        else:
            raise ValueError(f"`fusion` must be 'sep_aspp' or 'conv'; got {fusion!r}.")
        self.dropout = nn.Dropout2d(dropout)
        self.out = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        levels = [embed(feature) for embed, feature in zip(self.embed, features, strict=True)]
        levels[1:] = [F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in levels[1:]]
        return self.out(self.dropout(self.fuse(torch.cat(levels, dim=1))))


class SeparableASPP(nn.Module):
    """[B, in, h, w] -> [B, out, h, w]: context at four dilations, concatenated and mixed by a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.branches = nn.ModuleList(
            conv_norm(in_channels, out_channels, 1)
            if dilation == 1
            else nn.Sequential(
                conv_norm(in_channels, in_channels, 3, dilation=dilation, groups=in_channels),
                conv_norm(in_channels, out_channels, 1),
            )
            for dilation in DILATIONS
        )
        self.mix = conv_norm(out_channels * len(DILATIONS), out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([branch(x) for branch in self.branches], dim=1))


def conv_norm(in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
