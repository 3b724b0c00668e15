"""The backends of `fastmtl::regression` and its backward: all have the same arguments and outputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.regression import regression_loss
from ..core import backends
from ..core.buffer_cache import Recycled
from ..core.checks import REDUCTIONS, Backend, Reduction
from ..core.fields import keywords
from ..core.planes import ABSENT, describe, gradient_like, in_place, mask_in_place, pixels
from ..core.pointers import address, element, num_threads

_GRADIENTS = Recycled()  # for CPU kernels only: a GPU's allocator keeps freed memory anyway
ERRORS = ("squared", "absolute", "smooth")
_SMALLEST_BETA = 1e-30  # below it 1 / beta overflows float32, and the error is the absolute one


class Options(NamedTuple):
    """The op's arguments that are not tensors, in the order of its schema."""

    error: str
    beta: float
    reduction: Reduction
    backend: Backend

    @property
    def code(self) -> int:
        """The index of the error in csrc and in the Triton kernel."""
        smooth = self.error == "smooth" and self.beta >= _SMALLEST_BETA
        return ERRORS.index("absolute" if self.error == "smooth" and not smooth else self.error)


class Tensors(NamedTuple):
    """The op's tensor arguments, in the order of its schema."""

    input: Tensor  # [B, C, *spatial], at least three dims
    target: Tensor  # [B, C, *spatial], any dtype
    mask: Tensor | None  # bool or uint8, as many dims as input, broadcastable to it


class Layout(NamedTuple):
    """Kernel arguments: batch, channels, pixels, and each tensor as from `planes.describe`."""

    shape: tuple[int, int, int]
    input: tuple[int, int, int, int, int]
    target: tuple[int, int, int, int, int]
    mask: tuple[int, int, int, int, int]
    gradient: tuple[int, int, int, int, int]


def new_outputs(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Uninitialised loss ([B] for "none", else []) and slopes [B] of the loss in each sample's sum of errors."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    shape = input.shape[:1] if options.reduction == "none" else ()
    loss = torch.empty(shape, dtype=dtype, device=input.device)
    return loss, torch.empty(input.shape[:1], dtype=dtype, device=input.device)


def reference(tensors: Tensors, options: Options) -> Tensor:
    """The loss in plain torch, differentiable any number of times."""
    return regression_loss(*tensors, **keywords(options, "backend"))


def reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    loss, slopes = new_outputs(tensors.input, options)
    input, _, mask = tensors
    valid = torch.ones_like(input, dtype=torch.bool) if mask is None else mask.bool().expand(input.shape)
    elements = valid.flatten(1).sum(1) if options.reduction == "none" else valid.sum()
    slopes.copy_(torch.ones_like(slopes) if options.reduction == "sum" else 1 / elements.clamp(min=1).to(slopes.dtype))
    return loss.copy_(reference(tensors, options)), slopes


def reference_backward(grad: Tensor, tensors: Tensors, slopes: Tensor, options: Options) -> Tensor:
    """Plain torch with the kernels' formula, because autograd does not run inside an op."""
    input, target, mask = tensors
    difference = input.to(slopes.dtype) - target.to(slopes.dtype)
    if options.error == "squared":
        slope = 2 * difference
    elif options.error == "absolute" or options.beta == 0:
        slope = torch.where(difference.isnan(), difference, difference.sign())
    else:
        slope = (difference / options.beta).clamp(-1, 1)
    gradient = (grad * slopes).view(-1, *(1,) * (input.dim() - 1)) * slope
    gradient = gradient if mask is None else torch.where(mask.bool(), gradient, 0.0)
    return gradient_like(input).copy_(gradient)


def _readable(tensors: Tensors) -> Tensors:
    """The same tensors with one pixel stride each; copies only tensors without one."""
    input, target, mask = tensors
    return Tensors(in_place(input), in_place(target), None if mask is None else mask_in_place(mask, input.shape))


def _same_order(tensors: list[Tensor]) -> bool:
    """Whether all tensors have the same memory order without gaps, so that a sample is one run of memory."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensors[0].dim())
    return last is not None and all(tensor.is_contiguous(memory_format=last) for tensor in tensors)


def layout(tensors: Tensors, gradient: Tensor | None = None) -> Layout:
    """A sample as one plane if every tensor allows it, else as its channels; for tensors from `_readable`."""
    input, target, mask = tensors
    batch, channels = input.shape[:2]
    full = [tensor for tensor in (input, target, gradient) if tensor is not None]
    per_sample = mask is not None and not any(mask.stride()[1:])
    if mask is not None and not per_sample:
        full.append(mask)
    if not _same_order(full):
        return Layout((batch, channels, pixels(input)), *(describe(t) for t in (input, target, mask, gradient)))
    size = math.prod(input.shape[1:])

    def run(tensor: Tensor | None) -> tuple[int, int, int, int, int]:
        return ABSENT if tensor is None else (address(tensor), element(tensor), size, 0, 1)

    of_mask = (address(mask), element(mask), mask.stride(0), 0, 0) if mask is not None and per_sample else run(mask)
    return Layout((batch, 1, size), run(input), run(target), of_mask, run(gradient))


def cpp_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    tensors = _readable(tensors)
    loss, slopes = new_outputs(tensors.input, options)
    backends.extension().regression_forward(
        *layout(tensors)[:4],
        options.code,
        options.beta,
        REDUCTIONS.index(options.reduction),
        address(loss),
        address(slopes),
        num_threads(),
    )
    return loss, slopes


def cpp_backward(grad: Tensor, tensors: Tensors, slopes: Tensor, options: Options) -> Tensor:
    readable = _readable(tensors)  # named, so that copies outlive the kernel, which only gets addresses
    gradient = gradient_like(tensors.input, _GRADIENTS)
    *seen, of_gradient = layout(readable, gradient)
    backends.extension().regression_backward(
        *seen,
        options.code,
        options.beta,
        address(grad),
        grad.stride(0) if grad.dim() else 0,
        address(slopes),
        of_gradient,
        num_threads(),
    )
    return gradient


def triton_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    from ...kernels import regression_triton

    tensors = _readable(tensors)
    loss, slopes = new_outputs(tensors.input, options)
    shape, *strides = _without_addresses(layout(tensors))
    reduction = REDUCTIONS.index(options.reduction)
    regression_triton.forward(*tensors, loss, slopes, shape, strides[:3], options.code, options.beta, reduction)
    return loss, slopes


def triton_backward(grad: Tensor, tensors: Tensors, slopes: Tensor, options: Options) -> Tensor:
    from ...kernels import regression_triton

    readable = _readable(tensors)
    gradient = gradient_like(tensors.input)
    shape, *strides = _without_addresses(layout(readable, gradient))
    regression_triton.backward(grad, *readable, slopes, gradient, shape, strides, options.code, options.beta)
    return gradient


def _without_addresses(layout: Layout) -> tuple[tuple[int, int, int], ...]:
    """The shape and each tensor's batch, channel and pixel stride."""
    return layout.shape, *(seen[2:] for seen in layout[1:])


BACKENDS = {
    "cpp": (cpp_forward, cpp_backward),
    "triton": (triton_forward, triton_backward),
    "reference": (reference_forward, reference_backward),
}
