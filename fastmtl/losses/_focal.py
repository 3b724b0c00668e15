"""The mean focal loss of each segment, on hard targets: the part that all faces' focal losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from ._plain import sigmoid_focal, softmax_focal


def segment_focal(
    input: Tensor,  # logits [B, C, *spatial]
    target: Tensor,  # sigmoid: 0 or 1, the same shape; softmax: class numbers [B, *spatial]
    *,
    activation: str,
    gamma: float,
    alpha: float | None = None,  # sigmoid: the ones' factor, 1 - alpha is the zeros'
    weight: Tensor | None = None,  # softmax: [C], the classes' factors; the mean is not divided by them
    mask: Tensor | None = None,  # bool; sigmoid: broadcastable to input, softmax: [B, *spatial]
) -> Tensor:
    """[B, C] with a sigmoid, [B] with a softmax: means over the valid elements, 0 where there are none."""
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    if activation == "softmax":
        index = target.long() if mask is None else torch.where(mask, target, 0).long()
        t = torch.zeros_like(x).scatter_(1, index.unsqueeze(1), 1.0)
        loss = softmax_focal(x, t, gamma)
        loss = (loss if weight is None else loss * weight.to(x).view(-1, *(1,) * (x.dim() - 2))).sum(1, keepdim=True)
        mask = None if mask is None else mask.unsqueeze(1)
    else:
        t = target.to(x.dtype) if mask is None else torch.where(mask, target, 0).to(x.dtype)
        loss = sigmoid_focal(x, t, gamma)
        if alpha is not None:
            loss = loss * (alpha * t + (1 - alpha) * (1 - t))
    if mask is None:
        means = loss.flatten(2).mean(2)
    else:
        valid = mask.expand(loss.shape)
        means = torch.where(valid, loss, 0.0).flatten(2).sum(2) / valid.flatten(2).sum(2).clamp(min=1)
    return means.squeeze(1) if activation == "softmax" else means
