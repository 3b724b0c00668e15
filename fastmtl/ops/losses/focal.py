"""Focal loss on logits, sigmoid and softmax, one op each: one pass of sums forward, one elementwise pass backward.

Sigmoid: p = sigmoid(x), q = 1 - p, u = 1 - p_t = (1 - t) p + t q, CE the binary cross-entropy, a = alpha_t:
    dx = a (gamma u^(gamma-1) (1 - 2 t) p q CE + u^gamma ((1 - t) p - t q))
Softmax: u = 1 - p_y, the sum of the other probabilities, L = -log p_y:
    dx_c = alpha_y (u^gamma + gamma u^(gamma-1) p_y L) (p_c - [c = y])
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..core import backends, checks, class_checks
from ..core.planes import small_contiguous_planes
from .focal_backends import sigmoid_focal_op
from .focal_softmax_backends import softmax_focal_op


def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | float | None = 0.25,
    activation: str = "sigmoid",
    weight: Tensor | float | None = None,
    mask: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy that gives less weight to well-classified elements, from logits, in one pass over memory.

    activation="sigmoid", each channel separately, with p = sigmoid(input), t = target, which may be soft:
        p_t = t p + (1 - t) (1 - p),  alpha_t = t alpha + (1 - t) (1 - alpha)
        loss = -alpha_t (1 - p_t)^gamma (t log p + (1 - t) log(1 - p))              per element
    activation="softmax", over C, with y = target:
        loss = -alpha_y (1 - p_y)^gamma log p_y                                     per pixel

    Args:
        input: logits [B, C, *spatial], float16, bfloat16, float32 or float64, any value.
        target: "sigmoid": the shape of input, 0 to 1; bool, uint8, int16, int32, int64 or floating; a value outside
            that range, as in a mask of 0 and 255, raises on a CPU and makes the loss NaN on a GPU. "softmax": class
            numbers [B, *spatial] or [B, 1, *spatial], bool, uint8, int16, int32 or int64; an invalid class number does
            the same.
        gamma: 0 or more; 0 is the plain cross-entropy. 0, 1 and 2 need no power function.
        alpha: None for no weighting by class. "sigmoid": a number, or [C], for the positives; 1 - alpha for the
            negatives. "softmax": one number per class [C], or a number for all classes except class 0, which gets 1 -
            alpha (MONAI's convention).
        activation: "sigmoid" or "softmax".
        weight: a number or [C]; multiplies each channel's, or each class's, loss. The mean does not divide by it.
        mask: bool or uint8; elements where it is False are ignored, even if the logit or target there is invalid.
            "sigmoid": [B], [B, C] or broadcastable to input; "softmax": [B] or broadcastable to [B, *spatial].
        ignore_index: "softmax": pixels of this class are ignored; None: all pixels count. "sigmoid" has no classes:
            pass a mask.
        reduction: "mean" over the valid elements (or pixels; 0 if there are none), "sum", or "none" for one mean per
            segment: [B, C] with "sigmoid", [B] with "softmax".
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch). float64 runs on the reference.

    Returns:
        A scalar, [B, C] or [B]; float32, or float64 for float64 logits. Partial sums are added in float64; results are
        the same for any number of threads and in every run.

    Differentiable in `input` only, any number of times; second and forward-mode derivatives run the reference.
    The backward keeps the inputs and one number per segment (three for a row of 64 or more classes on a CPU).
    Contiguous, channels_last and expanded tensors are read in place; a tensor whose spatial dims have no common stride
    (a crop, a transpose) is copied.

    Raises:
        ValueError: an invalid shape, dtype, device, name or range, or an argument other than `input` that
            requires a gradient.
        TypeError: an argument that must be a tensor or a number is not one.
        BackendError: the requested backend cannot run these inputs here.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, eq. 5; torchvision.ops.sigmoid_focal_loss for soft
    targets. smp and MONAI generalise to soft targets in other ways; for targets of 0 and 1 all agree.

    >>> logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    >>> target = torch.tensor([[[[1, 0], [1, 0]]]], dtype=torch.uint8)
    >>> round(focal_loss(logits, target).item(), 4)
    0.0086
    >>> round(focal_loss(torch.zeros(1, 3, 2), torch.tensor([[0, 2]]), alpha=None, activation="softmax").item(), 4)
    0.4883
    """
    checks.one_of("activation", activation, ("sigmoid", "softmax"))
    checks.not_negative("gamma", gamma)
    if alpha is not None and not isinstance(alpha, Tensor):
        checks.finite("alpha", alpha)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    backends.check_backend(backend)
    if activation == "softmax":
        ignored = class_checks.ignored(ignore_index)
        input, target = class_checks.logits_and_classes(input, target, soft=False)
        factors, mask = _class_factors(alpha, weight, input), class_checks.pixel_mask(mask, input)
        return softmax_focal_op(input, target, factors, mask, gamma, ignored, reduction, backend)[0]
    class_checks.no_class_ignored(ignore_index, default=-100)
    checks.logits_and_target(input, target)
    weight = checks.per_channel("weight", weight, input)
    positive, negative = (1.0, 1.0) if alpha is None or isinstance(alpha, Tensor) else (alpha, 1 - alpha)
    factors = None if weight is None else weight.expand(2, -1)
    if isinstance(alpha, Tensor):
        of_channel = _by_channel(alpha, input)
        factors = torch.stack([of_channel, 1 - of_channel]) * (1 if weight is None else weight)
    mask = checks.full_rank_mask(mask, input)
    if factors is None and mask is None and reduction != "none" and small_contiguous_planes(input, target):
        input, target = input.reshape(1, 1, -1), target.reshape(1, 1, -1)
    elif input.dim() == 2:
        input, target, mask = as_planes(input, target, mask, reduction)
    return sigmoid_focal_op(input, target, factors, mask, gamma, positive, negative, reduction, backend)[0]


def as_planes(
    input: Tensor, target: Tensor, mask: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """[B, C] without spatial dims as [1, C, B], which has long planes; with "none" as [B, C, 1]."""
    input, target, mask = input.unsqueeze(-1), target.unsqueeze(-1), None if mask is None else mask.unsqueeze(-1)
    if reduction == "none":
        return input, target, mask
    return input.permute(2, 1, 0), target.permute(2, 1, 0), None if mask is None else mask.permute(2, 1, 0)


def _by_channel(alpha: Tensor | float, input: Tensor) -> Tensor:
    return cast(Tensor, checks.per_channel("alpha", alpha, input))


def _class_factors(alpha: Tensor | float | None, weight: Tensor | float | None, input: Tensor) -> Tensor | None:
    factors = checks.per_channel("weight", weight, input)
    if alpha is None:
        return factors
    of_class = _by_channel(alpha, input)
    if not isinstance(alpha, Tensor):
        of_class = torch.cat([1 - of_class[:1], of_class[1:]])
    return of_class if factors is None else factors * of_class
