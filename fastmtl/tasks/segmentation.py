"""Segmentation from per-pixel logits: one structure, several that may overlap, or mutually exclusive classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses
from ..models import Output
from ..protocols import Batch, Target
from ..utils.json_toml import JsonObject
from .base import BaseTask, by_name, check_weights, class_weights_of, distinct, exclusive, fraction
from .grouping import Grouping
from .registry import register_task
from .scoring import Aggregate, Scoring

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from .metrics import FalsePixels


class _Segmentation(BaseTask):
    """The scores of maps, common to all tasks here."""

    primary_metric: ClassVar[str] = "dice"
    criterion: nn.Module
    scoring: Scoring

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar, over the samples with a map."""
        self.criterion.to(output.device)  # moves class weights; no effect once moved
        return self.criterion(output, batch.targets[self.name], mask=self.has_label(batch))

    def metrics(self) -> MetricCollection:
        """`dice` and `jaccard` of the foreground, and `pixel_accuracy`, the fraction of correctly classified pixels."""
        from .metrics import share_metrics

        collection = self.scoring.metrics()
        collection.add_metrics(share_metrics("pixel_accuracy"))
        return collection

    def summary(self, metrics: MetricCollection) -> JsonObject:
        """`dice`, `jaccard`, `pixel_accuracy`; with several structures or groups also `per_class` and `per_group`."""
        return super().summary(metrics) | self.scoring.apart(metrics)


class _Sigmoid(_Segmentation):
    """Fused Dice + BCE on logits [B, C, H, W], target 0/1 [B, C, H, W]; C structures, each scored separately."""

    def __init__(
        self,
        name: str,
        column: int,
        structures: Sequence[str],
        /,
        *,
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
        threshold_by: Sequence[str] = (),
        aggregate: Aggregate = "image",
    ) -> None:
        super().__init__(name, column)
        own = [threshold] * len(structures) if isinstance(threshold, (int, float)) else list(threshold)
        if len(own) != len(structures) or not all(0 < value < 1 for value in own):
            raise ValueError(
                f"task {name!r}: `threshold` must be one probability between 0 and 1, or one for each of the "
                f"{len(structures)} structures; got {threshold}."
            )
        check_weights(name, bce_weight=bce_weight, dice_weight=dice_weight)
        self.structures, self.threshold = distinct(name, structures), torch.tensor(own)[:, None, None]
        self.grouping = Grouping(name, group_by, groups or {}, thresholds or {}, threshold_by)
        self.empty, self.scoring = empty, Scoring(name, structures, self.grouping, empty, aggregate)
        self.output = Output("map", len(structures))
        self.criterion = losses.DiceBCELoss(
            bce_weight=bce_weight,
            dice_weight=dice_weight,
            batch=batch,
            squared_pred=squared_pred,
            jaccard=jaccard,
            empty=empty,
        )

    def metrics(self) -> MetricCollection:
        """`dice`, `jaccard`, `pixel_accuracy`; with several structures also `fp_to_fn`, false positive pixels divided
        by false negative ones."""
        collection = super().metrics()
        if len(self.structures) > 1:
            from .metrics import FalsePixels

            collection.add_metrics({"fp_to_fn": FalsePixels(len(self.structures))})
        return collection

    def summary(self, metrics: MetricCollection) -> JsonObject:
        """See `metrics`; `per_class` has `fp_to_fn`, `false_positives` and `false_negatives`, in pixels per image."""
        found = super().summary(metrics)
        if len(self.structures) > 1:
            counted = cast("FalsePixels", metrics["fp_to_fn"]).per_channel()
            names = ("false_positives", "false_negatives", "fp_to_fn")
            found["per_class"] |= {
                name: by_name(self.structures, each) for name, each in zip(names, counted, strict=True)
            }
        return found

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, C, H, W] -> bool masks [B, C, H, W]; with a batch, at the thresholds of its samples' groups."""
        own = self.threshold.to(output.device)
        return output.float().sigmoid() > self.grouping.thresholds(batch, own, output.device)

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        rows = self.has_label(batch)
        if rows.any():
            found, true = self.predict(output, batch)[rows], batch.targets[self.name][rows]
            self.scoring.update(metrics, found, true, batch, rows)
            metrics["pixel_accuracy"].update((found == true.bool()).double())
            if len(self.structures) > 1:
                metrics["fp_to_fn"].update(found, true)


