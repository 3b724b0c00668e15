"""The C++ kernels of cross-entropy and softmax focal loss: both are a function of a pixel's softmax at its class."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import _backends, _checks
from ._planes import describe, gradient_like, pixels
from ._pointers import address, element, num_threads
from ._recycled import Recycled

REDUCTIONS = (*_checks.REDUCTIONS, "total", "totals")  # "sum" adds up "none"; the last two are not divided


class ClassLoss(NamedTuple):
    """What `ClassLossProblem` in csrc/class_loss.hpp holds; tensors with one pixel stride each."""

    input: Tensor  # logits [B, C, *spatial]
    target: Tensor  # class numbers [B, 1, *spatial]
    mask: Tensor | None  # uint8 [B, 1, *spatial]
    factors: Tensor | None  # [C] float32, contiguous
    ignore_index: int
    gamma: float
    smoothing: float
    by_weight: bool  # a mean divides by the sum of the pixels' factors instead of by their number

    def described(self) -> tuple[object, ...]:
        input = self.input
        return (
            (input.shape[0], input.shape[1], pixels(input)),
            describe(input),
            describe(self.target),
            describe(self.mask),
            self.ignore_index,
            address(self.factors),
            (self.gamma, self.smoothing),
            self.by_weight,
        )

    def forward(self, factor: float, reduction: str, loss: Tensor, coefficients: Tensor) -> int:
        """Writes loss and coefficients [B]; returns how many pixels have a class number that does not exist."""
        return _backends.extension().class_loss_forward(
            *self.described(),
            factor,
            REDUCTIONS.index(reduction),
            address(loss),
            address(coefficients),
            num_threads(),
        )

    def backward(self, grad: Tensor, coefficients: Tensor, like: Tensor, recycled: Recycled) -> Tensor:
        """grad (float32, one number or [B] with any stride) times the gradient, laid out as that of `like`."""
        gradient = gradient_like(like, recycled)
        _backends.extension().class_loss_backward(
            *self.described(),
            (address(grad), element(grad), grad.stride(0) if grad.dim() else 0, 0, 0),
            address(coefficients),
            describe(gradient),
            num_threads(),
        )
        return gradient
