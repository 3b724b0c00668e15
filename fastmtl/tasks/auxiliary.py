"""Deep supervision of an inner layer, for the switched auxiliary loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import losses
from ..models import Output
from ..protocols import Batch, Target
from .base import BaseTask, check_weights
from .registry import register_task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@register_task("auxiliary_segmentation")
class AuxiliarySegmentation(BaseTask):
    """A coarse map [B, 1, h, w] from inside the network against the full-resolution mask 0/1 [B, 1, H, W].

    The loss downsamples the mask as it reads it (`ops.deep_supervision_loss`). The model's `use_auxiliary`, or a
    stage's `auxiliary_stride`, chooses the layer.

    Args:
        bce_weight, dice_weight: the paper uses BCE only.
        downsample: "nearest", "area" or "max".
    """

    target: Target = Target("mask")

    def __init__(
        self,
        name: str,
        column: int,
        *,
        bce_weight: float = 1.0,
        dice_weight: float = 0.0,
        downsample: str = "nearest",
    ):
        super().__init__(name, column)
        check_weights(name, bce_weight=bce_weight, dice_weight=dice_weight)
        if downsample not in ("nearest", "area", "max"):
            raise ValueError(f"task {name!r}: `downsample` must be nearest, area or max; got {downsample!r}.")
        self.output = Output("auxiliary", 1)
        self.criterion = losses.DeepSupervisionLoss(
            pointwise_weight=bce_weight, dice_weight=dice_weight, downsample=downsample
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar, over the samples with a mask."""
        return self.criterion([output], batch.targets[self.name], mask=self.has_label(batch))

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, 1, h, w] -> bool masks [B, 1, h, w]."""
        return output.float().sigmoid() > 0.5

    def metrics(self) -> MetricCollection:
        """`dice` and `jaccard` at full resolution, each coarse pixel repeated."""
        from .metrics import segmentation_metrics

        return segmentation_metrics()

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        rows = self.has_label(batch)
        if rows.any():
            target = batch.targets[self.name][rows]
            found = self.predict(output[rows]).repeat_interleave(target.shape[2] // output.shape[2], 2)
            metrics.update(found.repeat_interleave(target.shape[3] // output.shape[3], 3), target)
