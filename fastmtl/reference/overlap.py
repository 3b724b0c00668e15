"""The sums every overlap loss (Dice, Jaccard, Tversky, ...) is made of, in plain torch: their definition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .dice_bce import segment_sums


class OverlapSums(NamedTuple):
    """Sums over the valid elements of each sample's channel, each [B, C]; p: probability, t: target, q: 1 or 2."""

    intersection: Tensor  # sum p t
    prediction: Tensor  # sum p^q
    target: Tensor  # sum t^q
    entropy: Tensor  # binary: -sum (pos_weight t log p + (1 - t) log(1 - p)); softmax: -sum t log p
    elements: Tensor  # how many


def sigmoid_overlap(
    input: Tensor, target: Tensor, pos_weight: Tensor | None, mask: Tensor | None, squared_pred: bool
) -> OverlapSums:
    """input: logits [B, C, *spatial]; target: the same shape; mask: broadcastable to it."""
    i, p, t, bce, elements = segment_sums(input, target, pos_weight, mask, False, squared_pred)
    return OverlapSums(i, p, t, bce, elements.to(i.dtype))


def softmax_overlap(
    input: Tensor,  # logits [B, C, *spatial]
    target: Tensor,  # class numbers [B, *spatial], or probabilities [B, C, *spatial]
    mask: Tensor | None,  # bool [B, *spatial]
    ignore_index: int | None,  # with class numbers
    squared_pred: bool,
) -> OverlapSums:
    dtype = torch.promote_types(input.dtype, torch.float32)
    valid = torch.ones_like(input[:, 0], dtype=torch.bool) if mask is None else mask.bool().expand_as(input[:, 0])
    if target.dim() < input.dim():
        index = target.long()
        valid = valid if ignore_index is None else valid & (index != ignore_index)
        target = one_hot(torch.where(valid, index, 0), input.shape[1]).movedim(-1, 1)  # [B, C, *spatial]
    valid = valid.unsqueeze(1)  # [B, 1, *spatial]
    x = torch.where(valid, input.to(dtype), 0.0).flatten(2)
    t = torch.where(valid, target.to(dtype), 0.0).flatten(2)
    log_p, valid, q = x.log_softmax(1), valid.flatten(2), 2 if squared_pred else 1
    p = torch.where(valid, log_p.exp(), 0.0)
    entropy = torch.where(t == 0, 0.0, -t * log_p)  # 0 times an infinite cost is 0
    elements = valid.expand_as(p).sum(2).to(dtype)
    return OverlapSums((p * t).sum(2), (p**q).sum(2), (t**q).sum(2), entropy.sum(2), elements)
