"""The backends of `fastmtl::dice_bce` and its backward: all have the same arguments and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.dice_bce import dice_bce_loss as reference_loss
from ...reference.dice_bce import segment_sums
from ..core import backends, checks
from ..core.buffer_cache import Recycled
from ..core.checks import EMPTY, Backend, Empty, Flag, NotNegative, Number
from ..core.fields import keywords
from ..core.planes import ABSENT, describe, gradient_like, in_place, mask_in_place, pixels
from ..core.pointers import address, num_threads

_GRADIENTS = Recycled()  # for CPU kernels only: a GPU's allocator keeps freed memory anyway
REDUCTIONS = (*checks.REDUCTIONS, "total")  # "total" is private: "sum" without dividing the BCE by elements


class Options(NamedTuple):
    """The op's arguments that are not tensors, in the order of its schema."""

    bce_weight: Number = 0.5
    dice_weight: Number = 0.5
    batch: Flag = False
    squared_pred: Flag = False
    jaccard: Flag = False
    smooth_nr: NotNegative = 1e-5
    smooth_dr: NotNegative = 1e-5
    empty: Empty = "one"
    reduction: str = "mean"
    counts: bool = False
    groups: int = 1  # number of equal groups in the batch, each reduced separately: vmap folds its dim into them
    backend: Backend = "auto"

    def loss_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Shape of the loss of logits `shape`, with a leading dim of groups if there are several."""
        groups = () if self.groups == 1 else (self.groups,)
        if self.reduction != "none":
            return groups
        return (*groups, shape[1]) if self.batch else (*groups, shape[0] // self.groups, shape[1])

    def grad_planes(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of the loss for each plane, [B, C]; a view if there is one group."""
        samples = shape[0] // self.groups
        if self.reduction != "none":
            grad = grad.view(self.groups, 1, 1)
        else:
            grad = grad.reshape(self.groups, 1 if self.batch else samples, shape[1])
        return grad.expand(self.groups, samples, shape[1]).reshape(shape[0], shape[1])


class Tensors(NamedTuple):
    """The op's tensor arguments, in the order of its schema."""

    input: Tensor  # logits [B, C, *spatial]
    target: Tensor  # [B, C, *spatial], any dtype
    pos_weight: Tensor | None  # [groups * C]
    weight: Tensor | None  # [groups * C]
    mask: Tensor | None  # bool or uint8, as many dims as input, broadcastable to it

    def split(self, groups: int) -> list[Tensors]:
        """One per group; the weights are then [C]."""
        if groups == 1:
            return [self]
        parts = [
            [value] * groups if value is None or (name == "mask" and value.shape[0] == 1) else value.chunk(groups)
            for name, value in zip(self._fields, self, strict=True)
        ]
        return [Tensors(*group) for group in zip(*parts, strict=True)]


