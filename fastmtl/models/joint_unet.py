"""Joint U-Net: one residual encoder, a U-Net decoder for maps, small heads for whole-image labels.

The encoder follows the published project: BasicBlocks with a 1x1 shortcut inside a U-Net, max-pooled between stages
(64, 128, 256, 512, 512 channels at strides 1 to 16 for `base_channels=64`). The project calls these blocks a ResNet-34
backbone; the variant has a true ResNet-34.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from .base import PyramidModel
from .heads import Output, VectorHead
from .registry import ModelInfo, Row, register_model, register_variant
from .resnet import ResNet
from .unet import BasicBlock, PooledEncoder, UNetDecoder

WIDTHS = (1, 2, 4, 8, 8)  # multiples of base_channels, at strides 1, 2, 4, 8, 16
PAPER = "Joint U-Net with GradNorm on HEp-2 cells (Ferrara, Gargiulo, Maruotto)"
TASKS = {"mask": Output("map", 1), "label": Output("vector", 7), "intensity": Output("vector", 1)}


@register_model(
    "joint_unet",
    ModelInfo(
        summary="U-Net of residual BasicBlocks, heads on the stride-16 features",
        paper=PAPER,
        channels=(64, 128, 256, 512, 512),
        strides=(1, 2, 4, 8, 16),
        rows={
            "mask, label, intensity; published head_grid=24": Row(TASKS, 57_773_001, {"head_grid": 24}),
            "mask, label, intensity": Row(TASKS, 20_089_801),
        },
        tiny={"base_channels": 4, "head_hidden": 16},
    ),
)
class JointUNet(PyramidModel):
    """Joint segmentation and classification on a shared encoder.

    Args:
        tasks: task name -> `Output`; each "map" or "image" gets its own decoder, each "vector" or "box" a head on
            the deepest features, each "embedding" a projection of them, each "auxiliary" 1x1 convolutions.
        encoder: "basic_block", or "resnet34" for a true ResNet-34 (strides 2 to 32) with torchvision's names.
        base_channels: width of the first stage; 64 is the published network.
        depth: multiplies the blocks of ResNet-34's layers.
        head_grid: see `VectorHead`; 24 at 384 x 384 pixels is the published head, 1 pools globally.
        head_hidden: width of the vector heads' hidden layer.
        head_dropout: probability before a vector head's last layer.

    Shape:
        batch: a `Batch`, or images [B, 3, H, W] with H and W multiples of 16 (32 for ResNet-34).
        output: task name -> a tensor as its `Output` describes.
    """

    def __init__(
        self,
        tasks: Mapping[str, Output],
        *,
        encoder: Literal["basic_block", "resnet34"] = "basic_block",
        base_channels: int = 64,
        depth: float = 1.0,
        head_grid: int = 1,
        head_hidden: int = 64,
        head_dropout: float = 0.0,
    ):
        if encoder == "basic_block":
            made: nn.Module = PooledEncoder([width * base_channels for width in WIDTHS], BasicBlock)
        elif encoder == "resnet34":
            made = ResNet("resnet34", width=base_channels / 64, depth=depth)
        else:
            raise ValueError(f"`encoder` of joint_unet must be 'basic_block' or 'resnet34'; got {encoder!r}.")
        pyramid, stride = made.channels, made.strides[0]
        super().__init__(
            "joint_unet",
            tasks,
            made,
            decoder=lambda channels: UNetDecoder(pyramid, channels, stride=stride),
            head=lambda channels: VectorHead(
                pyramid[-1], channels, hidden=head_hidden, grid=head_grid, dropout=head_dropout
            ),
            auxiliary_strides=(8, 4),
        )


register_variant(
    "joint_unet_resnet34",
    "joint_unet",
    ModelInfo(
        summary="Joint U-Net on a true ResNet-34",
        paper=PAPER,
        channels=(64, 64, 128, 256, 512),
        strides=(2, 4, 8, 16, 32),
        rows={"mask, label, intensity": Row(TASKS, 24_587_881)},
        tiny={"base_channels": 4, "depth": 0.25, "head_hidden": 16},
    ),
    encoder="resnet34",
)
