"""The transformers of the switched auxiliary loss: CoaT, PVTv2 and SegFormer encoders under DAFormer's decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from . import encoders
from .base import PyramidModel
from .daformer import DAFormerDecoder
from .heads import Output
from .registry import ModelInfo, Row, register_model

PAPER = "Switched auxiliary loss for transformers in histopathology (Barve, Hussain)"
MASK = {"mask": Output("map", 1)}
AUXILIARY = MASK | {"auxiliary": Output("auxiliary", 1)}
TINY = {"width": 1 / 8, "depth": 0.25, "drop_path": 0.0, "decoder_channels": 16}
ENCODERS: dict[str, Callable[..., Any]] = {
    **{kind: partial(encoders.CoaT, kind) for kind in encoders.COAT},
    "pvtv2_b2": encoders.pvtv2_b2,
    "mit_b2": encoders.mit_b2,
}


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
    *,
    encoder: str,
    width: float = 1.0,
    depth: float = 1.0,
    drop_path: float = 0.1,
    decoder_channels: int = 256,
    fusion: Literal["sep_aspp", "conv"] = "sep_aspp",
    dropout: float = 0.1,
    auxiliary_strides: Sequence[int] = (8, 4),
) -> PyramidModel:
    """An encoder under DAFormer's decoder.

    Args:
        name: the model's name in error messages.
        tasks: task name -> `Output`.
        encoder: a key of `ENCODERS`; the paper does not say which CoaT it uses.
        width, depth: multiply the encoder's channels and blocks.
        drop_path: probability that the deepest residual branch is dropped.
        decoder_channels, fusion, dropout: see `DAFormerDecoder`.
        auxiliary_strides: see `AuxiliaryHeads`.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"`encoder` of {name} must be one of {', '.join(ENCODERS)}; got {encoder!r}.")
    made = ENCODERS[encoder](width=width, depth=depth, drop_path=drop_path)

    def decoder(channels: int) -> nn.Module:
        return DAFormerDecoder(made.channels, channels, channels=decoder_channels, fusion=fusion, dropout=dropout)

    return PyramidModel(name, tasks, made, decoder=decoder, auxiliary_strides=auxiliary_strides)


def _register(name: str, info: ModelInfo, **options: Any) -> None:
    register_model(name, info)(partial(_daformer, name, **options))


_register(
    "coat_daformer",
    _info("CoaT-lite medium", (128, 256, 320, 512), 47_813_825, 47_814_211),
    encoder="coat_lite_medium",
    drop_path=0.0,
)
_register("pvtv2_daformer", _info("PVTv2-b2", (64, 128, 320, 512), 28_557_505, 28_557_699), encoder="pvtv2_b2")
_register("segformer_daformer", _info("MiT-b2", (64, 128, 320, 512), 27_903_937, 27_904_131), encoder="mit_b2")
