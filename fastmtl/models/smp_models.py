"""U-Net and DeepLabV3+ of segmentation-models-pytorch, with one decoder per task and auxiliary heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from . import encoders
from .base import PyramidModel
from .daformer_models import AUXILIARY, MASK, PAPER
from .heads import Output, pooled_mlp
from .registry import ModelInfo, Row, register_model, register_variant

B5, R101 = (48, 40, 64, 176, 512), (64, 256, 512, 1024, 2048)


def _info(what: str, channels: tuple[int, ...], deepest: int, plain: int, auxiliary: int, tiny: str) -> ModelInfo:
    return ModelInfo(
        summary=f"{what}; auxiliary heads at strides 8 and 4",
        paper=PAPER,
        channels=channels,
        strides=(2, 4, 8, 16, deepest),
        extra="models",
        rows={"mask": Row(MASK, plain), "mask, auxiliary": Row(AUXILIARY, auxiliary)},
        tiny={"encoder": tiny, "width": 1 / 4},
    )


class SmpDecoder(nn.Module):
    """smp's decoder and segmentation head: feature maps, the image first, -> [B, channels, H, W]."""

    def __init__(self, decoder: nn.Module, head: nn.Module):
        super().__init__()
        from segmentation_models_pytorch.base import initialization

        self.decoder, self.head = decoder, head
        initialization.initialize_decoder(decoder)
        initialization.initialize_head(head)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.head(self.decoder(list(features)))


@register_model("unet", _info("U-Net on EfficientNet-b5", B5, 32, 31_216_001, 31_216_107, "tu-test_efficientnet"))
def unet(
    tasks: Mapping[str, Output],
    *,
    encoder: str = "efficientnet-b5",
    width: float = 1.0,
    top: bool = False,
    head_dropout: float = 0.0,
    auxiliary_strides: Sequence[int] = (8, 4),
) -> PyramidModel:
    """smp's Unet.

    Args:
        tasks: task name -> `Output`.
        encoder: name of any smp encoder; "tu-..." for timm's.
        width: multiplies the decoder's channels (256, 128, 64, 32, 16).
        top: vectors and boxes read the encoder's `TopConvolution` instead of its deepest feature map.
        head_dropout: probability, before the linear layer of vectors and boxes.
        auxiliary_strides: see `AuxiliaryHeads`.
    """
    encoders.library("segmentation_models_pytorch", "unet")
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    channels = [encoders.scaled(value, width) for value in (256, 128, 64, 32, 16)]
    made = encoders.smp_encoder(encoder)

    def decoder(outputs: int) -> nn.Module:
        return SmpDecoder(UnetDecoder(made.channels, channels), SegmentationHead(channels[-1], outputs, kernel_size=3))

    trunk = encoders.TopConvolution(encoder) if top else None
    read = made.channels[-1] if trunk is None else trunk.channels
    return PyramidModel(
        "unet",
        tasks,
        made,
        decoder=decoder,
        head=lambda channels: pooled_mlp(read, (channels,), dropout=head_dropout),
        auxiliary_strides=auxiliary_strides,
        trunk=trunk,
    )


@register_model(
    "deeplabv3plus", _info("DeepLabV3+ on EfficientNet-b5", B5, 16, 29_492_417, 29_492_523, "tu-test_efficientnet")
)
def deeplabv3plus(
    tasks: Mapping[str, Output],
    *,
    encoder: str = "efficientnet-b5",
    width: float = 1.0,
    output_stride: Literal[8, 16] = 16,
    auxiliary_strides: Sequence[int] = (8, 4),
) -> PyramidModel:
    """smp's DeepLabV3Plus.

    Args:
        tasks: task name -> `Output`.
        encoder: name of any smp encoder that can be dilated; "tu-..." for timm's.
        width: multiplies the decoder's 256 channels.
        output_stride: of the deepest features, 8 or 16; the encoder's last stages are dilated to reach it.
        auxiliary_strides: see `AuxiliaryHeads`.
    """
    if output_stride not in (8, 16):
        raise ValueError(f"`output_stride` of deeplabv3plus must be 8 or 16; got {output_stride}.")
    encoders.library("segmentation_models_pytorch", "deeplabv3plus")
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

    channels = encoders.scaled(256, width)
    made = encoders.smp_encoder(encoder, output_stride=output_stride)

    def decoder(outputs: int) -> nn.Module:
        inner = DeepLabV3PlusDecoder(
            made.channels, 5, channels, (12, 24, 36), output_stride, aspp_separable=True, aspp_dropout=0.5
        )
        head = SegmentationHead(channels, outputs, kernel_size=1, upsampling=4)
        return SmpDecoder(inner, head)

    return PyramidModel("deeplabv3plus", tasks, made, decoder=decoder, auxiliary_strides=auxiliary_strides)


register_variant(
    "unet_resnet101",
    "unet",
    _info("U-Net on ResNet-101", R101, 32, 51_513_233, 51_514_003, "tu-test_resnet"),
    encoder="resnet101",
)
register_variant(
    "deeplabv3plus_resnet101",
    "deeplabv3plus",
    _info("DeepLabV3+ on ResNet-101", R101, 16, 45_669_713, 45_670_483, "tu-test_resnet"),
    encoder="resnet101",
)
