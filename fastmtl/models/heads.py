"""What a task asks of a model, and the small modules that answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Output:
    """The logits one task needs.

    Attributes:
        kind: "map" for [B, channels, H, W] at the input's size, "vector" for [B, channels].
        channels: number of logits per pixel or per image.
    """

    kind: Literal["map", "vector", "box", "image", "embedding", "queries", "auxiliary"]
    channels: int


def split_outputs(tasks: Mapping[str, Output], model: str) -> tuple[dict[str, int], dict[str, int]]:
    """(maps, vectors): task name -> channels, for a model that gives both kinds.

    Raises:
        ValueError: no task, an unknown kind, or a task without channels.
    """
    if not tasks:
        raise ValueError(f"`tasks` of {model!r} is empty; give at least one, e.g. {{'mask': Output('map', 1)}}.")
    for name, output in tasks.items():
        if output.kind not in ("map", "vector") or output.channels < 1:
            raise ValueError(
                f"task {name!r} of {model!r} must ask for a 'map' or 'vector' of at least one channel; got {output}."
            )
    maps = {name: output.channels for name, output in tasks.items() if output.kind == "map"}
    vectors = {name: output.channels for name, output in tasks.items() if output.kind == "vector"}
    return maps, vectors


class VectorHead(nn.Module):
    """Pool -> Linear -> ReLU -> Dropout -> Linear: features [B, C, h, w] to logits [B, channels].

    Args:
        in_channels: C.
        channels: logits per image.
        hidden: width of the hidden layer.
        grid: the features are average-pooled to grid x grid before they are flattened; 1 is global pooling, the
            feature map's own side keeps every position, as the Joint U-Net paper's flattened 512 x 24 x 24.
        dropout: probability, before the last layer.
    """

    def __init__(self, in_channels: int, channels: int, *, hidden: int = 64, grid: int = 1, dropout: float = 0.0):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.hidden = nn.Linear(in_channels * grid * grid, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.relu(self.hidden(self.pool(features).flatten(1)))
        return self.out(self.dropout(hidden))
