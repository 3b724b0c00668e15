"""The C++ kernels of cross-entropy and softmax focal loss: both depend on the softmax probability of a pixel's
class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.buffer_cache import Recycled
from ..core.planes import describe, gradient_like, pixels
from ..core.pointers import address, element, num_threads

REDUCTIONS = (*checks.REDUCTIONS, "total", "totals")  # "sum" adds "none"; the last two are not divided

MANY_CLASSES = 64  # as kManyClasses in csrc/losses/softmax.cpp: vector lanes then run over classes


def kept(input: Tensor) -> int:
    """Numbers per sample that the CPU kernels keep for the backward: the slope and, if a sample is one row of many
    classes, its largest logit and the sum of the other classes' exponentials, so that the backward reads the row
    once."""
    return 3 if input.device.type == "cpu" and input.shape[1] >= MANY_CLASSES and pixels(input) == 1 else 1


def reference_coefficients(slopes: Tensor, input: Tensor, target: Tensor, mask: Tensor | None, ignored: int) -> Tensor:
    """Slopes [B] and the other kept numbers, [`kept`, B]; target and mask [B, 1, ...]."""
    if kept(input) == 1:
        return slopes.unsqueeze(0)
    x, y = input.flatten(1).to(slopes.dtype), target.flatten(1).long()
    valid = y != ignored if mask is None else (y != ignored) & mask.expand(target.shape).flatten(1).bool()
    top = x.amax(1, keepdim=True)
    other = (x - top).exp().scatter(1, torch.where(valid, y, 0), 0.0).sum(1, keepdim=True)
    rows = (torch.where(valid, row, 0.0).squeeze(1) for row in (top, other))
    return torch.stack([slopes, *rows])


class ClassLoss(NamedTuple):
    """The fields of `ClassLossProblem` in csrc/losses/class_loss.hpp; tensors with one pixel stride each."""

    input: Tensor  # logits [B, C, *spatial]
    target: Tensor  # class numbers [B, 1, *spatial]
    mask: Tensor | None  # uint8 [B, 1, *spatial]
    factors: Tensor | None  # [C] float32, contiguous
    ignore_index: int
    gamma: float
    smoothing: float
    by_weight: bool  # a mean divides by the sum of the pixel factors instead of their number

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
        """Writes loss and coefficients [`kept`, B]; returns the number of pixels with an invalid class number."""
        return backends.extension().class_loss_forward(
            *self.described(),
            factor,
            REDUCTIONS.index(reduction),
            address(loss),
            address(coefficients),
            kept(self.input) > 1,
            num_threads(),
        )

    def backward(self, grad: Tensor, coefficients: Tensor, like: Tensor, recycled: Recycled) -> Tensor:
        """grad (float32, one number or [B] with any stride) times the gradient, in the memory layout of `like`."""
        gradient = gradient_like(like, recycled)
        backends.extension().class_loss_backward(
            *self.described(),
            (address(grad), element(grad), grad.stride(0) if grad.dim() else 0, 0, 0),
            address(coefficients),
            kept(self.input) > 1,
            describe(gradient),
            num_threads(),
        )
        return gradient
