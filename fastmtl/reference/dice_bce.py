"""Dice + BCE on logits in plain torch: the definition of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def segment_sums(
    input: Tensor,  # logits [B, C, *spatial]
    target: Tensor,  # [B, C, *spatial], 0 to 1
    pos_weight: Tensor | None = None,  # [C]
    mask: Tensor | None = None,  # bool, broadcastable to input
    batch: bool = False,
    squared_pred: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """I, P, T, the BCE sum and the number of valid elements of each segment: [B, C], or [C] with batch."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    x, t = input.to(dtype).flatten(2), target.to(dtype).flatten(2)  # [B, C, N]
    valid = torch.ones_like(t, dtype=torch.bool) if mask is None else mask.bool().expand(input.shape).flatten(2)
    x, t = torch.where(valid, x, 0.0), torch.where(valid, t, 0.0)
    positive = t if pos_weight is None else t * pos_weight.to(dtype).view(-1, 1)
    # 0 times the infinite cost of a correct infinite logit is 0 here; IEEE gives NaN.
    bce = torch.where(positive == 0, 0.0, -positive * logsigmoid(x))
    bce = torch.where(valid, bce + torch.where(t == 1, 0.0, (t - 1) * logsigmoid(-x)), 0.0)
    p, over, q = torch.where(valid, x.sigmoid(), 0.0), (0, 2) if batch else 2, 2 if squared_pred else 1
    return (p * t).sum(over), (p**q).sum(over), (t**q).sum(over), bce.sum(over), valid.sum(over)


def dice_bce_loss(
    input: Tensor,
    target: Tensor,
    *,
    bce_weight: float = 0.5,
    dice_weight: float = 0.5,
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,  # [C]
    mask: Tensor | None = None,
    batch: bool = False,
    squared_pred: bool = False,
    jaccard: bool = False,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    empty: str = "one",
    reduction: str = "mean",
) -> Tensor:
    """See `fastmtl.ops.dice_bce_loss`; "total" is "sum" with the BCE not divided by the elements.

    Differentiable any number of times.
    """
    sums = segment_sums(input, target, pos_weight, mask, batch, squared_pred)
    return loss_of_sums(
        *sums,
        bce_weight=bce_weight,
        dice_weight=dice_weight,
        weight=weight,
        jaccard=jaccard,
        smooth_nr=smooth_nr,
        smooth_dr=smooth_dr,
        empty=empty,
        reduction=reduction,
    )


def loss_of_sums(
    i: Tensor,
    p: Tensor,
    t: Tensor,
    bce: Tensor,
    elements: Tensor,
    *,
    bce_weight: float,
    dice_weight: float,
    weight: Tensor | None,
    jaccard: bool,
    smooth_nr: float,
    smooth_dr: float,
    empty: str,
    reduction: str,
) -> Tensor:
    """The loss from the sums over each segment, [B, C], or [C] of a batch."""
    counted = (elements > 0) & (t != 0) if empty == "skip" else elements > 0
    i, p, t = (torch.where(counted, part, 0.0) for part in (i, p, t))  # a NaN that does not count must not spread
    empty_pair = (t == 0) & (p == 0)
    denominator = (2 * (p + t - i) if jaccard else p + t) + smooth_dr
    score = (2 * i + smooth_nr) / torch.where(empty_pair, 1.0, denominator)
    dice = 1 - torch.where(empty_pair, 1.0 if empty == "one" else 0.0, score)
    dice = torch.where(counted, dice if weight is None else dice * weight.to(dice.dtype), 0.0)
    if reduction == "mean":
        bce, dice = bce.sum() / elements.sum().clamp(min=1), dice.sum() / counted.sum().clamp(min=1)
        return bce_weight * bce + dice_weight * dice
    bce = bce if reduction == "total" else bce / elements.clamp(min=1)
    loss = bce_weight * bce + dice_weight * dice
    return loss if reduction == "none" else loss.sum()
