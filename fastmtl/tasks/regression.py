"""Numbers per image: measurements, positions, and the box around a structure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import losses
from ..models import Output
from ..protocols import Batch, Target
from .base import BaseTask, is_number, positive
from .registry import register_task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

_LOSSES = {"mse": losses.MSELoss, "l1": losses.L1Loss, "smooth_l1": losses.SmoothL1Loss}
Loss = Literal["mse", "l1", "smooth_l1"]


def _criterion(name: str, loss: str) -> Any:
    if loss not in _LOSSES:
        raise ValueError(f"task {name!r}: `loss` must be one of {', '.join(_LOSSES)}; got {loss!r}.")
    return _LOSSES[loss]()


@register_task("regression")
class Regression(BaseTask):
    """`size` numbers per image on logits [B, size], target float32 [B] or [B, size].

    The network learns (value - mean) / std; predictions and metrics are in the target's own unit.

    Args:
        size: numbers per image.
        loss: "mse", "l1" or "smooth_l1", on the standardised values.
        mean, std: of the target over the training set, in its unit.
    """

    primary_metric: ClassVar[str] = "r2"

    def __init__(
        self,
        name: str,
        column: int,
        *,
        size: int = 1,
        loss: Loss = "mse",
        mean: float = 0.0,
        std: float = 1.0,
    ):
        super().__init__(name, column)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"task {name!r}: `size` must be a whole number above 0; got {size}.")
        if not is_number(mean) or not math.isfinite(mean):
            raise ValueError(f"task {name!r}: `mean` must be a finite number; got {mean!r}.")
        self.size, self.mean, self.std = size, mean, positive(name, "std", std)
        self.target = Target("number") if size == 1 else Target("vector", size=size)
        self.output = Output("vector", size)
        self.criterion = _criterion(name, loss)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar mean over the labelled samples' numbers; 0, with a graph, when there are none."""
        wanted = (self._target(batch).double() - self.mean) / self.std  # float32 would round a large mean
        return self.criterion(output.float(), wanted.float(), mask=self.has_label(batch))

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, size] -> numbers float32 [B, size]."""
        return (output.double() * self.std + self.mean).float()

    def metrics(self) -> MetricCollection:
        """`mae` and `rmse` in the target's unit, and `r2`."""
        from .metrics import regression_metrics

        return regression_metrics(self.size)

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        rows = self.has_label(batch)
        if rows.any():
            found, wanted = self.predict(output)[rows], self._target(batch)[rows]
            metrics.update(*(x.squeeze(1) if self.size == 1 else x for x in (found, wanted)))

    def _target(self, batch: Batch) -> Tensor:
        return batch.targets[self.name].float().reshape(len(batch), self.size)


@register_task("bounding_box")
class BoundingBox(BaseTask):
    """The box around a structure: logits [B, 4], target float32 [B, 4] as centre x, centre y, width, height in 0..1.

    Predictions and `iou` are in 0..1, whatever the units of the loss.

    Args:
        loss: "mse", "l1" or "smooth_l1", on the four numbers.
        side: 0: the sigmoid of the logits is the box. Otherwise the logits themselves are left, top, right, bottom in
            pixels of an image with sides of this length, and so the loss is in these pixels (squared for "mse").
    """

    primary_metric: ClassVar[str] = "iou"
    target: Target = Target("box", "box")

    def __init__(self, name: str, column: int, *, loss: Loss = "mse", side: float = 0.0):
        super().__init__(name, column)
        self.side = positive(name, "side", side) if side else 0.0
        self.output = Output("box", 4)
        self.criterion = _criterion(name, loss)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar mean over the labelled samples; 0, with a graph, when there are none."""
        found, wanted = output.float(), batch.targets[self.name]
        if self.side:
            centre, size = wanted.split(2, 1)
            wanted = torch.cat([centre - size / 2, centre + size / 2], 1) * self.side
        else:
            found = found.sigmoid()
        return self.criterion(found, wanted, mask=self.has_label(batch))

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, 4] -> box float32 [B, 4] in 0..1: centre x, centre y, width, height."""
        if not self.side:
            return output.float().sigmoid()
        first, second = (output.float() / self.side).clamp(0, 1).split(2, 1)
        return torch.cat([(first + second) / 2, (second - first).clamp(min=0)], 1)

    def metrics(self) -> MetricCollection:
        """`iou`: mean over images of the overlap of predicted and true box."""
        from .metrics import box_metrics

        return box_metrics()