def new_outputs(input: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised loss, coefficients [3, B, C]: its slopes in each segment's BCE sum, I and P, and counts [4, B, C]:
    true positives, false positives, false negatives, logits that are not finite; [0] if not requested."""
    dtype, planes = torch.promote_types(input.dtype, torch.float32), input.shape[:2]
    loss = torch.empty(options.loss_shape(input.shape), dtype=dtype, device=input.device)
    coefficients = torch.empty((3, *planes), dtype=dtype, device=input.device)
    return (
        loss,
        coefficients,
        torch.empty((4, *planes) if options.counts else 0, dtype=torch.int64, device=input.device),
    )


def reference(tensors: Tensors, options: Options) -> Tensor:
    """The loss in plain torch, differentiable any number of times."""
    settings = keywords(options, "counts", "groups", "backend")
    losses = [reference_loss(**group._asdict(), **settings) for group in tensors.split(options.groups)]
    return losses[0] if options.groups == 1 else torch.stack(losses)


def reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    tensors = tensors._replace(target=checks.unit_or_nan(tensors.target, tensors.mask))
    loss, coefficients, counts = new_outputs(tensors.input, options)
    groups = zip(tensors.split(options.groups), coefficients.chunk(options.groups, 1), strict=True)
    for group, out in groups:
        out.copy_(_reference_coefficients(group, options))
    if options.counts:
        counts.copy_(reference_counts(tensors.input, tensors.target, tensors.mask))
    return loss.copy_(reference(tensors, options)), coefficients, counts


def reference_counts(input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """The four counts of each channel of sigmoid logits [B, C, *spatial], int64 [4, B, C]."""
    predicted, wanted = input > 0, target >= 0.5 if target.is_floating_point() else target > 0
    kinds = (predicted & wanted, predicted & ~wanted, ~predicted & wanted, ~input.isfinite())
    valid = torch.ones_like(predicted) if mask is None else mask.bool()
    return torch.stack([(kind & valid).flatten(2).sum(2) for kind in kinds])


def _reference_coefficients(tensors: Tensors, o: Options) -> Tensor:
    """[3, B, C] or [3, 1, C] of one group."""
    input, target, pos_weight, weight, mask = tensors
    return slopes_of_sums(segment_sums(input, target, pos_weight, mask, o.batch, o.squared_pred), weight, o)


def slopes_of_sums(sums: Sequence[Tensor], weight: Tensor | None, o: Options) -> Tensor:
    """The loss's slopes in BCE, I and P, [3, B, C] or [3, 1, C], from the sums I, P, T, BCE and elements of each
    segment, [B, C] or [C], by the formulas at the top of dice_bce.py.

    A number divided by an integer tensor is float32 for any logits, so counts are converted first.
    """
    i, p, t, _, elements = sums
    counted = (elements > 0) & ((t != 0) | (o.empty != "skip"))
    i, p, t = (torch.where(counted, part, 0.0) for part in (i, p, t))  # a NaN that does not count must not spread
    empty_pair = (t == 0) & (p == 0)
    denominator = torch.where(empty_pair, 1.0, (2 * (p + t - i) if o.jaccard else p + t) + o.smooth_dr)
    score = (2 * i + o.smooth_nr) / denominator
    scale = o.dice_weight if weight is None else o.dice_weight * weight.to(score.dtype)
    if o.reduction == "mean":
        elements, scale = elements.sum(), scale / counted.sum().clamp(min=1).to(i.dtype)
    scale = torch.where(counted & ~empty_pair, scale, 0.0)
    of_i = scale * (-2 - 2 * score * o.jaccard) / denominator
    of_p = scale * (1 + o.jaccard) * (1 + o.squared_pred) * score / denominator
    divisor = torch.ones_like(i) if o.reduction == "total" else elements.clamp(min=1).to(i.dtype)
    of_bce = o.bce_weight / divisor
    return torch.stack([of_bce.expand_as(i), of_i, of_p]).view(3, -1, i.shape[-1])


def reference_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    """Plain torch with the kernels' formula, because autograd does not run inside an op."""
    planes = coefficients * options.grad_planes(grad, tensors.input.shape)
    groups = zip(tensors.split(options.groups), planes.chunk(options.groups, 1), strict=True)
    gradients = [reference_gradient(group, planes, options.squared_pred) for group, planes in groups]
    return gradient_like(tensors.input).copy_(torch.cat(gradients))


def reference_gradient(tensors: Tensors, slopes: Tensor, squared_pred: bool) -> Tensor:
    """The gradient from the three slopes [3, B, C] of each plane."""
    input, target, pos_weight, _, mask = tensors
    of_bce, of_i, of_p = slopes.view(*slopes.shape, *(1,) * (input.dim() - 2))
    x, t = input.to(slopes.dtype), target.to(slopes.dtype)
    p, q = x.sigmoid(), (-x).sigmoid()
    positive = t if pos_weight is None else t * pos_weight.to(x.dtype).view(-1, *(1,) * (x.dim() - 2))
    gradient = of_bce * ((1 - t) * p - positive * q) + (of_i * t + of_p * p**squared_pred) * p * q
    return gradient if mask is None else torch.where(mask.bool(), gradient, 0.0)


def readable(tensors: Tensors) -> Tensors:
    """The same tensors with one pixel stride each and float32 weights; copies only tensors without one."""
    input, target, pos_weight, weight, mask = tensors
    return Tensors(
        in_place(input),
        in_place(target),
        None if pos_weight is None else pos_weight.to(torch.float32).contiguous(),
        None if weight is None else weight.to(torch.float32).contiguous(),
        None if mask is None else mask_in_place(mask, input.shape),
    )


def cpp_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    input, target, pos_weight, weight, mask = readable(tensors)
    loss, coefficients, counts = new_outputs(input, options)
    plausible = backends.extension().dice_bce_forward(
        (options.groups, input.shape[0], input.shape[1], pixels(input)),
        describe(input),
        describe(target),
        describe(mask),
        address(pos_weight),
        address(weight),
        *options[:7],
        EMPTY.index(options.empty),
        REDUCTIONS.index(options.reduction),
        address(loss),
        address(coefficients),
        address(counts if options.counts else None),
        num_threads(),
    )
    check_plausible(plausible, target, mask)
    return loss, coefficients, counts


def check_plausible(plausible: bool, target: Tensor, mask: Tensor | None) -> None:
    """Raise if a kernel found `target` outside 0 to 1."""
    if not plausible:
        checks.unit(target, mask)


def cpp_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    planes = options.grad_planes(grad, tensors.input.shape)
    return cpp_gradient(planes, tensors, coefficients, options.squared_pred, options.groups)


def cpp_gradient(grad: Tensor, tensors: Tensors, slopes: Tensor, squared_pred: bool, groups: int) -> Tensor:
    """grad [B, C] times the gradient from the slopes [3, B, C]."""
    input, target, pos_weight, _, mask = readable(tensors)
    gradient = gradient_like(tensors.input, _GRADIENTS)
    backends.extension().dice_bce_backward(
        (groups, input.shape[0], input.shape[1], pixels(input)),
        describe(input),
        describe(target),
        describe(mask),
        address(pos_weight),
        squared_pred,
        (address(grad), *ABSENT[:1], *grad.stride(), 0),
        address(slopes),
        describe(gradient),
        num_threads(),
    )
    return gradient


def triton_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    from ...kernels import dice_bce_triton

    tensors = readable(tensors)
    loss, coefficients, counts = new_outputs(tensors.input, options)
    dice_bce_triton.forward(
        *tensors,
        loss,
        coefficients,
        counts.zero_() if options.counts else None,
        *options[:7],
        EMPTY.index(options.empty),
        REDUCTIONS.index(options.reduction),
        options.groups,
    )
    return loss, coefficients, counts


def triton_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    planes = options.grad_planes(grad, tensors.input.shape)
    return triton_gradient(planes, tensors, coefficients, options.squared_pred, options.groups)


def triton_gradient(grad: Tensor, tensors: Tensors, slopes: Tensor, squared_pred: bool, groups: int) -> Tensor:
    """As `cpp_gradient`."""
    from ...kernels import dice_bce_triton

    input, target, pos_weight, _, mask = readable(tensors)
    gradient = gradient_like(tensors.input)
    dice_bce_triton.backward(grad, input, target, pos_weight, mask, slopes, gradient, squared_pred, groups)
    return gradient


BACKENDS = {
    "cpp": (cpp_forward, cpp_backward),
    "triton": (triton_forward, triton_backward),
    "reference": (reference_forward, reference_backward),
}
