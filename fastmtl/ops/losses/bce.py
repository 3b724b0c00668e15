"""Binary cross-entropy on logits: the BCE term of Dice + BCE, for targets of any dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import backends, checks
from ..core.planes import small_contiguous_planes
from .dice_bce import dice_bce_op
from .dice_bce_backends import Options, Tensors
from .focal import as_planes
from .overlap import overlap_sums


def bce_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | float | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """`F.binary_cross_entropy_with_logits` for targets of any dtype, with a mask for missing labels.

        loss = -weight (pos_weight t log p + (1 - t) log(1 - p))    per element, p = sigmoid(input), t = target

    Args:
        input: logits of any shape, [B], [B, C], [B, C, *spatial], ...; float16, bfloat16, float32 or float64.
        target: the same shape, 0 to 1; bool, uint8, int16, int32, int64 or floating, where torch accepts floating only.
            A value outside that range raises on a CPU and makes the loss NaN on a GPU.
        weight: factor of each element, broadcastable to input as in torch. One value per channel of a sample (a number,
            [C, 1, 1] or [B, C, 1, 1]) costs nothing; finer weights run in plain torch.
        pos_weight: weight of the positive class: a number, [C], or [C, 1, ...]. [C] always belongs to dim 1; torch
            aligns it with the last dim.
        mask: bool or uint8, [B], [B, C] or broadcastable to input; elements where it is False are ignored, even if the
            logit or target there is invalid. For missing labels: mask=has_label of [B] or [B, C].
        reduction: "mean" over the valid elements (0 if there are none), "sum", or "none": elementwise, computed by
            torch, because fusing gains nothing when every element is written. For one mean per channel of each sample,
            use `dice_bce_loss(..., bce_weight=1, dice_weight=0, reduction="none")`.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        A scalar, or the shape of input with "none"; float32, also for half logits, or float64 for float64 logits.

    Differentiable in `input` only, any number of times; second and forward-mode derivatives run the reference.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names.
        BackendError: the requested backend cannot run these inputs here.

    Source: torch.nn.functional.binary_cross_entropy_with_logits, for the weights and the mean.

    >>> logits, mask = torch.tensor([[2.0, -1.0], [0.5, 3.0]]), torch.tensor([[True, True], [True, False]])
    >>> round(bce_with_logits(logits, torch.tensor([[1, 0], [1, 0]]), mask=mask).item(), 4)
    0.3048
    """
    checks.tensor("input", input)
    checks.tensor("target", target)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    backends.check_backend(backend)
    shape = input.shape
    if input.shape == target.shape and input.dim() < 2:  # one plane
        input, target = input.reshape(1, 1, -1), target.reshape(1, 1, -1)
        mask = mask.reshape(1, 1, -1) if isinstance(mask, Tensor) and mask.dim() < 2 else mask
        weight = weight.reshape(1, 1, -1) if isinstance(weight, Tensor) and weight.dim() < 2 else weight
    checks.logits_and_target(input, target)
    by_channel = isinstance(pos_weight, Tensor) and pos_weight.numel() > 1
    pos_weight = checks.per_channel("pos_weight", pos_weight, input)
    mask = checks.full_rank_mask(mask, input)
    of_plane = None
    factor = None  # one number for all, of a tensor's dtype and device
    if weight is not None:
        weight = _full_rank_weight(weight, input)
        if weight.numel() == 1 and reduction != "none":
            factor, weight = weight.reshape(()), None
    if weight is not None:
        of_plane = weight if all(size == 1 for size in weight.shape[2:]) else None
    if reduction == "none" or (weight is not None and of_plane is None):
        return _elementwise(input, target, weight, pos_weight, mask, reduction, shape)
    if of_plane is not None:
        sums = overlap_sums(input, target, pos_weight=pos_weight, mask=mask, backend=backend)
        weighted = sums.entropy * of_plane.to(sums.entropy.dtype).flatten(1)
        total = torch.where(sums.elements > 0, weighted, 0.0).sum()  # not 0 times an infinite weight
        return total / sums.elements.sum().clamp(min=1) if reduction == "mean" else total
    if not by_channel and mask is None and small_contiguous_planes(input, target):
        input, target = input.reshape(1, 1, -1), target.reshape(1, 1, -1)
        pos_weight = None if pos_weight is None else pos_weight[:1]
    elif input.dim() == 2:
        input, target, mask = as_planes(input, target, mask, reduction)
    how = "mean" if reduction == "mean" else "total"
    options = Options(bce_weight=1.0, dice_weight=0.0, smooth_nr=1.0, smooth_dr=1.0, reduction=how, backend=backend)
    loss = dice_bce_op(*Tensors(input, target, pos_weight, None, mask), *options)[0]
    return loss if factor is None else loss * factor.to(loss.dtype)


def _full_rank_weight(weight: Tensor, input: Tensor) -> Tensor:
    checks.tensor("weight", weight)
    checks.device("weight", weight, input)
    checks.constant("weight", weight)
    if weight.dim() > input.dim() or any(
        w != 1 and w != n for w, n in zip(reversed(weight.shape), reversed(input.shape), strict=False)
    ):
        raise ValueError(
            f"`weight` must be broadcastable to `input` {list(input.shape)}; got {list(weight.shape)}. One number per "
            "channel is weight.view(-1, 1, 1)."
        )
    return weight.reshape(*(1,) * (input.dim() - weight.dim()), *weight.shape)


def _elementwise(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    reduction: str,
    shape: torch.Size,
) -> Tensor:
    dtype = torch.promote_types(input.dtype, torch.float32)
    x, t = input.to(dtype), checks.unit_or_nan(target, mask).to(dtype)
    if mask is not None:
        x, t = torch.where(mask.bool(), x, 0.0), torch.where(mask.bool(), t, 0.0)
    factor = None if weight is None else weight.to(dtype)
    positive = None if pos_weight is None else pos_weight.to(dtype).view(-1, *(1,) * (input.dim() - 2))
    losses = F.binary_cross_entropy_with_logits(x, t, factor, reduction="none", pos_weight=positive)
    if mask is not None:
        losses = torch.where(mask.bool(), losses, 0.0)
    if reduction == "none":
        return losses.view(shape)
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (losses.numel() if mask is None else mask.bool().expand(input.shape).sum().clamp(min=1))
