"""Joint U-Net: one residual encoder, a U-Net decoder for maps, small heads for whole-image labels.

The encoder is the published project's: BasicBlocks with a 1x1 shortcut inside a U-Net, max-pooled between stages
(64, 128, 256, 512, 512 channels at strides 1 to 16 for `base_channels=64`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .heads import Output, VectorHead, split_outputs
from .registry import register_model

WIDTHS = (1, 2, 4, 8, 8)  # multiples of base_channels, at strides 1, 2, 4, 8, 16


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


class Encoder(nn.Module):
    """Image [B, 3, H, W] -> five feature maps at strides 1, 2, 4, 8, 16."""

    def __init__(self, base_channels: int):
        super().__init__()
        self.channels = [width * base_channels for width in WIDTHS]
        self.stages = nn.ModuleList(
            BasicBlock(inner, outer) for inner, outer in zip([3, *self.channels], self.channels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.stages[0](images)]
        for stage in list(self.stages)[1:]:
            features.append(stage(self.pool(features[-1])))
        return features


class Decoder(nn.Module):
    """Feature pyramid -> [B, channels, H, W]: bilinear x2, concatenate the skip, double convolution, four times."""

    def __init__(self, pyramid: list[int], channels: int):
        super().__init__()
        blocks, width = [], pyramid[-1]
        for skip in reversed(pyramid[:-1]):
            blocks.append(_double_conv(width + skip, skip))
            width = skip
        self.blocks = nn.ModuleList(blocks)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            x = block(torch.cat([self.up(x), skip], dim=1))
        return self.out(x)


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (in_channels, out_channels):
        layers += [nn.Conv2d(width, out_channels, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@register_model("joint_unet")
class JointUNet(nn.Module):
    """Joint segmentation and classification on a shared encoder.

    Args:
        tasks: task name -> `Output`; each "map" gets a decoder of its own, each "vector" a head on the stride-16
            features.
        base_channels: width of the first stage; 64 is the published network.
        head_grid: see `VectorHead`; 24 at 384 x 384 pixels is the published head, 1 pools globally.
        head_hidden: width of the vector heads' hidden layer.
        head_dropout: probability before a vector head's last layer.

    Shape:
        batch: a `Batch`, or images [B, 3, H, W] with H and W multiples of 16.
        output: task name -> [B, channels, H, W] or [B, channels].
    """

    stride = 16

    def __init__(
        self,
        tasks: Mapping[str, Output],
        *,
        base_channels: int = 64,
        head_grid: int = 1,
        head_hidden: int = 64,
        head_dropout: float = 0.0,
    ):
        super().__init__()
        maps, vectors = split_outputs(tasks, "joint_unet")
        self.encoder = Encoder(base_channels)
        pyramid = self.encoder.channels
        self.decoders = nn.ModuleDict({name: Decoder(pyramid, channels) for name, channels in maps.items()})
        self.heads = nn.ModuleDict(
            {
                name: VectorHead(pyramid[-1], channels, hidden=head_hidden, grid=head_grid, dropout=head_dropout)
                for name, channels in vectors.items()
            }
        )
        self.names = list(tasks)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        images: Tensor = batch if isinstance(batch, Tensor) else batch.images
        if images.shape[-1] % self.stride or images.shape[-2] % self.stride:
            raise ValueError(
                f"joint_unet needs images whose sides are multiples of {self.stride}; got {list(images.shape)}. "
                "Pad or resize them."
            )
        features = self.encoder(images)
        outputs = {name: decoder(features) for name, decoder in self.decoders.items()}
        outputs |= {name: head(features[-1]) for name, head in self.heads.items()}
        return {name: outputs[name] for name in self.names}

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """The encoder: what every task's gradient reaches."""
        return self.encoder.parameters()
