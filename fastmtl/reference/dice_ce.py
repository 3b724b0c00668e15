"""Softmax Dice + cross-entropy in plain torch: the definition of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .overlap import OverlapSums, softmax_sums


def dice_ce_loss(
    input: Tensor,  # logits [B, C, *spatial]
    target: Tensor,  # class numbers [B, *spatial] or [B, 1, *spatial], or probabilities [B, C, *spatial]
    *,
    ce_weight: float = 0.5,
    dice_weight: float = 0.5,
    weight: Tensor | None = None,  # [C]
    mask: Tensor | None = None,  # bool [B, *spatial] or [B, 1, *spatial]
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    include_background: bool = True,
    batch: bool = False,
    squared_pred: bool = False,
    jaccard: bool = False,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    empty: str = "one",
    reduction: str = "mean",
) -> Tensor:
    """See `fastmtl.ops.dice_ce_loss`, and for reduction "total" and "totals" `fastmtl.ops.losses.cross_entropy`."""
    sums, spread = softmax_sums(input, target, mask, ignore_index, squared_pred)
    return loss_of_sums(
        sums,
        spread,
        soft=target.shape == input.shape,
        ce_weight=ce_weight,
        dice_weight=dice_weight,
        weight=weight,
        label_smoothing=label_smoothing,
        include_background=include_background,
        batch=batch,
        jaccard=jaccard,
        smooth_nr=smooth_nr,
        smooth_dr=smooth_dr,
        empty=empty,
        reduction=reduction,
    )


def loss_of_sums(
    sums: OverlapSums,
    spread: Tensor,  # [B, C]: -sum log p; read only with label smoothing
    *,
    soft: bool,  # whether the target was probabilities
    ce_weight: float,
    dice_weight: float,
    weight: Tensor | None,
    label_smoothing: float,
    include_background: bool,
    batch: bool,
    jaccard: bool,
    smooth_nr: float,
    smooth_dr: float,
    empty: str,
    reduction: str,
) -> Tensor:
    """The loss from the sums over each class of each sample."""
    w = torch.ones_like(spread[0]) if weight is None else weight.to(spread.dtype)
    entropy = (1 - label_smoothing) * sums.entropy
    if label_smoothing:
        entropy = entropy + label_smoothing / w.numel() * spread
    ce, over = (w * entropy).sum(1), sums.elements[:, 0] if soft else (w * sums.target).sum(1)  # [B]
    if reduction in ("total", "totals"):
        return ce_weight * (ce.sum() if reduction == "total" else ce)

    i, p, t, _, elements = (s.sum(0, keepdim=True) if batch else s for s in sums)
    pair = (t == 0) & (p == 0)
    counted = (elements > 0) & (t != 0) if empty == "skip" else elements > 0
    counted = counted if include_background else counted & (torch.arange(w.numel(), device=w.device) > 0)
    denominator = (2 * (p + t - i) if jaccard else p + t) + smooth_dr
    score = (2 * i + smooth_nr) / torch.where(pair, 1.0, denominator)
    dice = torch.where(pair, 0.0 if empty == "one" else 1.0, 1 - score)
    dice, number = torch.where(counted, w * dice, 0.0).sum(1), counted.sum(1)
    if reduction == "mean":
        ce, over, dice, number = ce.sum(), over.sum(), dice.sum(), number.sum()
    loss = ce_weight * ce / torch.where(over == 0, 1.0, over) + dice_weight * dice / number.clamp(min=1)
    return loss.sum() if reduction == "sum" else loss
