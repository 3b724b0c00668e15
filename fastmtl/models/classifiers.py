"""The single-task baselines: an encoder, global pooling, one linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import encoders
from .base import PyramidModel
from .heads import Output, pooled_mlp
from .registry import ModelInfo, Row, register_model
from .resnet import ResNet

PAPER = "baseline of Mask2Tasks on EBHI-Seg (Le Xuan et al.)"
TASKS = {"classification": Output("vector", 6)}
_OPTIONS = """through transformers.

    Args:
        tasks: task name -> `Output`: "vector", "box" or "embedding".
        width, depth: multiply channels and blocks.
        drop_path: probability of the deepest residual branch to be dropped.
        dropout: probability before the linear layer.
    """


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


def _of_transformers(
    name: str,
    make: Callable[..., encoders.Pyramid],
    what: str,
    channels: int,
    parameters: int,
    tiny: Mapping[str, Any],
    dropout_by_default: float,
) -> Callable[..., PyramidModel]:
    def build(
        tasks: Mapping[str, Output],
        *,
        width: float = 1.0,
        depth: float = 1.0,
        drop_path: float = 0.2,
        dropout: float = dropout_by_default,
    ) -> PyramidModel:
        return _classifier(name, tasks, make(width=width, depth=depth, drop_path=drop_path), dropout)

    build.__name__, build.__doc__ = name, f"{what} {_OPTIONS}"
    info = ModelInfo(
        summary=f"{what} classifier",
        paper=PAPER,
        channels=(channels,),
        strides=(32,),
        extra="models",
        rows={"classification": Row(TASKS, parameters)},
        tiny={**tiny, "drop_path": 0.0},
    )
    return register_model(name, info)(build)


swin_t = _of_transformers(
    "swin_t", encoders.swin_t, "Swin-T", 768, 27_523_968, {"width": 1 / 8, "depth": 0.5}, dropout_by_default=0.0
)
efficientnet_b0 = _of_transformers(
    "efficientnet_b0",
    encoders.efficientnet_b0,
    "EfficientNet-b0",
    1280,
    4_015_234,
    {"width": 1 / 4, "depth": 0.3},
    dropout_by_default=0.2,
)
