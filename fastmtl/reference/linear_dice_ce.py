"""Dice + cross-entropy of a linear layer's logits in plain torch: the definition of the kernels, which store none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dice_ce import dice_ce_loss


def linear_logits(
    features: Tensor,  # [B, F, *spatial]
    weight: Tensor,  # [C, F], or that of a 1x1 convolution
    bias: Tensor | None,  # [C]
) -> Tensor:
    """The logits [B, C, *spatial]; float32, or float64 for float64 features."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    logits = weight.flatten(1).to(dtype) @ features.flatten(2).to(dtype)
    logits = logits if bias is None else logits + bias.to(dtype).unsqueeze(1)
    return logits.unflatten(2, features.shape[2:])


def linear_dice_ce_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """See `fastmtl.ops.linear_dice_ce_loss`. Settings: those of `fastmtl.reference.dice_ce`."""
    return dice_ce_loss(linear_logits(features, weight, bias), target, weight=class_weight, **settings)
