"""The backends of `fastmtl::deep_supervision` and its backward: all have the same arguments and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ...reference import deep_supervision as definition
from ..core import backends
from ..core.buffer_cache import Recycled
from ..core.checks import EMPTY, Backend, Empty, Flag, NotNegative, Number, one_of
from ..core.fields import converted, keywords
from ..core.planes import ABSENT, describe, gradient_like, in_place, strides
from ..core.pointers import address, element, num_threads
from . import dice_bce_backends

DOWNSAMPLE = ("nearest", "area", "max")
_GRADIENTS = [Recycled() for _ in range(4)]  # for CPU kernels, one per head: further heads are small, or rare
_NO_VOLUME = (0,) * 7


class Options(NamedTuple):
    """The op's arguments that are not tensors, in the order of its schema."""

    numbers: list[float]  # one weight per head; unused if the weights are a tensor
    downsample: Annotated[str, partial(one_of, allowed=DOWNSAMPLE)] = "nearest"
    pointwise_weight: Number = 0.5
    dice_weight: Number = 0.5
    batch: Flag = False
    squared_pred: Flag = False
    jaccard: Flag = False
    smooth_nr: NotNegative = 1e-5
    smooth_dr: NotNegative = 1e-5
    empty: Empty = "one"
    reduction: Annotated[str, partial(one_of, allowed=("mean", "none"))] = "mean"
    backend: Backend = "auto"


class Tensors(NamedTuple):
    """The op's tensor arguments, in the order of its schema."""

    inputs: list[Tensor]  # the heads' logits [B, C, *spatial]
    target: Tensor  # [B, C, *spatial], any dtype
    weights: Tensor | None  # [L]
    pos_weight: Tensor | None  # [C]
    mask: Tensor | None  # bool or uint8, as many dims as target, broadcastable to it


