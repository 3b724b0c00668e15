"""Whole-image labels: one class of several, or a finding that is present or absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .. import losses
from ..models import Output
from ..protocols import Batch, Target
from ..utils.json_toml import JsonObject
from .base import BaseTask, check_weights, class_weights_of, fraction, number, of
from .registry import register_task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@register_task("classification")
class Classification(BaseTask):
    """One class per image: cross-entropy on logits [B, C], target int64 [B].

    Args:
        class_names: the C classes, in the order of their indices.
        label_smoothing: see `torch.nn.functional.cross_entropy`.
        class_weights: one factor per class, or empty.
        logit_adjustment: t of the logit-adjusted loss of Menon et al. 2021: the loss is that of logits + t log(shares).
            With 1 the logits are those of classes that are equally frequent, which favours balanced accuracy; 0 keeps
            the training images' frequencies, which favours accuracy on images like them.
        decision_adjustment: t of the post-hoc adjustment there: classes are decided, and probabilities given, by
            logits - t log(shares). Beside or instead of `logit_adjustment`, whose effect wears off in a network that
            fits all of its training images.
        class_shares: one positive share per class among the training images; a recipe's run fills them in.
    """

    primary_metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[Mapping[str, bool]] = {"balanced_accuracy": True}
    target: Target = Target("label")

    def __init__(
        self,
        name: str,
        column: int,
        *,
        class_names: Sequence[str] = (),
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
        logit_adjustment: float = 0.0,
        decision_adjustment: float = 0.0,
        class_shares: Sequence[float] = (),
    ):
        super().__init__(name, column)
        if len(class_names) < 2:
            raise ValueError(
                f"task {name!r} needs at least two classes; its column has {list(class_names) or 'none'}. It learns "
                f"from the column that [tasks.{name}] names, or from label by default."
            )
        self.class_names = tuple(class_names)
        self.output = Output("vector", len(class_names))
        weight = class_weights_of(name, class_weights, class_names)
        smoothing = fraction(name, "label_smoothing", label_smoothing)
        self.criterion = losses.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
        check_weights(name, logit_adjustment=logit_adjustment, decision_adjustment=decision_adjustment)
        shares = class_weights_of(name, class_shares, class_names, what="class_shares")
        if shares is not None and not (shares > 0).all():
            raise ValueError(f"task {name!r}: `class_shares` must be above 0; got {list(class_shares)}.")
        self.logit_adjustment, self.decision_adjustment = logit_adjustment, decision_adjustment
        self.offsets = None if shares is None else logit_adjustment * (shares / shares.sum()).log()
        self.shifts = None if shares is None else decision_adjustment * (shares / shares.sum()).log()

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar mean over the labelled samples; 0, with a graph, when there are none."""
        self.criterion.to(output.device)  # moves the class weights; no effect once moved
        logits = output.float()
        if self.logit_adjustment:
            self.offsets = self._known(self.offsets, "logit_adjustment").to(output.device)
            logits = logits + self.offsets
        return self.criterion(logits, batch.targets[self.name], mask=self.has_label(batch))

    def decided(self, output: Tensor) -> Tensor:
        """The logits [B, C] by which classes are decided, float32."""
        if not self.decision_adjustment:
            return output.float()
        self.shifts = self._known(self.shifts, "decision_adjustment").to(output.device)
        return output.float() - self.shifts

    def _known(self, of_shares: Tensor | None, option: str) -> Tensor:
        if of_shares is None:
            raise ValueError(f"task {self.name!r}: `{option}` needs `class_shares`, one for each class.")
        return of_shares

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, C] -> class index int64 [B]."""
        return self.decided(output).argmax(1)

    def metrics(self) -> MetricCollection:
        """`accuracy`; for each class `per_class`, the accuracy within it, and `auroc`, one against the rest."""
        from .metrics import classification_metrics

        return classification_metrics(len(self.class_names))

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        rows = self.has_label(batch)
        if rows.any():
            metrics.update(self.decided(output[rows]).softmax(1), batch.targets[self.name][rows])

    def summary(self, metrics: MetricCollection) -> JsonObject:
        """`metrics` as plain numbers; classes by name, None for a class without samples. `balanced_accuracy` is the
        mean of `per_class` over the classes with samples, `auroc` over those with positive and negative ones."""
        seen = _seen(metrics["per_class"])
        shares = of(metrics["per_class"]).tolist()
        named = zip(self.class_names, shares, seen.tolist(), strict=True)
        per_class = {name: value if count else None for name, value, count in named}
        accuracy = number(of(metrics["accuracy"])) if seen.any() else None
        recalls = [value for value in per_class.values() if value is not None]
        balanced = sum(recalls) / len(recalls) if recalls else None
        areas = of(metrics["auroc"])
        known = (seen > 0) & (seen < seen.sum())
        auroc = number(areas[known].mean()) if known.any() else None
        return {"accuracy": accuracy, "balanced_accuracy": balanced, "auroc": auroc, "per_class": per_class}


@register_task("binary_classification")
class BinaryClassification(BaseTask):
    """A finding that is present or absent: binary cross-entropy on logits [B, 1], target int64 0 or 1 [B].

    Args:
        class_names: the two values' names, the finding second.
        pos_weight: factor of the positive samples' loss.
        threshold: probability from which the finding counts as present.
    """

    primary_metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[Mapping[str, bool]] = {"balanced_accuracy": True}
    target: Target = Target("label")

    def __init__(
        self,
        name: str,
        column: int,
        *,
        class_names: Sequence[str] = (),
        pos_weight: float = 1.0,
        threshold: float = 0.5,
    ):
        super().__init__(name, column)
        if len(class_names) != 2:
            raise ValueError(
                f"task {name!r} is binary and its column has {len(class_names)} classes: {list(class_names)}. "
                "kind = 'classification' takes any number."
            )
        if not 0 < threshold < 1:
            raise ValueError(f"task {name!r}: `threshold` must be between 0 and 1; got {threshold}.")
        check_weights(name, pos_weight=pos_weight)
        self.class_names, self.threshold = tuple(class_names), threshold
        self.output = Output("vector", 1)
        self.criterion = losses.BCEWithLogitsLoss(pos_weight=None if pos_weight == 1 else pos_weight)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar mean over the labelled samples; 0, with a graph, when there are none."""
        target = batch.targets[self.name].clamp(min=0)[:, None]  # -100 where unlabelled, which the mask leaves out
        return self.criterion(output.float(), target, mask=self.has_label(batch))

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """Logits [B, 1] -> int64 0 or 1 [B]."""
        return (output[:, 0].float().sigmoid() > self.threshold).long()

    def metrics(self) -> MetricCollection:
        """`accuracy`, `sensitivity`, `specificity` and `auroc`."""
        from .metrics import binary_metrics

        return binary_metrics(self.threshold)

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the batch's labelled samples to `metrics`."""
        rows = self.has_label(batch)
        if rows.any():
            metrics.update(output[rows, 0].float().sigmoid(), batch.targets[self.name][rows])

    def summary(self, metrics: MetricCollection) -> JsonObject:
        """`metrics` as plain numbers; None for undefined ones: without positive samples there is no sensitivity, and
        with one class only there is no ROC curve. `balanced_accuracy` is the mean of the recalls that are defined."""
        found, kinds = super().summary(metrics), _both_kinds(metrics["accuracy"])
        needs = {"accuracy": kinds.any(), "sensitivity": kinds[0], "specificity": kinds[1], "auroc": kinds.all()}
        found = {name: value if needs[name] else None for name, value in found.items()}
        recalls = [value for name in ("sensitivity", "specificity") if (value := found[name]) is not None]
        balanced = {"balanced_accuracy": sum(recalls) / len(recalls) if recalls else None}
        return {"accuracy": found.pop("accuracy")} | balanced | found


def _seen(metric: Any) -> Tensor:
    """Number of samples added for each class, over all ranks; a single total for a micro average."""
    with metric.sync_context(should_unsync=True):  # outside `compute` the states cover this rank only
        return metric.tp + metric.fn


def _both_kinds(metric: Any) -> Tensor:
    """bool [2]: whether any samples with and without the finding were added, over all ranks."""
    with metric.sync_context(should_unsync=True):
        return torch.stack([metric.tp + metric.fn, metric.tn + metric.fp]).reshape(2) > 0