@register_task("binary_segmentation")
class BinarySegmentation(_Sigmoid):
    """Foreground against background, per pixel: fused Dice + BCE on logits [B, 1, H, W], target 0/1 [B, 1, H, W].

    Args:
        bce_weight, dice_weight, batch, squared_pred, jaccard: see `ops.dice_bce_loss`.
        empty: score of an empty prediction of an empty mask, in loss and metrics: "one", "zero", or "skip", which
            excludes images with an empty mask.
        threshold: probability from which a pixel counts as foreground, in metrics and predictions.
        group_by: a label column of the data set, for example the organ or class: metrics are reported for each value.
        thresholds: group name -> threshold, for groups whose threshold differs from `threshold`; see `Grouping`.
        threshold_by: the label columns of the names in `thresholds`, if they are not of `group_by` alone; then
            "lung, HPA" is the threshold of samples that are in both classes.
        aggregate: "image" averages over images; "batch" pools the pixels of a batch and averages over batches; or a
            mapping from "dice" and "jaccard" to one of these.
    """

    target: Target = Target("mask")

    def __init__(self, name: str, column: int, **options: Any) -> None:
        super().__init__(name, column, (name,), **options)


@register_task("multilabel_segmentation")
class MultiLabelSegmentation(_Sigmoid):
    """Several structures that may overlap: fused Dice + BCE on logits [B, C, H, W], target 0/1 [B, C, H, W].

    Args:
        structures: the C structures' names, in the order of the channels.
        threshold: one probability, or one for each structure.
        bce_weight, dice_weight, batch, squared_pred, jaccard, empty, group_by, thresholds, threshold_by,
            aggregate: as in `BinarySegmentation`.
    """

    def __init__(self, name: str, column: int, *, structures: Sequence[str], **options: Any) -> None:
        if not structures or isinstance(structures, str):
            raise ValueError(f"task {name!r}: `structures` must list at least one name; got {structures!r}.")
        super().__init__(name, column, structures, **options)
        self.target = Target("masks", size=len(structures))


@register_task("multiclass_segmentation")
class MultiClassSegmentation(_Segmentation):
    """One class per pixel: fused Dice + cross-entropy on logits [B, C, H, W], target uint8 indices [B, 1, H, W].

    Args:
        structures: the C classes' names, index 0 (the background) first.
        ce_weight, dice_weight, label_smoothing, include_background, batch, squared_pred, jaccard: see
            `ops.dice_ce_loss`; the metrics include the background if the loss does.
        class_weights: one factor per class, or empty.
        ignore_index: pixels of this value are excluded from loss and metrics, and samples of only such pixels from
            the metrics.
        empty, group_by, aggregate: as in `BinarySegmentation`.
    """

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
        if len(structures) == 256 and ignore_index == 255:
            raise ValueError(
                f"task {name!r}: of 256 `structures` the last one has the value 255, and pixels of 255 are ignored; "
                "pass another `ignore_index`, such as -100."
            )
        check_weights(name, ce_weight=ce_weight, dice_weight=dice_weight)
        self.structures, self.first = exclusive(name, structures), int(not include_background)
        self.ignore_index = ignore_index
        grouping = Grouping(name, group_by, groups or {}, {})
        self.empty, self.scoring = empty, Scoring(name, structures[self.first :], grouping, empty, aggregate)
        self.output = Output("map", len(structures))
        self.criterion = losses.DiceCELoss(
            ce_weight=ce_weight,
            dice_weight=dice_weight,
            label_smoothing=fraction(name, "label_smoothing", label_smoothing),
            include_background=include_background,
            batch=batch,
            squared_pred=squared_pred,
            jaccard=jaccard,
            weight=class_weights_of(name, class_weights, structures),
            ignore_index=ignore_index,
            empty=empty,
        )

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, C, H, W] -> uint8 class indices [B, 1, H, W]."""
        return output.argmax(1, keepdim=True).to(torch.uint8)

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`; ignored pixels belong to no class, predicted or true. A sample
        without other pixels is left out: as an empty mask it would score 1."""
        rows = self.has_label(batch) & (batch.targets[self.name] != self.ignore_index).flatten(1).any(1)
        if not rows.any():
            return
        found, true = (x[rows, 0].long() for x in (self.predict(output), batch.targets[self.name]))
        valid = true != self.ignore_index
        count = len(self.structures)
        maps = (F.one_hot(torch.where(valid, x, 0), count).movedim(-1, 1) * valid[:, None] for x in (found, true))
        predicted, expected = (x[:, self.first :] for x in maps)
        self.scoring.update(metrics, predicted, expected, batch, rows)
        metrics["pixel_accuracy"].update((found == true)[valid].double())
