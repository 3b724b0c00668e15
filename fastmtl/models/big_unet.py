"""Big UNet of the gastro-intestinal tract paper: ResNet-50 without its last layer, and a U-Net decoder."""

from __future__ import annotations

from collections.abc import Mapping

from .base import PyramidModel
from .heads import Output, pooled_mlp
from .registry import ModelInfo, Row, register_model, register_variant
from .resnet import ResNet
from .small_unet import CONTRASTIVE, ORGANS, PAPER, POSITION
from .unet import UNetDecoder

STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",))
INFO = {
    "paper": PAPER,
    "channels": (64, 256, 512, 1024),
    "strides": (2, 4, 8, 16),
    "tiny": {"width": 1 / 8, "depth": 0.1},
}


@register_model(
    "big_unet",
    ModelInfo(
        summary="U-Net on ResNet-50 up to its third layer",
        rows={
            "organs": Row(ORGANS, 20_592_163),
            "organs, position": Row(POSITION, 20_657_828),
            "organs, contrastive": Row(CONTRASTIVE, 21_772_963),
        },
        **INFO,
    ),
)
def big_unet(
    tasks: Mapping[str, Output],
    *,
    width: float = 1.0,
    depth: float = 1.0,
    frozen_stages: int = 0,
    head_hidden: int = 64,
) -> PyramidModel:
    """A U-Net on the first layers of ResNet-50, with torchvision's parameter names in the encoder.

    Args:
        tasks: task name -> `Output`.
        width, depth: see `ResNet`.
        frozen_stages: number of frozen stages (first convolution, layer1, layer2, layer3); the paper's "first 4
            layers" are all that it keeps of ResNet-50. Use it only with `weights`.
        head_hidden: width of the vector heads' hidden layer.
    """
    if not 0 <= frozen_stages <= len(STAGES):
        raise ValueError(f"`frozen_stages` of big_unet must be 0 to {len(STAGES)}; got {frozen_stages}.")
    encoder = ResNet("resnet50", width=width, depth=depth, num_layers=3)
    deepest = encoder.channels[-1]
    model = PyramidModel(
        "big_unet",
        tasks,
        encoder,
        decoder=lambda channels: UNetDecoder(encoder.channels, channels, stride=encoder.strides[0]),
        head=lambda channels: pooled_mlp(deepest, (head_hidden, channels)),
        auxiliary_strides=(8, 4),
    )
    model.freeze(*(f"encoder.{module}" for stage in STAGES[:frozen_stages] for module in stage))
    return model


register_variant(
    "big_unet_frozen",
    "big_unet",
    ModelInfo(
        summary="Big UNet with its first four ResNet layers frozen", rows={"organs": Row(ORGANS, 20_592_163)}, **INFO
    ),
    frozen_stages=4,
)
