"""The transformers of the switched auxiliary loss: CoaT, PVTv2 and SegFormer encoders under DAFormer's decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from . import encoders
from .base import PyramidModel
from .daformer import DAFormerDecoder
from .heads import Output, pooled_mlp
from .registry import ModelInfo, Row, register_model

PAPER = "Switched auxiliary loss for transformers in histopathology (Barve, Hussain)"
MASK = {"mask": Output("map", 1)}
AUXILIARY = MASK | {"auxiliary": Output("auxiliary", 1)}
TINY = {"width": 1 / 8, "depth": 0.25, "drop_path": 0.0, "decoder_channels": 16}
Fusion = Literal["sep_aspp", "conv"]


def _info(what: str, channels: tuple[int, ...], plain: int, auxiliary: int) -> ModelInfo:
    return ModelInfo(
        summary=f"{what} with DAFormer's decoder; auxiliary heads at strides 8 and 4",
        paper=PAPER,
        channels=channels,
        strides=(4, 8, 16, 32),
        extra="models",
        rows={"mask": Row(MASK, plain), "mask, auxiliary": Row(AUXILIARY, auxiliary)},
        tiny=TINY,
    )


def _daformer(
    name: str,
    tasks: Mapping[str, Output],
    encoder: Any,
    decoder_channels: int,
    fusion: Fusion,
    dropout: float,
    auxiliary_strides: Sequence[int],
) -> PyramidModel:
    pyramid = encoder.channels

    def decoder(channels: int) -> nn.Module:
        return DAFormerDecoder(pyramid, channels, channels=decoder_channels, fusion=fusion, dropout=dropout)

    return PyramidModel(
        name,
        tasks,
        encoder,
        decoder=decoder,
        head=lambda channels: pooled_mlp(pyramid[-1], (channels,)),
        projection=lambda channels: pooled_mlp(pyramid[-1], (pyramid[-1], channels)),
        auxiliary_strides=auxiliary_strides,
    )


@register_model("coat_daformer", _info("CoaT-lite medium", (128, 256, 320, 512), 47_813_825, 47_814_211))
def coat_daformer(
    tasks: Mapping[str, Output],
    *,
    encoder: str = "coat_lite_medium",
    width: float = 1.0,
    depth: float = 1.0,
    drop_path: float = 0.0,
    decoder_channels: int = 256,
    fusion: Fusion = "sep_aspp",
    dropout: float = 0.1,
    auxiliary_strides: Sequence[int] = (8, 4),
) -> PyramidModel:
    """CoaT through timm.

    Args:
        tasks: task name -> `Output`.
        encoder: "coat_lite_medium", "coat_lite_small", "coat_small" or "coat_mini"; the paper says no more than CoaT.
        width, depth: multiply the encoder's channels and blocks.
        drop_path: probability of the deepest residual branch to be dropped.
        decoder_channels, fusion, dropout: see `DAFormerDecoder`.
        auxiliary_strides: see `AuxiliaryHeads`.
    """
    made = encoders.CoaT(encoder, width=width, depth=depth, drop_path=drop_path)
    return _daformer("coat_daformer", tasks, made, decoder_channels, fusion, dropout, auxiliary_strides)


def _of_transformers(
    name: str, make: Callable[..., nn.Module], what: str, plain: int, auxiliary: int
) -> Callable[..., PyramidModel]:
    def build(
        tasks: Mapping[str, Output],
        *,
        width: float = 1.0,
        depth: float = 1.0,
        drop_path: float = 0.1,
        decoder_channels: int = 256,
        fusion: Fusion = "sep_aspp",
        dropout: float = 0.1,
        auxiliary_strides: Sequence[int] = (8, 4),
    ) -> PyramidModel:
        made = make(width=width, depth=depth, drop_path=drop_path)
        return _daformer(name, tasks, made, decoder_channels, fusion, dropout, auxiliary_strides)

    build.__name__, build.__doc__ = name, f"{what} through transformers; options as for `coat_daformer`."
    return register_model(name, _info(what, (64, 128, 320, 512), plain, auxiliary))(build)


pvtv2_daformer = _of_transformers("pvtv2_daformer", encoders.pvtv2_b2, "PVTv2-b2", 28_557_505, 28_557_699)
segformer_daformer = _of_transformers("segformer_daformer", encoders.mit_b2, "MiT-b2", 27_903_937, 27_904_131)
