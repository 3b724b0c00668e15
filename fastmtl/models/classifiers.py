"""The single-task baselines: an encoder, global pooling, one linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from . import encoders
from .base import PyramidModel
from .heads import Output, pooled_mlp
from .registry import ModelInfo, Row, register_model
from .resnet import ResNet

PAPER = "baseline of Mask2Tasks on EBHI-Seg (Le Xuan et al.)"
TASKS = {"classification": Output("vector", 6)}


def _info(
    summary: str, channels: tuple[int, ...], parameters: int, tiny: Mapping[str, Any], extra: str = ""
) -> ModelInfo:
    return ModelInfo(
        summary=summary,
        paper=PAPER,
        channels=channels,
        strides=(2, 4, 8, 16, 32)[-len(channels) :],
        extra=extra,
        rows={"classification": Row(TASKS, parameters)},
        tiny=tiny,
    )


def _classifier(name: str, tasks: Mapping[str, Output], encoder: Any, dropout: float) -> PyramidModel:
    deepest = encoder.channels[-1]
    return PyramidModel(name, tasks, encoder, head=lambda channels: pooled_mlp(deepest, (channels,), dropout=dropout))


@register_model(
    "resnet50",
    _info(
        "ResNet-50 classifier, torchvision's names",
        (64, 256, 512, 1024, 2048),
        23_520_326,
        {"width": 1 / 16, "depth": 0.25},
    ),
)
def resnet50(
    tasks: Mapping[str, Output], *, width: float = 1.0, depth: float = 1.0, dropout: float = 0.0
) -> PyramidModel:
    """ResNet-50.

    Args:
        tasks: task name -> `Output`: "vector", "box" or "embedding".
        width, depth: see `ResNet`.
        dropout: probability before the linear layer.
    """
    return _classifier("resnet50", tasks, ResNet("resnet50", width=width, depth=depth), dropout)


def _of_transformers(
    name: str,
    encoder: Callable[..., encoders.Pyramid],
    tasks: Mapping[str, Output],
    *,
    width: float = 1.0,
    depth: float = 1.0,
    drop_path: float = 0.2,
    dropout: float = 0.0,
) -> PyramidModel:
    """A network of transformers.

    Args:
        name: the model's name in error messages.
        encoder: (width, depth, drop_path) -> one of `encoders`.
        tasks: task name -> `Output`: "vector", "box" or "embedding".
        width, depth: multiply channels and blocks.
        drop_path: probability that the deepest residual branch is dropped.
        dropout: probability before the linear layer.
    """
    return _classifier(name, tasks, encoder(width=width, depth=depth, drop_path=drop_path), dropout)


register_model(
    "swin_t", _info("Swin-T classifier", (768,), 27_523_968, {"width": 1 / 8, "depth": 0.5, "drop_path": 0.0}, "models")
)(partial(_of_transformers, "swin_t", encoders.swin_t))
register_model(
    "efficientnet_b0",
    _info("EfficientNet-b0 classifier", (1280,), 4_015_234, {"width": 1 / 4, "depth": 0.3, "drop_path": 0.0}, "models"),
)(partial(_of_transformers, "efficientnet_b0", encoders.efficientnet_b0, dropout=0.2))
