"""Segmentation by logits per pixel: one structure, several that may overlap, or classes that exclude each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import losses
from ..models import Output
from ..protocols import Batch, Target
from .base import BaseTask, by_name, distinct, weights
from .grouping import Grouping
from .registry import register_task
from .scoring import EMPTY, Aggregate, check_scoring


class _Sigmoid(BaseTask):
    """Fused Dice + BCE on logits [B, C, H, W], target 0/1 [B, C, H, W]; C structures, each scored on its own."""

    headline: ClassVar[str] = "dice"

    def __init__(
        self,
        name: str,
        column: int,
        structures: Sequence[str],
        grouping: Grouping,
        loss: Mapping[str, Any],
        threshold: float | Sequence[float],
        empty: str,
        aggregate: Aggregate,
    ) -> None:
        super().__init__(name, column)
        thresholds = [threshold] * len(structures) if isinstance(threshold, (int, float)) else list(threshold)
        if len(thresholds) != len(structures) or not all(0 < value < 1 for value in thresholds):
            raise ValueError(
                f"task {name!r}: `threshold` must be one probability between 0 and 1, or one for each of the "
                f"{len(structures)} structures; got {threshold}."
            )
        check_scoring(name, empty, aggregate)
        weights(name, bce_weight=loss["bce_weight"], dice_weight=loss["dice_weight"])
        self.structures, self.grouping = distinct(name, structures), grouping
        self.threshold = torch.tensor(thresholds)[:, None, None]
        self.empty, self.aggregate = empty, aggregate
        self.output = Output("map", len(structures))
        self.criterion = losses.DiceBCELoss(empty=empty, **loss)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar; samples without masks take no part."""
        return self.criterion(output, batch.targets[self.name], mask=self.present(batch))

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, C, H, W] -> bool masks [B, C, H, W]; with a batch, at the thresholds of its samples' groups."""
        own = self.threshold.to(output.device)
        return output.float().sigmoid() > self.grouping.thresholds(batch, own, output.device)

    def metrics(self) -> Any:
        """`dice` and `jaccard` of the foreground, and `pixel_accuracy`, the share of pixels on the right side."""
        from ..metrics import segmentation_metrics, share_metrics

        collection = segmentation_metrics(
            len(self.structures), groups=len(self.grouping), empty=EMPTY[self.empty], aggregate=self.aggregate
        )
        collection.add_metrics(share_metrics("pixel_accuracy"))
        return collection

    def update(self, metrics: Any, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        rows = self.present(batch)
        if rows.any():
            group = self.grouping.of(batch)
            found, true = self.predict(output, batch)[rows], batch.targets[self.name][rows]
            for score in ("dice", "jaccard"):
                metrics[score].update(found, true, None if group is None else group[rows])
            metrics["pixel_accuracy"].update((found == true.bool()).double())

    def summary(self, metrics: Any) -> dict[str, Any]:
        """`dice`, `jaccard`, `pixel_accuracy`; with several structures or groups `per_class`, `per_group` too."""
        found = super().summary(metrics)
        for kind, names, values in (
            ("per_class", self.structures, lambda one: one.per_channel()),
            ("per_group", self.grouping.names, lambda one: one.per_group()),
        ):
            if len(names) > 1:
                found[kind] = {score: by_name(names, values(metrics[score])) for score in ("dice", "jaccard")}
        return found


@register_task("binary_segmentation")
class BinarySegmentation(_Sigmoid):
    """Foreground against background, per pixel: fused Dice + BCE on logits [B, 1, H, W], target 0/1 [B, 1, H, W].

    Args:
        bce_weight, dice_weight, batch, squared_pred, jaccard: see `ops.dice_bce_loss`.
        empty: what an empty prediction of an empty mask scores, in loss and metrics: "one", "zero", or "skip", which
            leaves out images with an empty mask.
        threshold: probability from which a pixel counts as foreground, in metrics and predictions.
        group_by: a label column of the data set, for example the organ or the class: metrics are told for each value.
        thresholds: of single groups, where they differ from `threshold`.
        aggregate: "image" is the mean of the images' scores, "batch" of the batches', their pixels taken together; a
            mapping for "dice" and "jaccard" by themselves.
    """

    target: Target = Target("mask")

    def __init__(
        self,
        name: str,
        column: int,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        bce_weight: float = 0.5,
        dice_weight: float = 0.5,
        batch: bool = False,
        squared_pred: bool = False,
        jaccard: bool = False,
        empty: str = "one",
        threshold: float = 0.5,
        group_by: str = "",
        thresholds: Mapping[str, float] | None = None,
        aggregate: Aggregate = "image",
    ):
        options = dict(bce_weight=bce_weight, dice_weight=dice_weight, batch=batch)  # noqa: C408
        options |= {"squared_pred": squared_pred, "jaccard": jaccard}
        grouping = Grouping(name, group_by, groups or {}, thresholds or {})
        super().__init__(name, column, (name,), grouping, options, threshold, empty, aggregate)


@register_task("multilabel_segmentation")
class MultiLabelSegmentation(_Sigmoid):
    """Several structures that may overlap: fused Dice + BCE on logits [B, C, H, W], target 0/1 [B, C, H, W].

    Args:
        structures: the C structures' names, in the order of the channels.
        threshold: one probability, or one for each structure.
        bce_weight, dice_weight, batch, squared_pred, jaccard, empty, group_by, thresholds, aggregate: as in
            `BinarySegmentation`.
    """

    def __init__(
        self,
        name: str,
        column: int,
        *,
        structures: Sequence[str],
        groups: Mapping[str, Sequence[str]] | None = None,
        bce_weight: float = 0.5,
        dice_weight: float = 0.5,
        batch: bool = False,
        squared_pred: bool = False,
        jaccard: bool = False,
        empty: str = "one",
        threshold: float | Sequence[float] = 0.5,
        group_by: str = "",
        thresholds: Mapping[str, float] | None = None,
        aggregate: Aggregate = "image",
    ):
        if not structures or isinstance(structures, str):
            raise ValueError(f"task {name!r}: `structures` must list at least one name; got {structures!r}.")
        options = dict(bce_weight=bce_weight, dice_weight=dice_weight, batch=batch)  # noqa: C408
        options |= {"squared_pred": squared_pred, "jaccard": jaccard}
        grouping = Grouping(name, group_by, groups or {}, thresholds or {})
        super().__init__(name, column, structures, grouping, options, threshold, empty, aggregate)
        self.target = Target("masks", size=len(structures))


@register_task("multiclass_segmentation")
class MultiClassSegmentation(BaseTask):
    """One class per pixel: fused Dice + cross-entropy on logits [B, C, H, W], target uint8 indices [B, 1, H, W].

    Args:
        structures: the C classes' names, index 0 (the background) first.
        ce_weight, dice_weight, label_smoothing, include_background, batch, squared_pred, jaccard: see
            `ops.dice_ce_loss`; the metrics count the background where the loss does.
        class_weights: one factor per class, or empty.
        ignore_index: pixels of this value take part in nothing.
        empty, group_by, aggregate: as in `BinarySegmentation`.
    """

    headline: ClassVar[str] = "dice"
    target: Target = Target("classes")

    def __init__(
        self,
        name: str,
        column: int,
        *,
        structures: Sequence[str],
        groups: Mapping[str, Sequence[str]] | None = None,
        ce_weight: float = 0.5,
        dice_weight: float = 0.5,
        label_smoothing: float = 0.0,
        include_background: bool = False,
        batch: bool = False,
        squared_pred: bool = False,
        jaccard: bool = False,
        class_weights: Sequence[float] = (),
        ignore_index: int = 255,
        empty: str = "one",
        group_by: str = "",
        aggregate: Aggregate = "image",
    ):
        super().__init__(name, column)
        if len(structures) < 2 or isinstance(structures, str):
            raise ValueError(
                f"task {name!r}: `structures` must list the background and at least one class; got {structures!r}."
            )
        if class_weights and len(class_weights) != len(structures):
            raise ValueError(
                f"task {name!r}: `class_weights` must have one value for each of the {len(structures)} classes; "
                f"got {len(class_weights)}."
            )
        check_scoring(name, empty, aggregate)
        weights(name, ce_weight=ce_weight, dice_weight=dice_weight, class_weights=class_weights)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task {name!r}: `label_smoothing` must be in [0, 1); got {label_smoothing}.")
        self.structures, self.first = distinct(name, structures), int(not include_background)
        self.grouping = Grouping(name, group_by, groups or {}, {})
        self.empty, self.aggregate, self.ignore_index = empty, aggregate, ignore_index
        self.output = Output("map", len(structures))
        self.criterion = losses.DiceCELoss(
            ce_weight=ce_weight,
            dice_weight=dice_weight,
            label_smoothing=label_smoothing,
            include_background=include_background,
            batch=batch,
            squared_pred=squared_pred,
            jaccard=jaccard,
            weight=torch.tensor(class_weights) if class_weights else None,
            ignore_index=ignore_index,
            empty=empty,
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar; samples without a map take no part."""
        self.criterion.to(output.device)  # its class weights; nothing once they are there
        return self.criterion(output, batch.targets[self.name], mask=self.present(batch))

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, C, H, W] -> uint8 class indices [B, 1, H, W]."""
        return output.argmax(1, keepdim=True).to(torch.uint8)

    def metrics(self) -> Any:
        """`dice` and `jaccard` over the counted classes, and `pixel_accuracy`."""
        from ..metrics import segmentation_metrics, share_metrics

        counted = len(self.structures) - self.first
        collection = segmentation_metrics(
            counted, groups=len(self.grouping), empty=EMPTY[self.empty], aggregate=self.aggregate
        )
        collection.add_metrics(share_metrics("pixel_accuracy"))
        return collection

    def update(self, metrics: Any, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`; ignored pixels are of no class, predicted or true."""
        rows = self.present(batch)
        if not rows.any():
            return
        found, true = (x[rows, 0].long() for x in (self.predict(output), batch.targets[self.name]))
        valid = true != self.ignore_index
        count = len(self.structures)
        maps = (F.one_hot(torch.where(valid, x, 0), count).movedim(-1, 1) * valid[:, None] for x in (found, true))
        predicted, expected = (x[:, self.first :] for x in maps)
        group = self.grouping.of(batch)
        for score in ("dice", "jaccard"):
            metrics[score].update(predicted, expected, None if group is None else group[rows])
        metrics["pixel_accuracy"].update((found == true)[valid].double())

    def summary(self, metrics: Any) -> dict[str, Any]:
        """Means, and `per_class` of each counted class; with several groups `per_group` too."""
        found, names = super().summary(metrics), self.structures[self.first :]
        found["per_class"] = {score: by_name(names, metrics[score].per_channel()) for score in ("dice", "jaccard")}
        if len(self.grouping) > 1:
            names = self.grouping.names
            found["per_group"] = {score: by_name(names, metrics[score].per_group()) for score in ("dice", "jaccard")}
        return found
