"""Tasks: what to predict, the loss that teaches it, the metrics that judge it. Recipes build them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .models import Output
from .names import check_options, nearest
from .protocols import Batch

TaskClass = TypeVar("TaskClass", bound=type)
_TASKS: dict[str, type] = {}


def register_task(kind: str) -> Callable[[TaskClass], TaskClass]:
    """Class decorator: makes a task available to recipes as `kind`."""

    def decorate(task: TaskClass) -> TaskClass:
        _TASKS[kind] = task
        return task

    return decorate


def list_tasks() -> list[str]:
    """The registered kinds, sorted."""
    return sorted(_TASKS)


def create_task(kind: str, name: str, column: int, *, class_names: Sequence[str] = (), **options: Any) -> Any:
    """Build a registered task.

    Args:
        kind: one of `list_tasks()`.
        name: the task's key in `Batch.targets` and in the model's outputs.
        column: its column in `Batch.present`.
        class_names: the data set's classes, for the kinds that predict them.
        options: the kind's own keyword arguments.

    Raises:
        ValueError: unknown kind or option; the message lists the nearest.
    """
    check_task(kind, name, options)
    return _TASKS[kind](name, column, class_names=class_names, **options)


def check_task(kind: str, name: str, options: Iterable[str]) -> None:
    """Raise ValueError, as `create_task` would, for an unknown kind or option."""
    if kind not in _TASKS:
        raise ValueError(f"task {name!r} has the unknown kind {kind!r}; {nearest(kind, list_tasks())}")
    check_options(_TASKS[kind], options, f"task {name!r} ({kind})", given=("name", "column", "class_names"))


@register_task("binary_segmentation")
class BinarySegmentation:
    """Foreground against background, per pixel: fused Dice + BCE on logits [B, 1, H, W], target 0/1 [B, 1, H, W].

    Args:
        bce_weight, dice_weight, batch, squared_pred, jaccard, empty: see `ops.dice_bce_loss`.
        threshold: probability from which a pixel counts as foreground, in metrics and predictions.
    """

    target: ClassVar[str] = "mask"
    headline: ClassVar[str] = "dice"

    def __init__(
        self,
        name: str,
        column: int,
        *,
        class_names: Sequence[str] = (),
        bce_weight: float = 0.5,
        dice_weight: float = 0.5,
        batch: bool = False,
        squared_pred: bool = False,
        jaccard: bool = False,
        empty: str = "one",
        threshold: float = 0.5,
    ):
        self.name, self.column, self.threshold = name, column, threshold
        self.output = Output("map", 1)
        self.criterion = losses.DiceBCELoss(
            bce_weight=bce_weight,
            dice_weight=dice_weight,
            batch=batch,
            squared_pred=squared_pred,
            jaccard=jaccard,
            empty=empty,
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar; samples without a mask take no part."""
        return self.criterion(output, batch.targets[self.name], mask=batch.present[:, self.column])

    def predict(self, output: Tensor) -> Tensor:
        """Logits [B, 1, H, W] -> bool mask [B, 1, H, W]."""
        return output.float().sigmoid() > self.threshold

    def metrics(self) -> Any:
        """`dice` and `jaccard`: means over images of the foreground's score."""
        from .metrics import segmentation_metrics

        return segmentation_metrics()

    def update(self, metrics: Any, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        labelled = batch.present[:, self.column]
        metrics.update(self.predict(output[labelled]), batch.targets[self.name][labelled])

    def summary(self, metrics: Any) -> dict[str, Any]:
        """`metrics` as plain numbers."""
        return {name: value.item() for name, value in metrics.compute().items()}


@register_task("classification")
class Classification:
    """One class per image: cross-entropy on logits [B, C], target int64 [B].

    Args:
        class_names: the C classes, in the order of their indices.
        label_smoothing: see `torch.nn.functional.cross_entropy`.
        class_weights: one factor per class, or empty.
    """

    target: ClassVar[str] = "label"
    headline: ClassVar[str] = "accuracy"

    def __init__(
        self,
        name: str,
        column: int,
        *,
        class_names: Sequence[str] = (),
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
    ):
        if len(class_names) < 2:
            raise ValueError(f"task {name!r} needs at least two classes; the data has {list(class_names)}.")
        if class_weights and len(class_weights) != len(class_names):
            raise ValueError(
                f"task {name!r}: `class_weights` must have one value for each of the {len(class_names)} classes "
                f"({', '.join(class_names)}); got {len(class_weights)}."
            )
        self.name, self.column, self.class_names = name, column, tuple(class_names)
        self.label_smoothing = label_smoothing
        self.class_weights = torch.tensor(class_weights) if class_weights else None
        self.output = Output("vector", len(class_names))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar mean over the labelled samples; 0, with a graph, when there are none."""
        present = batch.present[:, self.column]
        weight = self.class_weights
        if weight is not None:
            weight = self.class_weights = weight.to(output.device)
        # An unlabelled sample's target is ignored by value, so that no shape depends on the data.
        target = torch.where(present, batch.targets[self.name], -100)
        per_sample = F.cross_entropy(
            output.float(), target, weight=weight, label_smoothing=self.label_smoothing, reduction="none"
        )
        counted = present if weight is None else present * weight[target.clamp(min=0)]
        return per_sample.sum() / counted.sum().clamp(min=torch.finfo(torch.float32).tiny)

    def predict(self, output: Tensor) -> Tensor:
        """Logits [B, C] -> class index int64 [B]."""
        return output.argmax(1)

    def metrics(self) -> Any:
        """`accuracy`, and `per_class`: the accuracy within each true class."""
        from .metrics import classification_metrics

        return classification_metrics(len(self.class_names))

    def update(self, metrics: Any, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        labelled = batch.present[:, self.column]
        if labelled.any():
            metrics.update(output[labelled].float(), batch.targets[self.name][labelled])

    def summary(self, metrics: Any) -> dict[str, Any]:
        """`metrics` as plain numbers; classes by name, None for a class that no sample has."""
        values = metrics.compute()
        per_class = metrics["per_class"]
        with per_class.sync_context(should_unsync=True):  # `compute` has left it with this rank's counts alone
            seen = (per_class.tp + per_class.fn).tolist()
        named = zip(self.class_names, values["per_class"].tolist(), seen, strict=True)
        per_class = {name: value if count else None for name, value, count in named}
        return {"accuracy": values["accuracy"].item(), "per_class": per_class}
