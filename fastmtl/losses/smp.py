"""segmentation-models-pytorch's losses under the same names: the same arguments, defaults, results and exceptions.

    -from segmentation_models_pytorch.losses import DiceLoss
    +from fastmtl.losses.smp import DiceLoss

     loss_function = DiceLoss("multiclass", ignore_index=255)
     loss = loss_function(model(images), masks)

Fused, with one read of logits and target in the forward pass and one in the backward pass: logits with hard targets
(class numbers, integers, bool, and on the CPU floats that hold only 0 and 1). Plain torch, slower with the same
results: `from_logits=False` and "multiclass" of one class (Dice, Jaccard), soft targets, a target that requires a
gradient, and the cases listed in each class. On a GPU pass masks as uint8 or bool: checking floats would block.

Tested against smp 0.6.0. Intended differences: class numbers and masks may have any integer or floating dtype (smp:
int64 or floats); a class number without a channel raises ValueError on a CPU (smp: torch's error) and gives NaN on a
GPU (Dice, Jaccard); a focal batch without valid pixels returns 0, not NaN; `classes` that is not a list, array or
tensor raises TypeError (smp ignores it silently).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.nn.modules.loss import _Loss

from ..ops import focal_loss
from ..ops.core.checks import may_look, unit_or_nan
from ..ops.core.class_checks import check_numbers
from . import _plain
from ._overlap import Overlap, all_per_channel, binary_entropy, fused_sums

BINARY_MODE, MULTICLASS_MODE, MULTILABEL_MODE = MODES = ("binary", "multiclass", "multilabel")


def _check_mode(mode: str, class_weights: object) -> None:
    if mode not in MODES:
        raise AssertionError(f"`mode` must be one of {', '.join(map(repr, MODES))}; got {mode!r}.")
    if class_weights is not None and mode == BINARY_MODE:
        raise ValueError("`class_weights` must be None in binary mode: it has one class.")


def _misfit(y_pred: Tensor, found: list[int], index: bool) -> str:
    """The error message for a target with the wrong number of pixels."""
    shape = list(y_pred.shape)
    wanted, what = ([shape[0], *shape[2:]], " of class numbers") if index else (shape, "")
    return f"`y_true` must be {wanted}{what} for `y_pred` {shape}; got {found}."


def _keep(loss: nn.Module, name: str, value: Any, dtype: torch.dtype) -> None:
    """A buffer, so that it moves with the loss; not in the state dict, which is empty in smp."""
    if isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a list, an array or a tensor; got {value!r}.")
    loss.register_buffer(name, value if value is None else torch.as_tensor(value, dtype=dtype), persistent=False)


def _class_mean(loss: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return loss.mean()
    weights = weights.to(loss.device)
    return (loss * weights).sum() / weights.sum()


def _can_hold(target: Tensor, value: int | None) -> bool:
    """Whether the target's dtype can hold the value: bytes are never -100 and need no mask."""
    if value is None or target.is_floating_point():
        return value is not None
    low, high = (0, 1) if target.dtype == torch.bool else (torch.iinfo(target.dtype).min, torch.iinfo(target.dtype).max)
    return low <= value <= high


