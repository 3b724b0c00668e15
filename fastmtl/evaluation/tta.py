"""Test-time augmentation: the mean of the network's outputs over flips and quarter turns of the image.

Logits are averaged, not probabilities, because only the task knows whether they belong to a sigmoid, a softmax or a
regression. For a sigmoid this is the geometric mean of the odds, for a softmax the geometric mean of the probabilities,
for a regression the mean of the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..config.validation import VIEWS
from ..protocols import Batch, Task

# (quarter turns against the clock, then flipped left to right) of an image [..., H, W].
_VIEWS = {"h": (0, True), "v": (2, True), "r90": (1, False), "r180": (2, False), "r270": (3, False)}
_MAPS = ("map", "image", "auxiliary")


class Views(nn.Module):
    """A module that averages `model` over an image and its views; takes a `Batch`.

    Maps and boxes are transformed back before averaging. Box coordinates are logits, and logit(1 - x) = -logit(x).
    Vectors and embeddings are averaged directly.

    Args:
        model: in any mode; `train` and `eval` apply to it.
        tasks: the tasks of the model.
        views: among "h", "v", "r90", "r180" and "r270"; the image itself is always included.

    Raises:
        ConfigError: an unknown view, or a task whose outputs cannot be averaged.
    """

    def __init__(self, model: nn.Module, tasks: Sequence[Task], views: Sequence[str]) -> None:
        super().__init__()
        check_views(tasks, views)
        self.model, self.views = model, tuple(views)
        self.kinds = {task.name: task.output.kind for task in tasks}

    def forward(self, batch: Batch) -> dict[str, Any]:
        sums = {name: output.float() for name, output in self.model(batch).items()}
        for view in self.views:
            turns, flipped = _VIEWS[view]
            turned = _turn(batch.images, turns, flipped)
            for name, output in self.model(replace(batch, images=turned)).items():
                sums[name] = sums[name] + _back(self.kinds[name])(output.float(), turns, flipped)
        return {name: total / (len(self.views) + 1) for name, total in sums.items()}


def check_views(tasks: Sequence[Task], views: Sequence[str]) -> None:
    """Raise ConfigError for an unknown view, or a task whose outputs cannot be averaged."""
    unknown = [view for view in views if view not in VIEWS]
    if unknown:
        raise ConfigError(f"tta takes the views {', '.join(VIEWS)}; got {unknown[0]!r}.")
    for task in tasks if views else ():
        if task.output.kind == "queries":
            raise ConfigError(
                f"task {task.name!r} cannot be averaged over views (tta): the queries of two views have no common "
                "order. Leave training.tta empty."
            )
        if getattr(task, "side", 0):
            raise ConfigError(
                f"task {task.name!r} cannot be averaged over views (tta): its box is in pixels (`side`), not logits. "
                "Leave training.tta empty."
            )


def _back(kind: str) -> Callable[[Tensor, int, bool], Tensor]:
    if kind in _MAPS:
        return _turn_back
    return _box_back if kind == "box" else lambda output, _turns, _flipped: output


def _turn(images: Tensor, turns: int, flipped: bool) -> Tensor:
    turned = torch.rot90(images, turns, (-2, -1))
    return turned.flip(-1) if flipped else turned


def _turn_back(maps: Tensor, turns: int, flipped: bool) -> Tensor:
    return torch.rot90(maps.flip(-1) if flipped else maps, -turns, (-2, -1))


def _box_back(boxes: Tensor, turns: int, flipped: bool) -> Tensor:
    """Logits [B, 4] of centre x, centre y, width, height."""
    x, y, width, height = boxes.unbind(1)
    if flipped:
        x = -x
    for _ in range(turns):  # a quarter turn with the clock: what was at the left is at the top
        x, y, width, height = -y, x, height, width
    return torch.stack([x, y, width, height], 1)
