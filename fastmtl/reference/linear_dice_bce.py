"""Dice + BCE of a linear layer's logits in plain torch: the definition of the kernels, which store none."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .dice_bce import dice_bce_loss
from .linear_dice_ce import linear_logits


def linear_dice_bce_loss(
    features: Tensor,  # [B, F, *spatial]
    weight: Tensor,  # [C, F], or that of a 1x1 convolution
    bias: Tensor | None,  # [C]
    target: Tensor,
    *,
    channel_weight: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """See `fastmtl.ops.linear_dice_bce_loss`. Settings: those of `fastmtl.reference.dice_bce`."""
    return dice_bce_loss(linear_logits(features, weight, bias), target, weight=channel_weight, **settings)
