"""The backends of `fastmtl::softmax_focal` and its backward: all have the same arguments and outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.focal import softmax_focal
from ..core.buffer_cache import Recycled
from ..core.checks import REDUCTIONS, Backend, NotNegative, Reduction
from ..core.class_checks import check_classes, raise_if_outside
from ..core.loss_op import LossOp
from ..core.planes import gradient_like
from .class_loss_backends import ClassLoss, kept, reference_coefficients
from .dice_ce_backends import readable
from .focal_backends import new_outputs, reduce, slopes

_GRADIENTS = Recycled()


class Options(NamedTuple):
    gamma: NotNegative
    ignore_index: int
    reduction: Reduction
    backend: Backend


class Tensors(NamedTuple):
    input: Tensor  # logits [B, C, *spatial]
    target: Tensor  # class numbers [B, 1, *spatial]
    factors: Tensor | None  # [C]: of each class
    mask: Tensor | None  # bool or uint8, broadcastable to target, with as many dims


def _outputs(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    """Uninitialised loss and coefficients [`kept`, B]; [1, B] on a GPU and for its kernels in the interpreter."""
    samples, rows = tensors.input.shape[0], 1 if options.backend == "triton" else kept(tensors.input)
    loss, coefficients = new_outputs(tensors.input, (samples,), options.reduction)
    return loss, coefficients.new_empty((rows, samples))


def _sums(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    input, target, factors, mask = tensors
    mask = None if mask is None else mask.expand(target.shape).squeeze(1)
    return softmax_focal(input, target.squeeze(1), factors, mask, options.gamma, options.ignore_index)


def reference(tensors: Tensors, options: Options) -> Tensor:
    return reduce(*_sums(tensors, options), options.reduction)


def reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    check_classes(tensors.target, tensors.mask, tensors.input, options.ignore_index)
    loss, coefficients = _outputs(tensors, options)
    sums, elements = _sums(tensors, options)
    loss.copy_(reduce(sums, elements, options.reduction))
    of_sample = slopes(elements, options.reduction).to(coefficients.dtype)
    input, target, _, mask = tensors
    return loss, coefficients.copy_(reference_coefficients(of_sample, input, target, mask, options.ignore_index))


def reference_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    """Plain torch with the kernels' formula, because autograd does not run inside an op."""
    input, target, factors, mask = tensors
    y = target.long()
    valid = y != options.ignore_index if mask is None else (y != options.ignore_index) & mask.bool()
    y = torch.where(valid, y, 0)
    log_p = torch.where(valid, input.to(coefficients.dtype), 0.0).log_softmax(1)
    p, loss = log_p.exp(), -log_p.gather(1, y)
    miss = p.scatter(1, y, 0.0).sum(1, keepdim=True)
    surprise = p.gather(1, y) * loss.clamp(max=torch.finfo(loss.dtype).max)
    ratio = torch.where(miss > 0, surprise / miss, 0.0)
    weight = miss**options.gamma * (1 + options.gamma * ratio)
    if factors is not None:
        weight = weight * factors.to(weight.dtype)[y]
    samples = (grad * coefficients[0]).view(-1, *(1,) * (input.dim() - 1))
    gradient = torch.where(valid, samples * weight * p.scatter(1, y, -miss), 0.0)
    return gradient_like(input).copy_(gradient)


def _readable(tensors: Tensors) -> Tensors:
    """The same tensors with one pixel stride each and float32 factors; copies only tensors without one."""
    input, target, mask = readable(tensors.input, tensors.target, tensors.mask)
    factors = tensors.factors
    return Tensors(input, target, None if factors is None else factors.to(torch.float32).contiguous(), mask)


def _kernel(tensors: Tensors, options: Options) -> ClassLoss:
    input, target, factors, mask = _readable(tensors)
    return ClassLoss(input, target, mask, factors, options.ignore_index, options.gamma, 0.0, by_weight=False)


def cpp_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    loss, coefficients = _outputs(tensors, options)
    reduction = "total" if options.reduction == "sum" else options.reduction
    outside = _kernel(tensors, options).forward(1.0, reduction, loss, coefficients)
    raise_if_outside(outside, tensors.input.shape[1])
    return loss, coefficients


def cpp_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    return _kernel(tensors, options).backward(grad, coefficients, tensors.input, _GRADIENTS)


def triton_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    from ...kernels import focal_softmax_triton

    tensors = _readable(tensors)
    loss, coefficients = _outputs(tensors, options)
    focal_softmax_triton.forward(*tensors, loss, coefficients, *options[:2], REDUCTIONS.index(options.reduction))
    return loss, coefficients


def triton_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    from ...kernels import focal_softmax_triton

    gradient = gradient_like(tensors.input)
    samples = grad.expand(coefficients.shape[1:])
    focal_softmax_triton.backward(samples, *_readable(tensors), coefficients, gradient, *options[:2])
    return gradient


BACKENDS = {
    "cpp": (cpp_forward, cpp_backward),
    "triton": (triton_forward, triton_backward),
    "reference": (reference_forward, reference_backward),
}

softmax_focal_op = LossOp(
    "softmax_focal",
    Tensors,
    Options,
    backends=BACKENDS,
    fake=_outputs,
    reference=reference,
)
