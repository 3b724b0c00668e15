"""The sums of `overlap_sums(activation="softmax")` as an op, on the kernels of Dice + cross-entropy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.overlap import softmax_overlap
from ..core import backends
from ..core.checks import Backend, Flag
from ..core.class_checks import check_classes, check_shares, raise_if_outside
from ..core.loss_op import LossOp
from ..core.pointers import address, num_threads
from .dice_ce_backends import cpp_gradient, gradient_by_formula, problem, readable, triton_gradient


class Tensors(NamedTuple):
    input: Tensor  # logits [B, C, *spatial], C >= 2
    target: Tensor  # class numbers [B, 1, *spatial], or probabilities [B, C, *spatial] of any dtype
    mask: Tensor | None  # bool or uint8 [B, 1, *spatial], or [B, 1, 1, ...]


class Options(NamedTuple):
    ignore_index: int
    squared_pred: Flag
    backend: Backend


def _new_outputs(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    """Uninitialised sums [5, B, C], and an empty tensor, because the gradient of the sums already holds their
    slopes."""
    input = tensors.input
    dtype = torch.promote_types(input.dtype, torch.float32)
    sums = torch.empty((5, *input.shape[:2]), dtype=dtype, device=input.device)
    return sums, torch.empty(0, dtype=dtype, device=input.device)


def _reference(tensors: Tensors, options: Options) -> Tensor:
    input, target, mask = tensors
    mask = None if mask is None else mask.expand(input.shape[0], 1, *input.shape[2:])
    return torch.stack(softmax_overlap(input, target, mask, options.ignore_index, options.squared_pred))


def _reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    check_classes(tensors.target, tensors.mask, tensors.input, options.ignore_index)
    sums, none = _new_outputs(tensors, options)
    return sums.copy_(_reference(tensors, options)), none


def _slopes(grad: Tensor, options: Options) -> Tensor:
    """Slopes [3, B, C] as the kernels expect them; T and the number of elements do not depend on the logits."""
    return torch.stack([grad[3], grad[0], grad[1] * (2 if options.squared_pred else 1)])


def _reference_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    q = 2 if options.squared_pred else 1
    return gradient_by_formula(*tensors, _slopes(grad, options), options.ignore_index, 0.0, q)


def _flags(tensors: Tensors, options: Options) -> tuple[bool, ...]:
    return tensors.target.shape[1] != 1, options.squared_pred, True, False, False


def _cpp_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    input, target, mask = readable(*tensors)
    check_shares(target, mask)
    sums, none = _new_outputs(tensors, options)
    outside = backends.extension().softmax_overlap_forward(
        *problem(input, target, mask, options.ignore_index), _flags(tensors, options), address(sums), num_threads()
    )
    raise_if_outside(outside, input.shape[1])
    return sums, none


def _cpp_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    kept = readable(*tensors)  # named, so that copies outlive the kernel, which only gets addresses
    arguments = problem(*kept, options.ignore_index)
    one = torch.ones((), dtype=torch.float32)
    return cpp_gradient(tensors.input, arguments, _flags(tensors, options), one, _slopes(grad, options), 0.0)


def _triton_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    from ...kernels import dice_ce_triton

    sums, none = _new_outputs(tensors, options)
    dice_ce_triton.overlap(*readable(*tensors), sums, options.ignore_index, options.squared_pred)
    return sums, none


def _triton_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    slopes = _slopes(grad, options)
    one = slopes.new_ones(())
    return triton_gradient(tensors, one, slopes, options.ignore_index, 0.0, options.squared_pred, True)


BACKENDS = {
    "cpp": (_cpp_forward, _cpp_backward),
    "triton": (_triton_forward, _triton_backward),
    "reference": (_reference_forward, _reference_backward),
}
softmax_overlap_op = LossOp(
    "softmax_overlap",
    Tensors,
    Options,
    backends=BACKENDS,
    fake=_new_outputs,
    reference=_reference,
)
