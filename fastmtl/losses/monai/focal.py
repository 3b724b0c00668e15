"""MONAI's focal loss, of a sigmoid or a softmax."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ...ops import focal_loss
from ...ops.core.checks import unit_or_nan
from .. import _plain
from .._overlap import class_numbers
from ._arguments import REDUCTIONS, Weights, check_index, has_negative, ignore_mask, one_of, with_channels


class _Factors(NamedTuple):
    alpha: float | None  # sigmoid: factor of the ones; 1 - alpha is that of the zeros
    ones: Tensor | None  # [C], sigmoid: factors of the ones; the zeros have 1
    channels: Tensor | None  # [C]


class FocalLoss(_Loss):
    """`monai.losses.FocalLoss`: -alpha (1 - p_t)^gamma log p_t of each element.

    `input`: logits [B, C, *spatial]; `target`: the same shape, or class numbers [B, 1, *spatial] with `to_onehot_y`.
    A number `alpha` is the factor of the ones and 1 - alpha that of the zeros (with `use_softmax` the background). With
    `ignore_index` the mean is over the valid pixels, not over their channels; "sum" adds each segment's mean.
    All as in MONAI.

    Fused: "mean" and "sum" over at least one spatial dim, for targets known to be hard (integers, bool, class numbers,
    and on the CPU floats that hold only 0 and 1); with `use_softmax` for class numbers including the background.
    Plain: `reduction="none"`, soft targets, a sequence as `alpha` with a sigmoid.

    >>> FocalLoss(to_onehot_y=True)(torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 8, 8)).item()
    0.1732867956161499
    """

    class_weight: Tensor | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: Weights = None,
        reduction: str = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=one_of("reduction", reduction, REDUCTIONS))
        self.include_background, self.to_onehot_y, self.use_softmax = include_background, to_onehot_y, use_softmax
        self.gamma, self.weight, self.ignore_index = gamma, weight, ignore_index
        number = float(alpha) if isinstance(alpha, int | float) else None
        self.alpha: float | Tensor | None = number if alpha is None or number is not None else torch.as_tensor(alpha)
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        self._negative = has_negative(self.class_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        index = with_channels("to_onehot_y", self.to_onehot_y, input)
        if index:
            check_index(target)
        first = int(with_channels("include_background=False", not self.include_background, input))
        mask = ignore_mask(target, self.ignore_index)
        expected = (input.shape[0], 1, *input.shape[2:]) if index else input.shape
        if target.shape != expected:
            raise ValueError(f"`target` must be {list(expected)} like `input`; got {list(target.shape)}.")
        factors = self._factors(input, input.shape[1] - first)
        reduction = one_of("reduction", self.reduction, REDUCTIONS)
        per_pixel = index and not first if self.use_softmax else factors.ones is None
        fused = reduction != "none" and per_pixel and input.dim() > 2 and not target.requires_grad
        if fused and (mask is None or mask.dtype == torch.bool) and (index or _plain.is_hard(target)):
            return self._fused(input, target, mask, factors, reduction, first, index)
        return self._by_element(input, target, mask, factors, reduction, first, index)

    def _factors(self, input: Tensor, classes: int) -> _Factors:
        number, per_class, weight, device = self.alpha, None, self.class_weight, input.device
        if isinstance(number, Tensor) and number.dim() > 0:
            number, per_class = None, number.to(device)
            if len(per_class) != classes:
                raise ValueError(f"`alpha` must have {classes} numbers, one for each class; got {len(per_class)}.")
        if self.use_softmax and not self.include_background and isinstance(number, float):
            warnings.warn("a number as `alpha` is ignored with a softmax without the background.", stacklevel=3)
            number = None
        if weight is not None:
            if weight.dim() > 0 and (classes == 1 or weight.numel() != classes):
                raise ValueError(
                    f"`weight` must be a number or one for each of several classes; got {weight.numel()} for {classes}."
                )
            if self._negative:
                raise ValueError(f"`weight` must be 0 or more; got {weight.tolist()}.")
            weight = weight.to(device).expand(classes)
        if not self.use_softmax:
            return _Factors(None if number is None else float(number), per_class, weight)
        if number is not None:
            per_class = torch.full((classes,), float(number), dtype=torch.float64, device=device)
            per_class[0] = 1 - float(number)
        if per_class is not None:
            weight = per_class if weight is None else per_class * weight
        return _Factors(None, None, weight)

    def _fused(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None,  # bool [B, 1, *spatial]
        factors: _Factors,
        reduction: str,
        first: int,
        index: bool,
    ) -> Tensor:
        classes = input.shape[1]
        settings: dict[str, Any] = {"gamma": self.gamma, "reduction": "none"}
        if self.use_softmax:
            pixels = None if mask is None else mask[:, 0]
            target = class_numbers(target[:, 0])
            means = focal_loss(
                input, target, activation="softmax", alpha=None, weight=factors.channels, mask=pixels, **settings
            )
        else:
            if index:
                target = _plain.one_hot(target, classes, mask)
            means = focal_loss(input, target, alpha=factors.alpha, mask=mask, **settings)
            means = means[:, first:]
            means = (means if factors.channels is None else means * factors.channels.to(means)).sum(1)
        if reduction == "sum":
            return means.sum()
        if mask is None:
            return means.mean() / (classes - first)
        counts = mask.flatten(1).sum(1).to(means)
        return (means * counts).sum() / counts.sum().clamp(min=1)

    def _by_element(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None,  # [B, 1, *spatial], bool or 0 to 1
        factors: _Factors,
        reduction: str,
        first: int,
        index: bool,
    ) -> Tensor:
        x = input[:, first:].to(torch.promote_types(input.dtype, torch.float32))
        if index:
            target = _plain.one_hot(target, input.shape[1], mask)
        shown = None if mask is None else mask.expand(target.shape)[:, first:]
        t = unit_or_nan(target[:, first:], shown).to(x.dtype)
        if mask is not None:
            mask = mask.to(x.dtype)
            x, t = x * mask, t * mask
        loss = (_plain.softmax_focal if self.use_softmax else _plain.sigmoid_focal)(x, t, self.gamma)
        column = (-1, *(1,) * (x.dim() - 2))
        if factors.alpha is not None:
            loss = loss * (factors.alpha * t + (1 - factors.alpha) * (1 - t))
        if factors.ones is not None:
            loss = loss * torch.where(t == 1, factors.ones.to(x.dtype).view(column), 1.0)
        if factors.channels is not None:
            loss = loss * factors.channels.to(x.dtype).view(column)
        spatial = list(range(2, x.dim()))  # empty means all dims in torch, and so in MONAI
        loss = loss if mask is None else loss * mask
        if reduction == "none":
            return loss
        if mask is None:
            return loss.mean() if reduction == "mean" else loss.mean(spatial).sum()
        if reduction == "mean":
            return loss.sum() / _countable(mask.sum())
        return (loss.sum(spatial, keepdim=True) / _countable(mask.sum(spatial, keepdim=True))).sum()


def _countable(count: Tensor) -> Tensor:
    return count.clamp(min=torch.finfo(count.dtype).eps)
