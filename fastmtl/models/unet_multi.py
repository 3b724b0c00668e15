"""UNet-multi: a U-Net whose deepest features also predict the class and a box, or reconstruct the image."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .base import PyramidModel
from .heads import Output
from .registry import ModelInfo, Row, register_model, register_variant
from .unet import PooledEncoder, UNetDecoder, double_conv, doubled

PAPER = "Multi-task animal segmentation on Oxford Pets (Christian et al.)"
MASK, CLASS, BOX, IMAGE = Output("map", 1), Output("vector", 1), Output("box", 4), Output("image", 3)


class FlatTrunk(nn.Module):
    """[B, C, h, w] -> pool to grid x grid if the size differs, flatten -> 128 -> 64, each layer with ReLU."""

    def __init__(self, in_channels: int, grid: int, widths: tuple[int, int] = (128, 64)):
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(grid),
            nn.Flatten(1),
            nn.Linear(in_channels * grid * grid, widths[0]),
            nn.ReLU(inplace=True),
            nn.Linear(widths[0], widths[1]),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


@register_model(
    "unet_multi",
    ModelInfo(
        summary="U-Net; class and box share two layers on its flattened deepest features",
        paper=PAPER,
        channels=(64, 128, 256, 512, 1024),
        strides=(1, 2, 4, 8, 16),
        rows={
            "base: mask": Row({"mask": MASK}, 31_037_633),
            "mtl: mask, class, box": Row({"mask": MASK, "class": CLASS, "box": BOX}, 64_600_774),
            "mtl-class: mask, class": Row({"mask": MASK, "class": CLASS}, 64_600_514),
            "mtl-bbox: mask, box": Row({"mask": MASK, "box": BOX}, 64_600_709),
            "mtl-rec: mask, class, reconstruction": Row(
                {"mask": MASK, "class": CLASS, "reconstruction": IMAGE}, 76_791_109
            ),
        },
        tiny={"base_channels": 4, "head_grid": 2},
    ),
)
def unet_multi(
    tasks: Mapping[str, Output],
    *,
    base_channels: int = 64,
    levels: int = 5,
    head_grid: int | None = None,
) -> PyramidModel:
    """A U-Net with transposed convolutions; each "map" and "image" has a decoder, "vector"s and "box"es share a trunk.

    Args:
        tasks: task name -> `Output`; leaving one out is the paper's ablation.
        base_channels: width at stride 1; doubles at every level.
        levels: resolutions; 4 is the paper's "less depth".
        head_grid: side of the flattened features; None is the side for the paper's 256 x 256 images (16 for 5 levels).
            Features of other sizes are pooled to it.
    """
    channels = doubled("unet_multi", base_channels, levels)
    reads = any(output.kind in ("vector", "box") for output in tasks.values())
    return PyramidModel(
        "unet_multi",
        tasks,
        PooledEncoder(channels, double_conv),
        decoder=lambda outputs: UNetDecoder(channels, outputs, up="transposed"),
        head=lambda outputs: nn.Linear(64, outputs),
        auxiliary_strides=(8, 4) if levels > 3 else (2, 1),
        trunk=FlatTrunk(channels[-1], head_grid or 256 // 2 ** (levels - 1)) if reads else None,
    )


register_variant(
    "unet_multi_lessdepth",
    "unet_multi",
    ModelInfo(
        summary="UNet-multi with one level less",
        paper=PAPER,
        channels=(64, 128, 256, 512),
        strides=(1, 2, 4, 8),
        rows={"mtl-lessdepth: mask, class, box": Row({"mask": MASK, "class": CLASS, "box": BOX}, 74_817_734)},
        tiny={"base_channels": 4, "head_grid": 2},
    ),
    levels=4,
)
