"""Overlap losses of all three libraries: sums [B, C] over the pixels, then a short formula.

`fastmtl.ops.overlap_sums` makes the sums in one pass over logits and target. For arguments that it does not support,
`_plain.overlap` makes the same sums from probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from . import _plain


class Overlap(NamedTuple):
    """Sums per sample and channel [B, C], or pooled; `entropy` and `elements` exist for fused sums only."""

    intersection: Tensor
    prediction: Tensor
    target: Tensor
    entropy: Tensor | None = None
    elements: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Overlap:
        """Apply the same function to the three overlap sums."""
        return Overlap(change(self.intersection), change(self.prediction), change(self.target))

    def score(
        self,
        *,
        fp: float = 0.5,
        fn: float = 0.5,
        smooth_nr: float = 0.0,
        smooth_dr: float = 0.0,
        scale: float = 1.0,
        floor: float | None = None,
    ) -> Tensor:
        """(s I + nr) / (s (I + fp (P - I) + fn (T - I)) + dr): Tversky; Dice at 1/2, Jaccard at 1."""
        i, p, t = self[:3]
        denominator = scale * (i + fp * (p - i) + fn * (t - i)) + smooth_dr
        return (scale * i + smooth_nr) / (denominator if floor is None else denominator.clamp_min(floor))

    def cross_entropy(self, weight: Tensor | None, reduction: str, *, index: bool) -> Tensor:
        """`torch.nn.CrossEntropyLoss` of the same logits: "mean" or "sum"; 0 if nothing counts."""
        assert self.entropy is not None
        assert self.elements is not None
        weight = None if weight is None else weight.to(self.entropy)
        total = (self.entropy if weight is None else self.entropy * weight).sum()
        if reduction == "sum":
            return total
        if index:
            counted = (self.target if weight is None else self.target * weight).sum()
        else:
            counted = self.elements[:, 0].sum()
        return total / torch.where(counted == 0, 1.0, counted)


def fused_sums(
    input: Tensor,  # logits [B, C, *spatial]
    target: Tensor,  # [B, C, *spatial]; with `index` class numbers [B, 1, *spatial], of any dtype
    activation: str,
    *,
    index: bool = False,
    mask: Tensor | None = None,  # bool, [B, 1, *spatial] or with a sigmoid [B, C, *spatial]
    ignore_index: int | None = None,  # with `index`
    pos_weight: Tensor | None = None,  # [C]
    squared_pred: bool = False,
) -> Overlap:
    """`fastmtl.ops.overlap_sums` for the target layouts that the libraries accept."""
    if input.dim() == 2:
        input, target = input.unsqueeze(-1), target.unsqueeze(-1)
        mask = None if mask is None else mask.unsqueeze(-1)
    if activation == "sigmoid":
        if index:
            if ignore_index is not None:
                mask = target != ignore_index if mask is None else mask & (target != ignore_index)
            target = _plain.one_hot(target, input.shape[1], mask)
        sums = ops.overlap_sums(input, target, pos_weight=pos_weight, mask=mask, squared_pred=squared_pred)
    else:
        if index:
            target = class_numbers(target[:, 0])
        sums = ops.overlap_sums(
            input,
            target,
            activation="softmax",
            mask=None if mask is None else mask[:, 0],
            ignore_index=ignore_index,
            squared_pred=squared_pred,
        )
    return Overlap(*sums)


def cross_entropy(input: Tensor, target: Tensor, settings: nn.CrossEntropyLoss) -> Tensor:
    """The module's "mean" or "sum" in a separate fused pass: for class numbers of any dtype, or probabilities."""
    return ops.cross_entropy(
        input,
        target if target.shape == input.shape else class_numbers(target),
        weight=settings.weight,
        ignore_index=settings.ignore_index,
        label_smoothing=settings.label_smoothing,
        reduction=settings.reduction,
    )


def class_numbers(index: Tensor) -> Tensor:
    """Class numbers as the ops accept them: floats become integers, bool is viewed as bytes."""
    if index.is_floating_point():
        return index.long()
    return index.view(torch.uint8) if index.dtype == torch.bool else index


def per_channel(weight: Tensor | None, input: Tensor) -> Tensor | None:
    """A weight that broadcasts to `input` from the right, as [C]; None if it is not one number per channel."""
    channels = input.shape[1]
    if weight is None or weight.dim() > input.dim():
        return None
    if weight.numel() == 1:
        return weight.reshape(1).expand(channels)
    ones, shape = [1] * (input.dim() - 2), list(weight.shape)
    return weight.reshape(channels) if shape == [channels, *ones] or shape == [1, channels, *ones] else None


def all_per_channel(weights: Sequence[Tensor | None], input: Tensor) -> list[Tensor | None] | None:
    """`per_channel` of each; None if one of them is not one number per channel."""
    found = [per_channel(weight, input) for weight in weights]
    return found if [w is None for w in found] == [w is None for w in weights] else None


def binary_entropy(sums: Overlap, weight: Tensor | None, reduction: str) -> Tensor:
    """`torch.nn.BCEWithLogitsLoss` of the same logits: "mean" (over the valid elements) or "sum"."""
    assert sums.entropy is not None
    assert sums.elements is not None
    total = (sums.entropy if weight is None else sums.entropy * weight.to(sums.entropy)).sum()
    return total if reduction == "sum" else total / sums.elements.sum().clamp(min=1)
