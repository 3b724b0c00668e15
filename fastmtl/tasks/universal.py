"""Universal segmentation with queries, each with a class and a mask, as in Mask2Former and Mask2Tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import losses
from ..models import Output
from ..protocols import Batch, Target
from ..utils.json_toml import JsonObject
from .base import BaseTask, exclusive
from .grouping import Grouping
from .registry import register_task
from .scoring import Aggregate, Scoring

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@register_task("universal_segmentation")
class UniversalSegmentation(BaseTask):
    """Mask2Former's loss on queries, evaluated as semantic segmentation.

    The model returns class_logits [B, Q, C + 1], mask_logits [B, Q, h, w] and those of its auxiliary layers. Target: a
    mask 0/1 [B, 1, H, W] for background and foreground, or class indices [B, 1, H, W] if `structures` is given.
    A pixel's score for class c is the sum over queries of softmax(class)_c * sigmoid(mask), as in Mask2Former's
    semantic inference.

    Args:
        structures: the C classes' names, the background first; () means background and foreground.
        class_weight, mask_weight, dice_weight, no_object_weight, num_points: see `losses.Mask2FormerLoss`.
        group_by: a label column of the data set: metrics are reported for each value.
        empty, aggregate: for the metrics, as in `BinarySegmentation`; the loss does not use them.
    """

    primary_metric: ClassVar[str] = "jaccard"

    def __init__(
        self,
        name: str,
        column: int,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        structures: Sequence[str] = (),
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        group_by: str = "",
        empty: str = "one",
        aggregate: Aggregate = "image",
    ):
        super().__init__(name, column)
        if isinstance(structures, str) or len(structures) == 1:
            raise ValueError(
                f"task {name!r}: `structures` must list the background and the classes; got {structures!r}."
            )
        self.structures = exclusive(name, structures) or ("background", "foreground")
        grouping = Grouping(name, group_by, groups or {}, {})
        self.empty, self.scoring = empty, Scoring(name, self.structures[1:], grouping, empty, aggregate)
        self.target = Target("classes") if structures else Target("mask")
        self.output = Output("queries", len(self.structures))
        self.criterion = losses.Mask2FormerLoss(
            len(self.structures),
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            no_object_weight=no_object_weight,
            num_points=num_points,
        )

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Scalar: the weighted sum over all layers, for the samples with a mask."""
        self.criterion.to(output.class_logits.device)
        labels, masks, count = self._objects(batch.targets[self.name])
        found = self.criterion(
            output.class_logits.float(),
            output.mask_logits.float(),
            labels,
            masks,
            count,
            has_label=self.has_label(batch),
            auxiliary=[(classes.float(), maps.float()) for classes, maps in output.auxiliary],
        )
        return self.criterion.total(found)

    def scores(self, output: Any, size: Sequence[int]) -> Tensor:
        """float32 [B, C, *size], the score of each class at each pixel."""
        classes = output.class_logits.float().softmax(2)[..., :-1]
        masks = F.interpolate(output.mask_logits.float(), tuple(size), mode="bilinear", align_corners=False).sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes, masks)

    def predict(self, output: Any, batch: Batch | None = None) -> Tensor:
        """uint8 class indices [B, 1, H, W] (0 and 1 with two classes); at the mask logits' size without a batch."""
        size = output.mask_logits.shape[-2:] if batch is None else batch.images.shape[-2:]
        return self.scores(output, size).argmax(1, keepdim=True).to(torch.uint8)

    def metrics(self) -> MetricCollection:
        """`dice` and `jaccard` over all classes except the background."""
        return self.scoring.metrics()

    def update(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        rows = self.has_label(batch)
        if rows.any():
            found, true = self.predict(output, batch)[rows], batch.targets[self.name][rows]
            self.scoring.update(metrics, self._one_hot(found), self._one_hot(true), batch, rows)

    def summary(self, metrics: MetricCollection) -> JsonObject:
        """`dice` and `jaccard`; with several structures or groups also `per_class` and `per_group` of each."""
        return super().summary(metrics) | self.scoring.apart(metrics)

    def _one_hot(self, classes: Tensor) -> Tensor:
        """Indices [B, 1, H, W] -> bool [B, C - 1, H, W]."""
        names = torch.arange(1, len(self.structures), device=classes.device)
        return classes == names[:, None, None]

    def _objects(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels [B, C], masks [B, C, H, W] and counts [B]: present classes come first; no shape depends on
        the data."""
        names = torch.arange(len(self.structures), device=target.device)
        masks = target == names[:, None, None]
        there = masks.flatten(2).any(2)
        order = torch.argsort(there.logical_not().to(torch.uint8), dim=1, stable=True)
        return order, masks.gather(1, order[:, :, None, None].expand_as(masks)), there.sum(1)
