"""The sums behind every overlap loss (Dice, Jaccard, Tversky, ...) in plain torch: their definition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .dice_bce import segment_sums


class OverlapSums(NamedTuple):
    """Sums over the valid elements of each sample's channel, each [B, C]; p: probability, t: target, q: 1 or 2."""

    intersection: Tensor  # sum p t
    prediction: Tensor  # sum p^q
    target: Tensor  # sum t^q
    entropy: Tensor  # binary: -sum (pos_weight t log p + (1 - t) log(1 - p)); softmax: -sum t log p
    elements: Tensor  # number of valid elements


def sigmoid_overlap(
    input: Tensor, target: Tensor, pos_weight: Tensor | None, mask: Tensor | None, squared_pred: bool
) -> OverlapSums:
    """input: logits [B, C, *spatial]; target: the same shape; mask: broadcastable to it."""
    i, p, t, bce, elements = segment_sums(input, target, pos_weight, mask, False, squared_pred)
    return OverlapSums(i, p, t, bce, elements.to(i.dtype))


def softmax_sums(
    input: Tensor,  # logits [B, C, *spatial]
    target: Tensor,  # class numbers [B, *spatial] or [B, 1, *spatial], or probabilities [B, C, *spatial]
    mask: Tensor | None,  # bool [B, *spatial] or [B, 1, *spatial]
    ignore_index: int | None,  # with class numbers
    squared_pred: bool,
) -> tuple[OverlapSums, Tensor]:
    """The sums, and -sum log p over the valid pixels, [B, C]; an invalid class number makes them NaN."""
    B, C = input.shape[:2]
    dtype = torch.promote_types(input.dtype, torch.float32)
    x = input.reshape(B, C, -1).to(dtype)
    valid = torch.ones_like(x[:, :1], dtype=torch.bool)
    valid = valid if mask is None else mask.bool().reshape(B, 1, -1).expand_as(valid)
    if target.shape == input.shape:
        t = target.reshape(B, C, -1).to(dtype)
    else:
        index = target.reshape(B, 1, -1).long()
        valid = valid if ignore_index is None else valid & (index != ignore_index)
        t = (index == torch.arange(C, device=x.device).view(C, 1)).to(dtype)
        t = torch.where((index < 0) | (index >= C), float("nan"), t)
    x, t = torch.where(valid, x, 0.0), torch.where(valid, t, 0.0)
    log_p, q = x.log_softmax(1), 2 if squared_pred else 1
    p = torch.where(valid, log_p.exp(), 0.0)
    entropy = torch.where(t == 0, 0.0, -t * log_p)  # 0 times an infinite cost is 0
    elements = valid.expand_as(p).sum(2).to(dtype)
    sums = OverlapSums((p * t).sum(2), (p**q).sum(2), (t**q).sum(2), entropy.sum(2), elements)
    return sums, torch.where(valid, -log_p, 0.0).sum(2)


def softmax_overlap(
    input: Tensor, target: Tensor, mask: Tensor | None, ignore_index: int | None, squared_pred: bool
) -> OverlapSums:
    """As `softmax_sums`, only the sums of the overlap."""
    return softmax_sums(input, target, mask, ignore_index, squared_pred)[0]
