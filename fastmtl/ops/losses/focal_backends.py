"""The backends of `fastmtl::sigmoid_focal` and its backward: all have the same arguments and outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.focal import sigmoid_focal
from ..core import backends, checks
from ..core.buffer_cache import Recycled
from ..core.checks import REDUCTIONS, Backend, NotNegative, Reduction
from ..core.loss_op import LossOp
from ..core.planes import ABSENT, describe, gradient_like, in_place, mask_in_place, pixels
from ..core.pointers import address, num_threads
from .dice_bce_backends import check_plausible

_GRADIENTS = Recycled()


class Options(NamedTuple):
    gamma: NotNegative
    positive: float  # factor of the positives: alpha
    negative: float  # of the negatives: 1 - alpha
    reduction: Reduction
    backend: Backend


class Tensors(NamedTuple):
    input: Tensor  # logits [B, C, *spatial]
    target: Tensor  # [B, C, *spatial], any dtype
    factors: Tensor | None  # [2, C]: of each channel's positives and negatives
    mask: Tensor | None  # bool or uint8, as many dims as input, broadcastable to it


def new_outputs(input: Tensor, segments: tuple[int, ...], reduction: str) -> tuple[Tensor, Tensor]:
    """Uninitialised loss, one per segment with "none", and coefficients: its slope in the sum of each segment."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    coefficients = torch.empty(segments, dtype=dtype, device=input.device)
    return coefficients.new_empty(segments if reduction == "none" else ()), coefficients


def reduce(sums: Tensor, elements: Tensor, reduction: str) -> Tensor:
    """The loss from the sum and the number of valid elements of each segment."""
    if reduction == "none":
        return sums / elements.clamp(min=1)
    return sums.sum() / elements.sum().clamp(min=1) if reduction == "mean" else sums.sum()


def slopes(elements: Tensor, reduction: str) -> Tensor:
    """The coefficients from the number of valid elements of each segment."""
    if reduction == "sum":
        return torch.ones_like(elements, dtype=torch.float64)
    return 1 / (elements if reduction == "none" else elements.sum().expand_as(elements)).clamp(min=1).double()


def _outputs(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    batch, channels, *_ = tensors.input.shape
    return new_outputs(tensors.input, (batch, channels), options.reduction)


def _sums(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    return sigmoid_focal(*tensors, options.gamma, options.positive, options.negative)


def reference(tensors: Tensors, options: Options) -> Tensor:
    return reduce(*_sums(tensors, options), options.reduction)


def reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    tensors = tensors._replace(target=checks.unit_or_nan(tensors.target, tensors.mask))
    loss, coefficients = _outputs(tensors, options)
    sums, elements = _sums(tensors, options)
    loss.copy_(reduce(sums, elements, options.reduction))
    return loss, coefficients.copy_(slopes(elements, options.reduction))


def reference_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    """Plain torch with the kernels' formula, because autograd does not run inside an op."""
    input, target, factors, mask = tensors
    x, t = input.to(coefficients.dtype), target.to(coefficients.dtype)
    if mask is not None:
        x, t = torch.where(mask.bool(), x, 0.0), torch.where(mask.bool(), t, 0.0)
    p, q, softplus = x.sigmoid(), (-x).sigmoid(), torch.nn.functional.softplus
    right, wrong = (torch.where(side == 0, 0.0, side * softplus(way)) for side, way in ((t, -x), (1 - t, x)))
    entropy = (right + wrong).clamp(max=torch.finfo(x.dtype).max)
    miss, of_entropy = (1 - t) * p + t * q, (1 - t) * p - t * q
    ratio = torch.where(miss > 0, (1 - 2 * t) * p * q / miss, 0.0)
    positive, negative = options.positive * t, options.negative * (1 - t)
    if factors is not None:
        rows = factors.to(x.dtype).view(2, -1, *(1,) * (x.dim() - 2))
        positive, negative = positive * rows[0], negative * rows[1]
    slope = (positive + negative) * miss**options.gamma * (options.gamma * ratio * entropy + of_entropy)
    planes = (grad * coefficients).view(*coefficients.shape, *(1,) * (x.dim() - 2))
    gradient = planes * slope if mask is None else torch.where(mask.bool(), planes * slope, 0.0)
    return gradient_like(input).copy_(gradient)


def _readable(tensors: Tensors) -> Tensors:
    """The same tensors with one pixel stride each and float32 factors; copies only tensors without one."""
    input, target, factors, mask = tensors
    return Tensors(
        in_place(input),
        in_place(target),
        None if factors is None else factors.to(torch.float32).contiguous(),
        None if mask is None else mask_in_place(mask, input.shape),
    )


def _described(tensors: Tensors, options: Options) -> tuple[object, ...]:
    input, target, factors, mask = tensors
    shape = (input.shape[0], input.shape[1], pixels(input))
    numbers = (options.positive, options.negative, options.gamma)
    return shape, describe(input), describe(target), describe(mask), address(factors), numbers


def cpp_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    tensors = _readable(tensors)
    loss, coefficients = _outputs(tensors, options)
    plausible = backends.extension().sigmoid_focal_forward(
        *_described(tensors, options),
        REDUCTIONS.index(options.reduction),
        address(loss),
        address(coefficients),
        num_threads(),
    )
    check_plausible(plausible, tensors.target, tensors.mask)
    return loss, coefficients


def cpp_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    readable = _readable(tensors)  # named, so that copies outlive the kernel, which only gets addresses
    gradient = gradient_like(tensors.input, _GRADIENTS)
    planes = grad.expand(coefficients.shape)
    backends.extension().sigmoid_focal_backward(
        *_described(readable, options),
        (address(planes), ABSENT[0], *planes.stride(), 0),
        address(coefficients),
        describe(gradient),
        num_threads(),
    )
    return gradient


def triton_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    from ...kernels import focal_triton

    tensors = _readable(tensors)
    loss, coefficients = _outputs(tensors, options)
    focal_triton.forward(*tensors, loss, coefficients, *options[:3], REDUCTIONS.index(options.reduction))
    return loss, coefficients


def triton_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    from ...kernels import focal_triton

    gradient = gradient_like(tensors.input)
    planes = grad.expand(coefficients.shape)
    focal_triton.backward(planes, *_readable(tensors), coefficients, gradient, *options[:3])
    return gradient


BACKENDS = {
    "cpp": (cpp_forward, cpp_backward),
    "triton": (triton_forward, triton_backward),
    "reference": (reference_forward, reference_backward),
}

sigmoid_focal_op = LossOp(
    "sigmoid_focal",
    Tensors,
    Options,
    backends=BACKENDS,
    fake=_outputs,
    reference=reference,
)
