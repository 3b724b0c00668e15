"""`pairwise_mask_cost`: Dice and BCE of every query mask with every target mask, by one matrix product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..core import checks


def pairwise_mask_cost(
    mask_logits: Tensor, targets: Tensor, *, bce_weight: float = 1.0, dice_weight: float = 1.0
) -> Tensor:
    r"""bce_weight * BCE + dice_weight * Dice for each pair of query logits and target mask, on N points.

    With x = mask_logits, t = targets, p = sigmoid(x), all sums over the N points:
        BCE = (sum softplus(x) - sum x t) / N
        Dice = 1 - (2 sum p t + 1) / (sum p + sum t + 1)
    A pair needs only the sums of x t and p t, both rows of one product [x; p] t^T; the other sums are per query or per
    target. transformers computes three products and two cross-entropies of the size of the logits.

    Args:
        mask_logits: [B, Q, N], float16, bfloat16, float32 or float64. A non-finite value makes only the costs of its
            query NaN, which `linear_assignment` treats as a last resort.
        targets: [B, T, N], 0 to 1; bool, uint8 or floating (bilinear samples of a mask are between 0 and 1).
        bce_weight, dice_weight: the two terms' factors.

    Returns:
        cost [B, Q, T], float32, or float64 for float64 logits. Differentiable in mask_logits.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names.

    Source: Cheng et al. 2022, Masked-attention Mask Transformer; the costs of its matching.

    >>> logits = torch.tensor([[[9.0, 9.0, -9.0, -9.0], [-9.0, -9.0, 9.0, 9.0]]])
    >>> pairwise_mask_cost(logits, torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)).round(decimals=2)
    tensor([[[0.0000],
             [9.8000]]])
    """
    checks.tensor("mask_logits", mask_logits)
    checks.tensor("targets", targets)
    checks.dtype("mask_logits", mask_logits, checks.FLOATING, "Pass logits.")
    checks.dtype("targets", targets, checks.TARGETS, "Convert it first.")
    checks.finite("bce_weight", bce_weight)
    checks.finite("dice_weight", dice_weight)
    shape, expected = list(mask_logits.shape), "`mask_logits` must be [B, Q, N] and `targets` [B, T, N]"
    if len(shape) != 3 or targets.dim() != 3 or [shape[0], shape[2]] != [targets.shape[0], targets.shape[2]]:
        raise ValueError(f"{expected}; got {shape} and {list(targets.shape)}. Use flatten(2) on maps.")
    if shape[2] == 0:
        raise ValueError(f"{expected} with N of 1 or more; got {shape}. Sample at least one point.")
    if targets.device != mask_logits.device:
        raise ValueError(f"`targets` must be on {mask_logits.device} like `mask_logits`; got {targets.device}.")
    dtype = torch.promote_types(mask_logits.dtype, torch.float32)
    x, t = mask_logits.to(dtype), targets.to(dtype)
    p = x.sigmoid()
    x_t, p_t = torch.bmm(torch.cat([x, p], 1), t.mT).chunk(2, 1)  # [B, Q, T] each
    sizes = p.sum(2)[:, :, None] + t.sum(2)[:, None, :]
    # Beyond torch's own threshold of 20 float64 would lose half its digits.
    bce = (softplus(x, threshold=40).sum(2)[:, :, None] - x_t) / shape[2]
    return bce_weight * bce + dice_weight * (1 - (2 * p_t + 1) / (sizes + 1))
