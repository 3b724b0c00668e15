"""Focal loss on logits in plain torch: the definition of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid_focal(
    input: Tensor,  # logits [B, C, *spatial]
    target: Tensor,  # [B, C, *spatial], 0 to 1
    factors: Tensor | None,  # [2, C]: of each channel's positives and negatives
    mask: Tensor | None,  # bool, broadcastable to input
    gamma: float,
    positive: float = 1.0,
    negative: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of the valid elements of each plane, [B, C]."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    x, t = input.to(dtype).flatten(2), target.to(dtype).flatten(2)  # [B, C, N]
    valid = torch.ones_like(t, dtype=torch.bool) if mask is None else mask.bool().expand(input.shape).flatten(2)
    x, t = torch.where(valid, x, 0.0), torch.where(valid, t, 0.0)
    # 0 times the infinite cost of a correct infinite logit is 0 here; IEEE gives NaN.
    entropy = torch.where(t == 0, 0.0, -t * logsigmoid(x)) + torch.where(t == 1, 0.0, (t - 1) * logsigmoid(-x))
    miss = (1 - t) * x.sigmoid() + t * (-x).sigmoid()  # 1 - p_t without cancellation
    scale = positive * t, negative * (1 - t)
    if factors is not None:
        scale = scale[0] * factors[0].to(dtype).view(-1, 1), scale[1] * factors[1].to(dtype).view(-1, 1)
    losses = (scale[0] + scale[1]) * _power(miss, gamma) * entropy
    return torch.where(valid, losses, 0.0).sum(2), valid.sum(2)


def softmax_focal(
    input: Tensor,  # logits [B, C, *spatial]
    target: Tensor,  # class numbers [B, *spatial]
    factors: Tensor | None,  # [C]: of each class
    mask: Tensor | None,  # bool [B, *spatial]
    gamma: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of the valid pixels of each sample, [B]."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    y = target.long().flatten(1)  # [B, N]
    valid = y != ignore_index if mask is None else (y != ignore_index) & mask.bool().flatten(1)
    x = torch.where(valid.unsqueeze(1), input.to(dtype).flatten(2), 0.0)  # [B, C, N]
    y = torch.where(valid, y, 0).unsqueeze(1)
    log_p = x.log_softmax(1)
    miss = log_p.exp().scatter(1, y, 0.0).sum(1)  # 1 - p_y without cancellation
    losses = -_power(miss, gamma) * log_p.gather(1, y).squeeze(1)
    if factors is not None:
        losses = losses * factors.to(dtype)[y.squeeze(1)]
    return torch.where(valid, losses, 0.0).sum(1), valid.sum(1)


def _power(base: Tensor, gamma: float) -> Tensor:
    """base^gamma with a derivative of 0 at 0 instead of an infinite one: the loss it multiplies is 0 there."""
    if gamma >= 2 or gamma in (0, 1):
        return base**gamma
    return torch.where(base == 0, 0.0, torch.where(base == 0, 1.0, base) ** gamma)
