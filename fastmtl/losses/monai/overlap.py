"""Dice, generalized Dice and Tversky losses: three formulas on the same sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from .. import _plain
from .._overlap import Overlap, fused_sums
from ._arguments import REDUCTIONS, Weights, check_index, has_negative, ignore_mask, one_of, stripped, with_channels


class _OverlapLoss(_Loss):
    """The common arguments of Dice, generalized Dice and Tversky, and the sums over input and target."""

    squared_pred = False
    ignore_index: int | None = None

    def __init__(
        self,
        include_background: bool,
        to_onehot_y: bool,
        sigmoid: bool,
        softmax: bool,
        other_act: Callable[..., Tensor] | None,
        reduction: str,
        smooth_nr: float,
        smooth_dr: float,
        batch: bool,
        soft_label: bool,
    ) -> None:
        super().__init__(reduction=one_of("reduction", reduction, REDUCTIONS))
        if other_act is not None and not callable(other_act):
            raise TypeError(f"`other_act` must be None or callable; got {type(other_act).__name__}.")
        if int(sigmoid) + int(softmax) + int(other_act is not None) > 1:
            raise ValueError("at most one of `sigmoid`, `softmax` and `other_act` may be given.")
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.sigmoid, self.softmax, self.other_act = sigmoid, softmax, other_act
        self.smooth_nr, self.smooth_dr = float(smooth_nr), float(smooth_dr)
        self.batch, self.soft_label = batch, soft_label

    def _sums(self, input: Tensor, target: Tensor, pos_weight: Tensor | None = None) -> Overlap:
        """The sums of all channels [B, C]; with entropy and elements if they are fused."""
        activation = "sigmoid" if self.sigmoid else None
        if with_channels("softmax", self.softmax, input):
            activation = "softmax"
        classes = input.shape[1]
        if activation is None and self.other_act is not None:
            input = self.other_act(input)
        index = with_channels("to_onehot_y", self.to_onehot_y, input)
        if index:
            check_index(target)
        expected = (input.shape[0], 1, *input.shape[2:]) if index else input.shape
        if target.shape != expected:
            raise AssertionError(f"`target` must be {list(expected)} like `input`; got {list(target.shape)}.")
        mask = None if index else ignore_mask(target, self.ignore_index)
        binary_mask = mask is None or mask.dtype == torch.bool
        # min(p, t) equals p * t for a probability and a 0 or 1, but not for other numbers.
        soft = self.soft_label and not (activation and (index or _plain.is_hard(target)))
        if activation is not None and (self.squared_pred or not soft) and binary_mask and not target.requires_grad:
            ignored = self.ignore_index if index else None
            return fused_sums(input, target, activation, index=index, mask=mask, ignore_index=ignored,
                              pos_weight=pos_weight, squared_pred=self.squared_pred)  # fmt: skip
        if activation is not None:
            input = input.sigmoid() if activation == "sigmoid" else input.softmax(1)
        if index:
            mask = ignore_mask(target, self.ignore_index)
            target = _plain.one_hot(target, classes, mask)
        return Overlap(*_plain.overlap(input, target, mask, squared=self.squared_pred, soft=soft, absolute=True))

    def _pooled(self, sums: Overlap, input: Tensor) -> Overlap:
        """Drop the background if it is excluded, and sum over the batch if `batch` is set."""
        if with_channels("include_background=False", not self.include_background, input):
            sums = sums.each(lambda sum: sum[:, 1:])
        if self.batch:
            return sums.each(lambda sum: sum.sum(0))
        # Logits [B, C] have no dims to sum over; torch, and so MONAI, then sums over all dims.
        return sums.each(lambda sum: sum.sum()) if input.dim() == 2 else sums

    def _reduced(self, loss: Tensor, dims: int, *, spatial: bool = True) -> Tensor:
        reduction = one_of("reduction", self.reduction, REDUCTIONS)
        if reduction == "none":
            return loss.view(*loss.shape[:2], *(1,) * (dims - 2)) if spatial else loss
        return loss.mean() if reduction == "mean" else loss.sum()


class DiceLoss(_OverlapLoss):
    """`monai.losses.DiceLoss`: 1 - (2 I + nr) / (P + T + dr) per channel, or 1 minus the Jaccard index.

    `input`: logits [B, C, *spatial]; `target`: the same shape, or class numbers [B, 1, *spatial] with `to_onehot_y`.
    `reduction="none"` returns [B, C, 1, ...], with `batch=True` [C, 1, ...].
    Fused and plain arguments: see the module. `soft_label` is fused for targets known to be hard: integers, bool,
    class numbers, and on the CPU floats that hold only 0 and 1.

    >>> loss = DiceLoss(to_onehot_y=True, softmax=True, include_background=False, reduction="none")
    >>> loss(torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 2, 1, 1])
    """

    class_weight: Tensor | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[..., Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Weights = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr,
                         batch, soft_label)  # fmt: skip
        self.squared_pred, self.jaccard, self.ignore_index = bool(squared_pred), jaccard, ignore_index
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        self._negative = has_negative(self.class_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self._loss(self._sums(input, target), input)

    def _loss(self, sums: Overlap, input: Tensor) -> Tensor:
        error = 1.0 if self.jaccard else 0.5
        pooled = self._pooled(sums, input)
        score = pooled.score(fp=error, fn=error, smooth_nr=self.smooth_nr, smooth_dr=self.smooth_dr, scale=2.0)
        loss = 1.0 - score
        classes = input.shape[1] - int(not self.include_background and input.shape[1] > 1)
        if self.class_weight is not None and classes != 1:
            if self.class_weight.dim() > 0 and len(self.class_weight) != classes:
                raise ValueError(f"`weight` must have {classes} numbers, one for each channel that counts; "
                                 f"got {len(self.class_weight)}.")  # fmt: skip
            if self._negative:
                raise ValueError(f"`weight` must be 0 or more; got {self.class_weight.tolist()}.")
            loss = loss * self.class_weight.to(loss).expand(classes)
        return self._reduced(loss, input.dim())


class GeneralizedDiceLoss(_OverlapLoss):
    """`monai.losses.GeneralizedDiceLoss`: 1 - (2 sum w I + nr) / (sum w (P + T) + dr) over the channels.

    w is 1 / T^2 ("square"), 1 / T ("simple") or 1 ("uniform"); an empty channel gets the largest w of the others.
    `reduction="none"` returns [B, 1, 1, ...], with `batch=True` [1, 1, ...]. Fused and plain arguments: see `DiceLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[..., Tensor] | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr,
                         batch, soft_label)  # fmt: skip
        self.w_type = one_of("w_type", stripped(w_type), ("square", "simple", "uniform"))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        i, p, t = self._pooled(self._sums(input, target), input)[:3]
        channels = 0 if self.batch else 1
        size = t.float()  # float32 for any dtype of logits, as in MONAI
        w = {"square": 1 / (size * size), "simple": 1 / size}.get(self.w_type, torch.ones_like(size))
        empty = w.isinf()
        w = torch.where(empty, 0.0, w)
        w = torch.where(empty, w.amax(channels, keepdim=True), w)
        numerator = 2 * (i * w).sum(channels, keepdim=True) + self.smooth_nr
        return self._reduced(1 - numerator / (((p + t) * w).sum(channels, keepdim=True) + self.smooth_dr), input.dim())


class TverskyLoss(_OverlapLoss):
    """`monai.losses.TverskyLoss`: 1 - (I + nr) / (I + alpha (P - I) + beta (T - I) + dr).

    `reduction="none"` returns [B, C], with `batch=True` [C]. Fused and plain arguments as in `DiceLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[..., Tensor] | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr,
                         batch, soft_label)  # fmt: skip
        self.alpha, self.beta, self.ignore_index = alpha, beta, ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        pooled = self._pooled(self._sums(input, target), input)
        score = pooled.score(fp=self.alpha, fn=self.beta, smooth_nr=self.smooth_nr, smooth_dr=self.smooth_dr)
        return self._reduced(1.0 - score, input.dim(), spatial=False)
