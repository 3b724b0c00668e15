"""The single-task baselines: an encoder, global pooling, one linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import encoders
from .base import PyramidModel
from .heads import Output, pooled_mlp
from .registry import ModelInfo, Row, register_model
from .resnet import ResNet

PAPER = "baseline of Mask2Tasks on EBHI-Seg (Le Xuan et al.)"
TASKS = {"classification": Output("vector", 6)}


def _classifier(name: str, tasks: Mapping[str, Output], encoder: Any, dropout: float) -> PyramidModel:
    deepest = encoder.channels[-1]
    return PyramidModel(
        name,
        tasks,
        encoder,
        head=lambda channels: pooled_mlp(deepest, (channels,), dropout=dropout),
        projection=lambda channels: pooled_mlp(deepest, (deepest, channels)),
    )


@register_model(
    "resnet50",
    ModelInfo(
        summary="ResNet-50 classifier, torchvision's names",
        paper=PAPER,
        channels=(64, 256, 512, 1024, 2048),
        strides=(2, 4, 8, 16, 32),
        rows={"classification": Row(TASKS, 23_520_326)},
        tiny={"width": 1 / 16, "depth": 0.25},
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


@register_model(
    "swin_t",
    ModelInfo(
        summary="Swin-T classifier",
        paper=PAPER,
        channels=(768,),
        strides=(32,),
        extra="models",
        rows={"classification": Row(TASKS, 27_523_968)},
        tiny={"width": 1 / 8, "depth": 0.5, "drop_path": 0.0},
    ),
)
def swin_t(
    tasks: Mapping[str, Output],
    *,
    width: float = 1.0,
    depth: float = 1.0,
    drop_path: float = 0.2,
    dropout: float = 0.0,
) -> PyramidModel:
    """Swin-T through transformers.

    Args:
        tasks: task name -> `Output`: "vector", "box" or "embedding".
        width, depth: multiply channels and blocks.
        drop_path: probability of the deepest residual branch to be dropped.
        dropout: probability before the linear layer.
    """
    encoder = encoders.swin_t(width=width, depth=depth, drop_path=drop_path)
    return _classifier("swin_t", tasks, encoder, dropout)


@register_model(
    "efficientnet_b0",
    ModelInfo(
        summary="EfficientNet-b0 classifier",
        paper=PAPER,
        channels=(1280,),
        strides=(32,),
        extra="models",
        rows={"classification": Row(TASKS, 4_015_234)},
        tiny={"width": 1 / 4, "depth": 0.3, "drop_path": 0.0},
    ),
)
def efficientnet_b0(
    tasks: Mapping[str, Output],
    *,
    width: float = 1.0,
    depth: float = 1.0,
    drop_path: float = 0.2,
    dropout: float = 0.2,
) -> PyramidModel:
    """EfficientNet-b0 through transformers.

    Args:
        tasks: task name -> `Output`: "vector", "box" or "embedding".
        width, depth: multiply channels and blocks.
        drop_path: probability of the deepest residual branch to be dropped.
        dropout: probability before the linear layer.
    """
    encoder = encoders.efficientnet_b0(width=width, depth=depth, drop_path=drop_path)
    return _classifier("efficientnet_b0", tasks, encoder, dropout)
