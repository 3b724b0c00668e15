"""Squared, absolute and smooth absolute errors with missing labels in plain torch: the definition of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss


def regression_loss(
    input: Tensor,  # [B, ...]
    target: Tensor,  # the shape of input
    mask: Tensor | None = None,  # bool, broadcastable to input
    *,
    error: str,  # "squared", "absolute" or "smooth"
    beta: float = 1.0,  # for "smooth"
    reduction: str = "mean",
) -> Tensor:
    """See `fastmtl.ops.mse_loss` and `fastmtl.ops.smooth_l1_loss`. Differentiable any number of times."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    valid = torch.ones_like(input, dtype=torch.bool) if mask is None else mask.bool().expand(input.shape)
    difference = torch.where(valid, input.to(dtype), 0.0) - torch.where(valid, target.to(dtype), 0.0)
    if error == "squared":
        errors = difference * difference
    elif error == "absolute":
        errors = difference.abs()
    else:
        errors = smooth_l1_loss(difference, torch.zeros_like(difference), beta=beta, reduction="none")
    sums, elements = errors.flatten(1).sum(1), valid.flatten(1).sum(1)  # [B]
    if reduction == "none":
        return sums / elements.clamp(min=1)
    return sums.sum() if reduction == "sum" else sums.sum() / elements.sum().clamp(min=1)
