"""Heads at several strides against one full-resolution mask, in plain torch: the definition of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .dice_bce import dice_bce_loss


def windows(tensor: Tensor, size: torch.Size) -> Tensor:
    """[*lead, *spatial] as [*lead, *size, window], with spatial dims that are multiples of `size`: a view and a
    reshape."""
    rank = len(size)
    for axis, length in enumerate(size):
        tensor = tensor.unflatten(axis - rank, (length, -1))  # the other dims are still unsplit
    return tensor.movedim(tuple(range(1 - 2 * rank, 0, 2)), tuple(range(-rank, 0))).flatten(-rank)


def sample(target: Tensor, valid: Tensor | None, size: torch.Size, downsample: str,
           dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Target and mask [*lead, *spatial] at `size`; only the valid pixels of a window count, and one is enough."""
    if downsample == "nearest":
        first = (
            ...,
            *(slice(None, None, full // own) for full, own in zip(target.shape[-len(size) :], size, strict=True)),
        )
        return target[first], None if valid is None else valid[first]
    target, valid = windows(target, size), None if valid is None else windows(valid, size)
    if downsample == "max":
        target = target if valid is None else torch.where(valid, target, 0)
        return target.amax(-1), None if valid is None else valid.any(-1)
    target = target.to(dtype)
    if valid is None:
        return target.mean(-1), None
    return torch.where(valid, target, 0.0).sum(-1) / valid.sum(-1).clamp(min=1), valid.any(-1)


def class_shares(target: Tensor, valid: Tensor | None, size: torch.Size, classes: int,
                 dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Class numbers [B, *spatial] at `size` by "area": [B, classes, *size], with the mask [B, *size]."""
    one_hot = target.unsqueeze(1) == torch.arange(classes, device=target.device).view(-1, *(1,) * len(size))
    kept = None if valid is None else valid.unsqueeze(1).expand(one_hot.shape)
    shares, kept = sample(one_hot, kept, size, "area", dtype)
    return shares, None if kept is None else kept[:, 0]


def deep_supervision_loss(inputs: list[Tensor], target: Tensor, weights: Tensor, *, mask: Tensor | None = None,
                          downsample: str = "nearest", pointwise_weight: float = 0.5, reduction: str = "mean",
                          **options) -> Tensor:  # fmt: skip
    """See `fastmtl.ops.deep_supervision_loss`, "sigmoid". Differentiable any number of times; weights [L].

    "softmax" is `dice_ce_loss` of each head against class numbers taken by `sample`, or with "area" `class_shares`.
    """
    losses, dtype = [], torch.promote_types(inputs[0].dtype, torch.float32)
    valid = None if mask is None else mask.bool().expand(target.shape)
    for x, weight in zip(inputs, weights.to(dtype), strict=True):
        used = torch.where(weight != 0, x, 0.0)  # a head that is off has no effect, even if it is NaN
        small, kept = sample(target, valid, x.shape[2:], downsample, dtype)
        losses.append(weight * dice_bce_loss(used, small, mask=kept, bce_weight=pointwise_weight, **options))
    return torch.stack(losses) if reduction == "none" else torch.stack(losses).sum()