class _OverlapLoss(_Loss):
    error: float  # what a false pixel costs in the denominator
    classes: Tensor | None
    class_weights: Tensor | None

    def __init__(
        self,
        mode: str,
        classes: Sequence[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check_mode(mode, class_weights)
        if classes is not None and mode == BINARY_MODE:
            raise AssertionError("`classes` must be None in binary mode: it has one class.")
        self.mode, self.log_loss, self.from_logits = mode, log_loss, from_logits
        self.smooth, self.eps, self.ignore_index = smooth, eps, ignore_index
        _keep(self, "classes", classes, torch.long)
        _keep(self, "class_weights", class_weights, torch.float)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        sums = self._sums(y_pred, y_true).each(lambda sum: sum.sum(0))
        score = sums.score(fp=self.error, fn=self.error, smooth_nr=self.smooth, smooth_dr=self.smooth, floor=self.eps)
        loss = -torch.log(score.clamp_min(self.eps)) if self.log_loss else 1.0 - score
        loss = loss * (sums.target > 0)
        return self.aggregate_loss(loss if self.classes is None else loss[self.classes])

    def aggregate_loss(self, loss: Tensor) -> Tensor:
        """Reduce the losses [C] to a scalar over the selected classes."""
        weights = self.class_weights
        return _class_mean(loss, weights if weights is None or self.classes is None else weights[self.classes])

    def _sums(self, y_pred: Tensor, y_true: Tensor) -> Overlap:
        (samples, classes), found = y_pred.shape[:2], list(y_true.shape)
        if y_true.shape[0] != samples:
            raise AssertionError(f"`y_true` must have {samples} samples like `y_pred`; got {y_true.shape[0]}.")
        index = self.mode == MULTICLASS_MODE
        if self.mode == BINARY_MODE and classes != 1:
            y_pred = y_pred.reshape(samples, 1, -1)
        if self.mode == MULTILABEL_MODE:
            y_true = y_true.reshape(samples, classes, -1)
        expected = (samples, 1, *y_pred.shape[2:]) if index else y_pred.shape
        if y_true.numel() != torch.Size(expected).numel():
            # smp fails at the product with the mask if there is a mask, otherwise at an assertion.
            raise (AssertionError if self.ignore_index is None else RuntimeError)(_misfit(y_pred, found, index))
        y_true = y_true.reshape(expected)
        ignored = self.ignore_index if _can_hold(y_true, self.ignore_index) else None
        mask = None if ignored is None or index else y_true != ignored
        hard = index or self._is_hard(y_true, mask)
        one_class = index and classes == 1  # a softmax of 1 everywhere
        if self.from_logits and hard and not one_class and not y_true.requires_grad:
            activation = "softmax" if index else "sigmoid"
            return fused_sums(
                y_pred, y_true, activation, index=index, mask=mask, ignore_index=ignored if index else None
            )
        if self.from_logits:
            y_pred = y_pred.softmax(1) if index else logsigmoid(y_pred).exp()
        if index:
            mask = None if ignored is None else y_true != ignored
            y_true = _plain.one_hot(y_true, classes, mask)
        return Overlap(*_plain.overlap(y_pred, y_true, mask, soft=True))

    @staticmethod
    def _is_hard(y_true: Tensor, mask: Tensor | None) -> bool:
        """Ignored pixels may hold any number: for floats they are set to 0 first."""
        return _plain.is_hard(y_true if mask is None or not y_true.is_floating_point() else y_true * mask)


class DiceLoss(_OverlapLoss):
    """`segmentation_models_pytorch.losses.DiceLoss`: 1 - Dice (or -log Dice) per class over the batch.

    `y_pred`: logits [B, C, *spatial]; `y_true`: [B, *spatial] or [B, 1, *spatial] ("binary", "multiclass"),
    [B, C, *spatial] ("multilabel"). A class without pixels has loss 0 and counts in the mean, as in smp.
    Fused and plain arguments: see the module.

    >>> DiceLoss("multiclass")(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.uint8)).item()
    0.1666666567325592
    """

    error = 0.5


class JaccardLoss(_OverlapLoss):
    """`segmentation_models_pytorch.losses.JaccardLoss`: `DiceLoss` with the Jaccard index instead of Dice."""

    error = 1.0


class FocalLoss(_Loss):
    """`segmentation_models_pytorch.losses.FocalLoss`: the focal loss with a sigmoid, one against the rest per class.

    Fused: `reduction` "mean" or "sum" of hard targets, also with `from_logits=False`. Plain: any other `reduction`
    ("batchwise_mean"; unknown names mean none, as in smp), `normalized`, `reduced_threshold`, soft targets.
    `ignore_index` in multilabel mode raises an IndexError, as it does in smp.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        mode: str,
        alpha: float | None = None,
        gamma: float | None = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        eps: float = 1e-7,
        reduction: str | None = "mean",
        normalized: bool = False,
        reduced_threshold: float | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check_mode(mode, class_weights)
        self.mode, self.alpha, self.ignore_index = mode, alpha, ignore_index
        self.gamma: Any = gamma  # None fails in the formula, as in smp
        self.from_logits, self.eps, self.reduction = from_logits, eps, reduction  # pyright: ignore
        self.normalized, self.reduced_threshold = normalized, reduced_threshold
        _keep(self, "class_weights", class_weights, torch.float)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if not self.from_logits:
            p = y_pred.clamp(self.eps, 1 - self.eps)
            y_pred = p.log() if self.mode == MULTICLASS_MODE else torch.log(p / (1 - p))
        binary, ignoring = self.mode == BINARY_MODE, self.ignore_index is not None
        if self.mode == MULTILABEL_MODE and ignoring:
            raise IndexError("`ignore_index` must be None in multilabel mode: it would mark classes, not pixels.")
        expected, found = y_pred.shape, list(y_true.shape)
        if binary:
            y_pred = y_pred.reshape(1, 1, -1) if y_pred.dim() < 3 or y_pred.shape[1] != 1 else y_pred
            if y_true.numel() == y_pred.numel():
                expected, y_true = y_pred.shape, y_true.reshape(y_pred.shape)
        elif self.mode == MULTICLASS_MODE:
            expected, y_true = (y_pred.shape[0], 1, *y_pred.shape[2:]), y_true.unsqueeze(1)
        if y_true.shape != expected:
            few = self.mode == MULTILABEL_MODE and y_true.shape[1:2] < y_pred.shape[1:2]
            raise (IndexError if ignoring or few else ValueError)(_misfit(y_pred, found, self.mode == MULTICLASS_MODE))
        mask = y_true != self.ignore_index if _can_hold(y_true, self.ignore_index) else None
        if self.mode == MULTICLASS_MODE:
            if may_look(y_true):
                check_numbers(y_true, y_pred.shape[1], mask)
            y_true = y_true == torch.arange(y_pred.shape[1], device=y_true.device).view(-1, *(1,) * (y_pred.dim() - 2))
        elif mask is not None and y_true.is_floating_point():
            y_true = y_true * mask
        standard = self.reduction in ("mean", "sum") and not self.normalized and self.reduced_threshold is None
        if standard and y_pred.dim() > 2 and not y_true.requires_grad and _plain.is_hard(y_true):
            return _class_mean(self._fused(y_pred, y_true, mask), self.class_weights)
        classes = [self._by_element(y_pred[:, c], y_true[:, c], mask) for c in range(y_pred.shape[1])]
        return classes[0] if binary else _class_mean(torch.stack(classes), self.class_weights)

    def _fused(self, y_pred: Tensor, y_true: Tensor, mask: Tensor | None) -> Tensor:
        """Losses [C], over the valid pixels of the batch."""
        means = focal_loss(y_pred, y_true, gamma=self.gamma, alpha=self.alpha, mask=mask, reduction="none")
        if mask is None:
            return means.mean(0) if self.reduction == "mean" else means.sum(0) * y_pred[0, 0].numel()
        counts = mask.flatten(1).sum(1, keepdim=True).to(means)  # [B, 1]
        total = (means * counts).sum(0)
        return total / counts.sum().clamp(min=1) if self.reduction == "mean" else total

    def _by_element(self, x: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
        if self.mode == BINARY_MODE:
            x, t = x.reshape(-1), t.reshape(-1)
        if mask is not None:
            valid = mask.reshape(x.shape)
            x, t = x[valid], t[valid]
        t = unit_or_nan(t, None).to(x.dtype)
        cost = binary_cross_entropy_with_logits(x, t, reduction="none")
        term = _plain.focal_term(cost, self.gamma, self.reduced_threshold)
        loss = term * cost
        if self.alpha is not None:
            loss = loss * (self.alpha * t + (1 - self.alpha) * (1 - t))
        if self.normalized:
            loss = loss / term.sum().clamp_min(1e-6)
        if self.reduction == "mean":
            return loss.sum() / max(loss.numel(), 1)
        return loss.sum() if self.reduction == "sum" else loss.sum(0) if self.reduction == "batchwise_mean" else loss


class SoftBCEWithLogitsLoss(nn.Module):
    """`segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss`: BCE with label smoothing and an ignored value.

    `y_pred` and `y_true` have the same shape. The mean is over all elements, including ignored ones, as in smp.

    Fused: "mean" and "sum", soft targets too, `weight` and `pos_weight` of one number or one per channel ([C, 1, 1]);
    `smooth_factor` makes a float copy of the target first. Plain: another `reduction`, other shapes of the weights.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index, self.reduction, self.smooth_factor = ignore_index, reduction, smooth_factor
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if y_true.shape != y_pred.shape:
            raise ValueError(f"`y_true` must be {list(y_pred.shape)} like `y_pred`; got {list(y_true.shape)}.")
        mask = y_true != self.ignore_index if _can_hold(y_true, self.ignore_index) else None
        if self.smooth_factor is not None:
            y_true = y_true.to(torch.promote_types(y_pred.dtype, torch.float32))
            y_true = (1 - y_true) * self.smooth_factor + y_true * (1 - self.smooth_factor)
        fused = self.reduction in ("mean", "sum") and y_pred.dim() >= 2 and not y_true.requires_grad
        weights = all_per_channel((self.weight, self.pos_weight), y_pred) if fused else None
        if weights is not None:
            sums = fused_sums(y_pred, y_true, "sigmoid", mask=mask, pos_weight=weights[1])
            total = binary_entropy(sums, weights[0], "sum")
            return total / y_pred.numel() if self.reduction == "mean" else total
        y_true = unit_or_nan(y_true, mask)
        loss = binary_cross_entropy_with_logits(
            y_pred, y_true.to(y_pred.dtype), self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        loss = loss if mask is None else loss * mask
        return loss.mean() if self.reduction == "mean" else loss.sum() if self.reduction == "sum" else loss
