"""`fastmtl::sigmoid_overlap`: the sums of Dice + BCE [5, B, C], on the same kernels.

The sums are I, P, T, BCE and valid elements; the backward needs only the upstream gradient of three of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.overlap import sigmoid_overlap as reference_sums
from ..core import backends, checks
from ..core.checks import Backend, Flag
from ..core.loss_op import LossOp
from ..core.planes import describe, gradient_like, pixels
from ..core.pointers import address, num_threads
from . import dice_bce_backends


class Options(NamedTuple):
    squared_pred: Flag
    backend: Backend


class Tensors(NamedTuple):
    input: Tensor  # logits [B, C, *spatial]
    target: Tensor  # [B, C, *spatial], any dtype
    pos_weight: Tensor | None  # [C]
    mask: Tensor | None  # bool or uint8, as many dims as input, broadcastable to it

    def for_dice_bce(self) -> dice_bce_backends.Tensors:
        return dice_bce_backends.Tensors(self.input, self.target, self.pos_weight, None, self.mask)


def new_outputs(input: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised sums [5, B, C] and an empty tensor, because the gradient needs no coefficients."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    sums = torch.empty((5, *input.shape[:2]), dtype=dtype, device=input.device)
    return sums, sums.new_empty(0)


def _slopes(grad: Tensor, options: Options) -> Tensor:
    """The gradient of the sums as slopes in BCE, I and, times q, P, as the kernels of Dice + BCE expect it."""
    return torch.stack([grad[3], grad[0], grad[1] * (2 if options.squared_pred else 1)])


def _ones(slopes: Tensor) -> Tensor:
    return slopes.new_ones(()).expand(slopes.shape[1:])


def reference(tensors: Tensors, options: Options) -> Tensor:
    input, target, pos_weight, mask = tensors
    return torch.stack(reference_sums(input, target, pos_weight, mask, options.squared_pred))


def reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    tensors = tensors._replace(target=checks.unit_or_nan(tensors.target, tensors.mask))
    sums, nothing = new_outputs(tensors.input)
    return sums.copy_(reference(tensors, options)), nothing


def reference_backward(grad: Tensor, tensors: Tensors, nothing: Tensor, options: Options) -> Tensor:
    slopes = _slopes(grad, options)
    gradient = dice_bce_backends.reference_gradient(tensors.for_dice_bce(), slopes, options.squared_pred)
    return gradient_like(tensors.input).copy_(gradient)


def cpp_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    input, target, pos_weight, _, mask = dice_bce_backends.readable(tensors.for_dice_bce())
    sums, nothing = new_outputs(input)
    plausible = backends.extension().sigmoid_overlap_forward(
        (1, input.shape[0], input.shape[1], pixels(input)),
        describe(input),
        describe(target),
        describe(mask),
        address(pos_weight),
        options.squared_pred,
        address(sums),
        num_threads(),
    )
    dice_bce_backends.check_plausible(plausible, target, mask)
    return sums, nothing


def cpp_backward(grad: Tensor, tensors: Tensors, nothing: Tensor, options: Options) -> Tensor:
    slopes = _slopes(grad, options)
    return dice_bce_backends.cpp_gradient(_ones(slopes), tensors.for_dice_bce(), slopes, options.squared_pred, 1)


def triton_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    from ...kernels import dice_bce_triton

    input, target, pos_weight, _, mask = dice_bce_backends.readable(tensors.for_dice_bce())
    sums, nothing = new_outputs(input)
    dice_bce_triton.overlap(input, target, pos_weight, mask, sums, options.squared_pred, 1)
    return sums, nothing


def triton_backward(grad: Tensor, tensors: Tensors, nothing: Tensor, options: Options) -> Tensor:
    slopes = _slopes(grad, options)
    return dice_bce_backends.triton_gradient(_ones(slopes), tensors.for_dice_bce(), slopes, options.squared_pred, 1)


BACKENDS = {
    "cpp": (cpp_forward, cpp_backward),
    "triton": (triton_forward, triton_backward),
    "reference": (reference_forward, reference_backward),
}

sigmoid_overlap_op = LossOp(
    "sigmoid_overlap",
    Tensors,
    Options,
    backends=BACKENDS,
    fake=lambda tensors, options: new_outputs(tensors.input),
    reference=reference,
)