def new_outputs(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    """Uninitialised loss, [] or [L], and coefficients [L, 3, B, C]: those of dice_bce times the head's weight."""
    first, number = tensors.inputs[0], len(tensors.inputs)
    dtype = torch.promote_types(first.dtype, torch.float32)
    loss = first.new_empty((number,) if options.reduction == "none" else (), dtype=dtype)
    return loss, first.new_empty((number, 3, *first.shape[:2]), dtype=dtype)


def reference(tensors: Tensors, options: Options) -> Tensor:
    """The loss in plain torch, differentiable any number of times."""
    return definition.deep_supervision_loss(
        list(tensors.inputs),
        tensors.target,
        as_tensor(options, tensors),
        mask=tensors.mask,
        pos_weight=tensors.pos_weight,
        **keywords(options, "numbers", "backend"),
    )


def as_tensor(options: Options, tensors: Tensors) -> Tensor:
    """The weights as [L]; numbers are filled in on the device, because a copy from the host would wait for it."""
    if tensors.weights is not None:
        return tensors.weights
    first = tensors.inputs[0]
    return torch.stack([first.new_full((), number, dtype=torch.float64) for number in options.numbers])


def _each_head(tensors: Tensors, options: Options) -> Iterator[tuple[dice_bce_backends.Tensors, Any]]:
    """Every head as a dice_bce problem with a down-sampled target."""
    target, mask = tensors.target, full_mask(tensors.mask, tensors.target)
    own = converted(options, dice_bce_backends.Options, bce_weight=options.pointwise_weight, reduction="mean")
    for x in tensors.inputs:
        dtype = torch.promote_types(x.dtype, torch.float32)
        valid = None if mask is None else mask.bool()
        sampled, valid = definition.sample(target, valid, x.shape[2:], options.downsample, dtype)
        yield dice_bce_backends.Tensors(x, sampled, tensors.pos_weight, None, valid), own


def reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    _, coefficients = new_outputs(tensors, options)
    losses = []
    weights = as_tensor(options, tensors).to(coefficients.dtype)
    for (head, own), weight, out in zip(_each_head(tensors, options), weights, coefficients, strict=True):
        used = head._replace(input=torch.where(weight != 0, head.input, 0.0))
        loss, slopes, _ = dice_bce_backends.reference_forward(used, own)
        losses.append(weight * loss)
        out.copy_(weight * slopes)
    together = torch.stack(losses)
    return together if options.reduction == "none" else together.sum(), coefficients


def reference_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> list[Tensor]:
    """Plain torch with the kernels' formula, because autograd does not run inside an op."""
    gradients = []
    grads = grad.expand(len(tensors.inputs))
    for (head, own), go, slopes in zip(_each_head(tensors, options), grads, coefficients, strict=True):
        gradient = dice_bce_backends.reference_backward(go, head, slopes, own)
        moves = slopes.ne(0).any(0).view(*slopes.shape[1:], *(1,) * (gradient.dim() - 2))
        gradients.append(gradient.masked_fill_(~moves, 0.0))
    return gradients


def _scales(tensors: Tensors) -> Iterator[tuple[int, ...]]:
    """Per head: target pixels per head pixel along each spatial dim, in three."""
    for x in tensors.inputs:
        yield in_three([full // own for full, own in zip(tensors.target.shape[2:], x.shape[2:], strict=True)], 1)


def in_three(values: Sequence[int], filler: int) -> tuple[int, ...]:
    """Numbers of the spatial dims, padded to three."""
    return (*(filler,) * (3 - len(values)), *values)


def full_mask(mask: Tensor | None, target: Tensor) -> Tensor | None:
    """The mask as bytes, expanded to the target: a view."""
    return None if mask is None else (mask.view(torch.uint8) if mask.dtype == torch.bool else mask).expand_as(target)


def _as_floats(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.to(torch.float32).contiguous()


def _volume(tensor: Tensor | None) -> tuple[int, ...]:
    if tensor is None:
        return _NO_VOLUME
    stride = tensor.stride()
    return address(tensor), element(tensor), *stride[:2], *in_three(stride[2:], 0)


def _in_place(tensors: Tensors) -> tuple[list[Tensor], Tensor, Tensor | None, tuple[tuple[int, ...], ...], bool]:
    """Heads, target, mask, scales, and whether target and mask have one pixel stride each."""
    target, mask = tensors.target, full_mask(tensors.mask, tensors.target)
    flat = strides(target) is not None and (mask is None or strides(mask) is not None)
    return [in_place(x) for x in tensors.inputs], target, mask, tuple(_scales(tensors)), flat


def _problem(tensors: Tensors, options: Options, gradients: list[Tensor] | None) -> tuple[tuple, tuple]:
    """The first arguments of the extension's forward and backward, and the tensors that must outlive the call."""
    readable, target, mask, scales, single = _in_place(tensors)
    flat = (describe(target), describe(mask)) if single else (ABSENT, ABSENT)
    views = [ABSENT] * len(readable) if gradients is None else map(describe, gradients)
    heads = [
        (describe(x), view, in_three(x.shape[2:], 1), scale)
        for x, view, scale in zip(readable, views, scales, strict=True)
    ]
    weights = options.numbers if tensors.weights is None else tensors.weights.tolist()
    pos_weight = _as_floats(tensors.pos_weight)
    volumes, index = (_volume(target), _volume(mask)), DOWNSAMPLE.index(options.downsample)
    return (*target.shape[:2], heads, weights, flat, volumes, address(pos_weight), index), (readable, pos_weight)


def cpp_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    losses, coefficients = new_outputs(tensors, options._replace(reduction="none"))
    total = losses.new_empty(())
    problem, _alive = _problem(tensors, options, None)
    plausible = backends.extension().deep_supervision_forward(
        *problem,
        *options[2:9],
        EMPTY.index(options.empty),
        address(losses),
        address(total),
        address(coefficients),
        num_threads(),
    )
    dice_bce_backends.check_plausible(plausible, tensors.target, tensors.mask)
    return losses if options.reduction == "none" else total, coefficients


def cpp_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> list[Tensor]:
    recycled = [*_GRADIENTS, *[None] * len(tensors.inputs)]
    gradients = [gradient_like(x, memory) for x, memory in zip(tensors.inputs, recycled, strict=False)]
    problem, _alive = _problem(tensors, options, gradients)
    backends.extension().deep_supervision_backward(
        *problem,
        options.squared_pred,
        address(grad),
        grad.stride(0) if grad.dim() else 0,
        address(coefficients),
        num_threads(),
    )
    return gradients


def triton_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    from ...kernels import deep_supervision_triton

    loss, coefficients = new_outputs(tensors, options)
    deep_supervision_triton.forward(
        *_in_place(tensors),
        options.numbers if tensors.weights is None else tensors.weights.contiguous(),
        _as_floats(tensors.pos_weight),
        loss,
        coefficients,
        DOWNSAMPLE.index(options.downsample),
        *options[2:9],
        EMPTY.index(options.empty),
    )
    return loss, coefficients


def triton_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> list[Tensor]:
    from ...kernels import deep_supervision_triton

    gradients = [gradient_like(x) for x in tensors.inputs]
    deep_supervision_triton.backward(
        grad,
        *_in_place(tensors),
        _as_floats(tensors.pos_weight),
        coefficients,
        gradients,
        DOWNSAMPLE.index(options.downsample),
        options.squared_pred,
    )
    return gradients


BACKENDS = {
    "cpp": (cpp_forward, cpp_backward),
    "triton": (triton_forward, triton_backward),
    "reference": (reference_forward, reference_backward),
}
