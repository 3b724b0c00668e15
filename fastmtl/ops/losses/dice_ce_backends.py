"""The backends of `fastmtl::dice_ce` and its backward: all have the same arguments and outputs.

With t_c = 1 for a pixel's class and 0 elsewhere (or its probabilities), the loss's slopes in the segment sums are h_c
in the cross-entropy of a class, a_c in I, and b_c = q times that in P; g_c = h_c ((1 - smoothing) t_c + smoothing / C):
    u_c = a_c t_c + b_c p_c^(q-1),   dx_c = p_c (u_c + sum_k g_k - sum_k p_k u_k) - g_c
so besides the inputs the backward needs only the three slopes of each segment.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.dice_ce import dice_ce_loss as reference_loss
from ...reference.overlap import OverlapSums, softmax_sums
from ..core import backends
from ..core.buffer_cache import Recycled
from ..core.checks import EMPTY, Backend, Empty, Flag, Fraction, NotNegative, Number
from ..core.class_checks import check_classes, check_shares, raise_if_outside
from ..core.fields import keywords
from ..core.planes import describe, gradient_like, in_place, mask_in_place, pixels
from ..core.pointers import address, element, num_threads
from .class_loss_backends import REDUCTIONS, ClassLoss, kept, reference_coefficients

_GRADIENTS = Recycled()  # for CPU kernels only: a GPU's allocator keeps freed memory anyway


class Options(NamedTuple):
    """The op's arguments that are not tensors, in the order of its schema."""

    ce_weight: Number = 0.5
    dice_weight: Number = 0.5
    ignore_index: int = -100
    label_smoothing: Fraction = 0.0
    include_background: Flag = True
    batch: Flag = False
    squared_pred: Flag = False
    jaccard: Flag = False
    smooth_nr: NotNegative = 1e-5
    smooth_dr: NotNegative = 1e-5
    empty: Empty = "one"
    reduction: str = "mean"
    counts: bool = False
    backend: Backend = "auto"

    @property
    def by_sample(self) -> bool:
        """Whether each sample has a loss."""
        return self.reduction in ("none", "totals")


class Tensors(NamedTuple):
    """The op's tensor arguments, in the order of its schema."""

    input: Tensor  # logits [B, C, *spatial], C >= 2
    target: Tensor  # class numbers [B, 1, *spatial], or probabilities [B, C, *spatial] of any dtype
    weight: Tensor | None  # [C]
    mask: Tensor | None  # bool or uint8 [B, 1, *spatial], or [B, 1, 1, ...]

    @property
    def soft(self) -> bool:
        return self.target.shape[1] != 1


def alone(tensors: Tensors, options: Options) -> bool:
    """Whether this is a cross-entropy of class numbers on a CPU, which has separate kernels."""
    plain = options.dice_weight == 0 and not tensors.soft and not options.counts
    return plain and tensors.input.device.type == "cpu" and options.backend != "triton"


def new_outputs(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised loss, coefficients [3, B, C] (slopes in cross-entropy, I and P) and counts [B, 3 C + 1] or [0].

    If the cross-entropy is `alone` the coefficients are [`kept`, B, 1]: its slopes before the class weights, and the
    numbers its kernels keep.
    """
    input = tensors.input
    dtype, (B, C) = torch.promote_types(input.dtype, torch.float32), input.shape[:2]
    loss = torch.empty((B,) if options.by_sample else (), dtype=dtype, device=input.device)
    counts = torch.empty((B, 3 * C + 1) if options.counts else (0,), dtype=torch.int64, device=input.device)
    slopes = (kept(input), B, 1) if alone(tensors, options) else (3, B, C)
    return loss, torch.empty(slopes, dtype=dtype, device=input.device), counts


def reference(tensors: Tensors, options: Options) -> Tensor:
    """The loss in plain torch, differentiable any number of times."""
    return reference_loss(**tensors._asdict() | _expanded(tensors), **keywords(options, "counts", "backend"))


def _expanded(tensors: Tensors) -> dict[str, Tensor | None]:
    shape = (tensors.input.shape[0], 1, *tensors.input.shape[2:])
    return {"mask": None if tensors.mask is None else tensors.mask.expand(shape)}


def reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    check_classes(tensors.target, tensors.mask, tensors.input, options.ignore_index)
    loss, coefficients, counts = new_outputs(tensors, options)
    coefficients.copy_(_reference_coefficients(tensors, options))
    if options.counts:
        counts.copy_(_reference_counts(tensors, options))
    return loss.copy_(reference(tensors, options)), coefficients, counts


def _reference_coefficients(tensors: Tensors, o: Options) -> Tensor:
    """The slopes, as `new_outputs` shapes them."""
    mask = _expanded(tensors)["mask"]
    sums, _ = softmax_sums(tensors.input, tensors.target, mask, o.ignore_index, o.squared_pred)
    if alone(tensors, o):
        over = _divisor(sums, tensors.weight, tensors.soft, o)
        of_pixel = (o.ce_weight / over).expand(tensors.input.shape[0], 1).squeeze(1)
        found = reference_coefficients(of_pixel, tensors.input, tensors.target, tensors.mask, o.ignore_index)
        return found.unsqueeze(-1)
    return slopes_of_sums(sums, tensors.weight, tensors.soft, o)


def _class_weights(sums: OverlapSums, weight: Tensor | None) -> Tensor:
    return torch.ones_like(sums.target[0]) if weight is None else weight.to(sums.target.dtype)


def _divisor(sums: OverlapSums, weight: Tensor | None, soft: bool, o: Options) -> Tensor:
    """Of the cross-entropy: [B, 1], or one number for the whole batch."""
    over = sums.elements[:, :1]
    over = over if soft else (_class_weights(sums, weight) * sums.target).sum(1, keepdim=True)
    over = over.sum() if o.reduction == "mean" else over
    return torch.ones_like(over) if o.reduction in ("total", "totals") else torch.where(over == 0, 1.0, over)


def slopes_of_sums(sums: OverlapSums, weight: Tensor | None, soft: bool, o: Options) -> Tensor:
    """The loss's slopes [3, B, C] in cross-entropy, I and P, from the sums of each class of each sample; soft: whether
    the target was probabilities."""
    w = _class_weights(sums, weight)
    i, p, t, _, elements = (s.sum(0, keepdim=True) if o.batch else s for s in sums)
    pair = (t == 0) & (p == 0)
    counted = (elements > 0) & ((t != 0) | (o.empty != "skip"))
    if not o.include_background:
        counted = counted & (torch.arange(w.numel(), device=w.device) > 0)
    number = counted.sum(1, keepdim=True)
    number = number.sum() if o.reduction == "mean" else number
    denominator = torch.where(pair, 1.0, (2 * (p + t - i) if o.jaccard else p + t) + o.smooth_dr)
    score = (2 * i + o.smooth_nr) / denominator
    scale = torch.where(counted & ~pair, o.dice_weight * w / number.clamp(min=1), 0.0)
    # Without a Dice term a NaN score, from an infinite logit, must not reach the other pixels.
    of_i = torch.where(scale == 0, 0.0, scale * (-2 - 2 * score * o.jaccard) / denominator)
    of_p = torch.where(scale == 0, 0.0, scale * (1 + o.jaccard) * (1 + o.squared_pred) * score / denominator)
    of_ce = w * (o.ce_weight / _divisor(sums, weight, soft, o))
    return torch.stack([slopes.expand_as(sums.target) for slopes in (of_ce, of_i, of_p)])


def _reference_counts(tensors: Tensors, options: Options) -> Tensor:
    """[B, 3 C + 1]."""
    B, C = tensors.input.shape[:2]
    x, index = tensors.input.reshape(B, C, -1), tensors.target.reshape(B, 1, -1).long()
    mask, classes = _expanded(tensors)["mask"], torch.arange(C, device=x.device).view(C, 1)
    valid = index != options.ignore_index
    valid = valid if mask is None else valid & mask.bool().reshape(B, 1, -1)
    largest = torch.where(x.isnan(), float("-inf"), x).argmax(1, keepdim=True)  # NaN is never the largest
    predicted = (largest == classes) & valid
    true = (index == classes) & valid
    parts = [(predicted & true).sum(2), (predicted & ~true).sum(2), (~predicted & true).sum(2)]
    odd = (~x.isfinite()).any(1, keepdim=True) & valid
    return torch.cat([*parts, odd.sum(2)], 1)


def gradient_by_formula(
    input: Tensor, target: Tensor, mask: Tensor | None, slopes: Tensor, ignore_index: int, smoothing: float, q: int
) -> Tensor:
    """The gradient from slopes [3, B, C] that include grad, with the formula above."""
    B, C = input.shape[:2]
    p = input.reshape(B, C, -1).to(slopes.dtype).softmax(1)
    valid = torch.ones_like(p[:, :1], dtype=torch.bool)
    if mask is not None:
        valid = mask.expand(B, 1, *input.shape[2:]).bool().reshape(B, 1, -1)
    if target.shape[1] == 1:
        index = target.reshape(B, 1, -1).long()
        valid = valid & (index != ignore_index)
        t = (index == torch.arange(C, device=p.device).view(C, 1)).to(p.dtype)
    else:
        t = target.reshape(B, C, -1).to(p.dtype)
    h, a, b = slopes.unsqueeze(-1)
    g, u = h * ((1 - smoothing) * t + smoothing / C), a * t + b * p ** (q - 1)
    gradient = p * (u + (g - p * u).sum(1, keepdim=True)) - g
    return gradient_like(input).copy_(torch.where(valid, gradient, 0.0).view(input.shape))


def _slopes(grad: Tensor, coefficients: Tensor) -> Tensor:
    return coefficients * grad.view(-1, 1)


def reference_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    q, slopes = 2 if options.squared_pred else 1, _slopes(grad, coefficients)
    input, target, weight, mask = tensors
    if alone(tensors, options):
        of_ce = slopes[:1].expand(1, -1, input.shape[1]) * (1 if weight is None else weight.to(slopes.dtype))
        slopes = torch.cat([of_ce, torch.zeros_like(of_ce).expand(2, -1, -1)])
    return gradient_by_formula(input, target, mask, slopes, options.ignore_index, options.label_smoothing, q)


def readable(input: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same tensors with one pixel stride each; copies only tensors without one."""
    shape = torch.Size((input.shape[0], 1, *input.shape[2:]))
    return in_place(input), in_place(target), None if mask is None else mask_in_place(mask, shape)


def problem(input: Tensor, target: Tensor, mask: Tensor | None, ignore_index: int) -> tuple[object, ...]:
    """The arguments of `dice_ce_problem` in csrc/bindings/softmax_losses.cpp before the flags."""
    shape = (input.shape[0], input.shape[1], pixels(input))
    return shape, describe(input), describe(target), describe(mask), ignore_index


def _flags(tensors: Tensors, o: Options) -> tuple[bool, ...]:
    return tensors.soft, o.squared_pred, o.dice_weight != 0, o.label_smoothing > 0, o.counts


def _weight(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.to(torch.float32).contiguous()


def _cross_entropy(tensors: Tensors, o: Options) -> ClassLoss:
    input, target, mask = readable(tensors.input, tensors.target, tensors.mask)
    return ClassLoss(input, target, mask, _weight(tensors.weight), o.ignore_index, 0.0, o.label_smoothing, True)


def cpp_forward(tensors: Tensors, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    if alone(tensors, o):
        loss, coefficients, counts = new_outputs(tensors, o)
        outside = _cross_entropy(tensors, o).forward(o.ce_weight, o.reduction, loss, coefficients)
        raise_if_outside(outside, tensors.input.shape[1])
        return loss, coefficients, counts
    input, target, mask = readable(tensors.input, tensors.target, tensors.mask)
    check_shares(target, mask)
    loss, coefficients, counts = new_outputs(tensors, o)
    weight = _weight(tensors.weight)
    outside = backends.extension().dice_ce_forward(
        *problem(input, target, mask, o.ignore_index),
        _flags(tensors, o),
        address(weight),
        o.ce_weight,
        o.dice_weight,
        o.label_smoothing,
        o.include_background,
        o.batch,
        o.jaccard,
        o.smooth_nr,
        o.smooth_dr,
        EMPTY.index(o.empty),
        REDUCTIONS.index(o.reduction),
        address(loss),
        address(coefficients),
        address(counts) if o.counts else 0,
        num_threads(),
    )
    raise_if_outside(outside, input.shape[1])
    return loss, coefficients, counts


def cpp_gradient(
    input: Tensor,
    arguments: tuple[object, ...],
    flags: tuple[bool, ...],
    grad: Tensor,
    slopes: Tensor,
    smoothing: float,
) -> Tensor:
    """grad: float32 of one element, or [B] with any stride. `input` as the user passed it, `arguments` of its readable
    form."""
    gradient = gradient_like(input, _GRADIENTS)
    grad_planes = (address(grad), element(grad), grad.stride(0) if grad.dim() else 0, 0, 0)
    backends.extension().dice_ce_backward(
        *arguments, flags, grad_planes, address(slopes), smoothing, describe(gradient), num_threads()
    )
    return gradient


def cpp_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, o: Options) -> Tensor:
    if alone(tensors, o):
        return _cross_entropy(tensors, o).backward(grad, coefficients, tensors.input, _GRADIENTS)
    planes = readable(
        tensors.input, tensors.target, tensors.mask
    )  # named, so that copies outlive the kernel, which only gets addresses
    arguments = problem(*planes, o.ignore_index)
    return cpp_gradient(tensors.input, arguments, _flags(tensors, o), grad, coefficients, o.label_smoothing)


def triton_forward(tensors: Tensors, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    from ...kernels import dice_ce_triton

    input, target, mask = readable(tensors.input, tensors.target, tensors.mask)
    loss, coefficients, counts = new_outputs(tensors, o)
    dice_ce_triton.forward(
        input,
        target,
        _weight(tensors.weight),
        mask,
        loss,
        coefficients,
        counts.zero_() if o.counts else None,
        *o[:10],
        EMPTY.index(o.empty),
        REDUCTIONS.index(o.reduction),
    )
    return loss, coefficients, counts


def triton_gradient(
    tensors: tuple[Tensor, Tensor, Tensor | None],
    grad: Tensor,
    slopes: Tensor,
    ignore_index: int,
    smoothing: float,
    squared: bool,
    overlap: bool,
    by_class: bool = True,
) -> Tensor:
    """grad: one element, or [B] with any stride; by_class: whether the slopes in the cross-entropies of classes
    differ."""
    from ...kernels import softmax_gradient_triton

    gradient = gradient_like(tensors[0])
    softmax_gradient_triton.backward(
        grad, *readable(*tensors), slopes, gradient, ignore_index, smoothing, squared, overlap, by_class
    )
    return gradient


def triton_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, o: Options) -> Tensor:
    planes = tensors.input, tensors.target, tensors.mask
    return triton_gradient(
        planes,
        grad,
        coefficients,
        o.ignore_index,
        o.label_smoothing,
        o.squared_pred,
        o.dice_weight != 0,
        by_class=tensors.weight is not None,
    )


BACKENDS = {
    "cpp": (cpp_forward, cpp_backward),
    "triton": (triton_forward, triton_backward),
    "reference": (reference_forward, reference_backward),
}
