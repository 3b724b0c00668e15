"""The gradient of softmax losses for NVIDIA GPUs, from the derivatives of the loss with respect to the segment sums;
see dice_ce_backends.py. The kernel here is for up to 32 classes, with helpers from class_registers_triton.py;
softmax_tiles_gradient_triton.py has more.
"""

# ruff: noqa: RUF005  kernels cannot unpack a tuple into another

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .class_registers_triton import (
    again,
    as_logits,
    channels_last,
    exponentials,
    few_classes,
    lanes,
    largest,
    may_ignore,
    read_classes,
    read_labels,
    without_own,
    write_classes,
)
from .planes_triton import BY_PIXEL, LAUNCH, NO_MASK, as_planes, exp_fast, mask_kind, reciprocal, unit, visible_pixels
from .softmax_tiles_gradient_triton import tiled_gradient


@triton.jit
def _read_slopes(slopes, go, C: tl.constexpr, STEP: tl.constexpr):
    found = ()
    for c in tl.static_range(C):
        found = found + (go * tl.load(slopes + c * STEP),)
    return found


@triton.jit
def softmax_gradient(
    grad, gb, x, t, m, coefficients, out,
    xb, xc, xs, tb, tc, ts, mb, ms, ob, oc, os,
    ignore_index, pixels, blocks, planes, smoothing,
    C: tl.constexpr, LEVELS: tl.constexpr, LAST: tl.constexpr, LAST_OUT: tl.constexpr,
    SQUARED: tl.constexpr, OVERLAP: tl.constexpr, SPREAD: tl.constexpr, SOFT: tl.constexpr, BY_CLASS: tl.constexpr,
    MASK: tl.constexpr, IGNORES: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr, VEC_LEVELS: tl.constexpr,
):  # fmt: skip
    """out = grad * d loss / d logits, all classes of one block of pixels; grid [blocks * B]. Without BY_CLASS the
    slope in the cross-entropy is the same for all classes."""
    pid = tl.program_id(0)
    b = (pid // blocks).to(tl.int64)
    visible = visible_pixels(m, mb, 0, b, 0, pixels, MASK)
    go = tl.load(grad + b * gb).to(tl.float32)
    x += b * xb
    t += b * tb
    if MASK == BY_PIXEL:
        m += b * mb
    slopes = coefficients + b * C
    places = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    offsets = (pid % blocks).to(tl.int64) * (LANES * VEC) + places
    index, valid = read_labels(t, ts, m, ms, offsets, visible, ignore_index, C, SOFT, MASK, IGNORES)
    values = read_classes(x, xc, xs, offsets, visible, C, LAST, LEVELS, "evict_first")
    logits = as_logits(values, valid, C, MASK != BY_PIXEL and not IGNORES)
    if SOFT:
        e, total = exponentials(logits, largest(logits, C), C)
        inverse = reciprocal(total)
    else:
        top, own_logit, others = without_own(logits, index, C)
        e, other = exponentials(others, top, C)
        own = exp_fast(own_logit - top)
        inverse = reciprocal(own + other)
        own_p = own * inverse
        rest = other * inverse  # 1 - own_p

    zero = tl.zeros([LANES, VEC], tl.float32)
    kept = 1.0 - smoothing
    per_class = smoothing / C
    h = _read_slopes(slopes, go, C, 1 if BY_CLASS else 0)  # in cross-entropy
    a = _read_slopes(slopes + planes, go, C, 1)  # in I
    slope = _read_slopes(slopes + 2 * planes, go, C, 1)  # in P
    own_h, own_a, own_slope, others_slope, soft = zero, zero, zero, zero, zero
    all_h = 0.0
    targets = ()
    for c in tl.static_range(C):
        all_h += h[c]
        if SOFT:
            target = tl.load(t + c * tc + offsets * ts, mask=offsets < visible, other=0).to(tl.float32)
            targets = targets + (unit(target),)
            soft += kept * h[c] * targets[c]
        elif BY_CLASS:
            own_h = tl.where(index == c, h[c], own_h)
        if OVERLAP:
            if SOFT:
                soft -= e[c] * inverse * a[c] * targets[c]
            else:
                own_a = tl.where(index == c, a[c], own_a)
                own_slope = tl.where(index == c, slope[c], own_slope)
            others_slope += (e[c] * e[c] if SQUARED else e[c]) * slope[c]
    if not BY_CLASS and not SOFT:
        own_h = zero + h[0]
    base = all_h * per_class if SPREAD else 0.0
    common = soft + base if SOFT else kept * own_h + base
    if OVERLAP:
        others_slope *= inverse * inverse if SQUARED else inverse
        common -= others_slope
    if not SOFT:
        at_own = own_p * base - (kept * rest + per_class) * own_h
        if OVERLAP:
            u = own_a + (own_slope * own_p if SQUARED else own_slope)
            common -= own_p * u
            at_own += own_p * (u * rest - others_slope)
        index = again(index, own_p)
    values = ()
    for c in tl.static_range(C):
        p = e[c] * inverse
        u = common
        if OVERLAP:
            u += slope[c] * p if SQUARED else slope[c]
            if SOFT:
                u += a[c] * targets[c]
        value = p * u
        if SPREAD:
            value -= per_class * h[c]
        if SOFT:
            value -= kept * h[c] * targets[c]
        else:
            value = tl.where(index == c, at_own, value)
        values = values + (value,)
    # A NaN coefficient must not reach invalid pixels either.
    clean: tl.constexpr = MASK == NO_MASK and not IGNORES
    write_classes(out + b * ob, oc, os, offsets, pixels, values, valid, C, LAST_OUT, LEVELS, clean)


def backward(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None,
    coefficients: torch.Tensor, gradient: torch.Tensor,
    ignore_index: int, smoothing: float, squared: bool, overlap: bool, by_class: bool,
) -> None:  # fmt: skip
    """Fills gradient [B, C, *spatial] from grad [B] (any stride) or one number, and the coefficients of `forward`.
    by_class: whether the slopes in the cross-entropies of classes differ."""
    (B, C), pixels, soft = input.shape[:2], math.prod(input.shape[2:]), target.shape[1] != 1
    arguments = grad, grad.stride(0) if grad.dim() else 0, input, target, mask, coefficients, gradient
    with torch.cuda.device_of(input):
        if not few_classes(C):
            tiled_gradient(*arguments, ignore_index, smoothing, squared, overlap)
            return
        shape = lanes(input, pixels, 2 if soft else 1)
        blocks = triton.cdiv(pixels, shape["LANES"] * shape["VEC"])
        (x, xs), (t, ts), (m, (mb, _, ms)) = as_planes(input), as_planes(target), as_planes(mask)
        out, os = as_planes(gradient)
        softmax_gradient[(blocks * B,)](
            *arguments[:2], x, t, m, coefficients, out, *xs, *ts, mb, ms, *os,
            ignore_index, pixels, blocks, B * C, smoothing,
            LAST_OUT=shape["LAST"] and channels_last(os, C), SQUARED=squared, OVERLAP=overlap,
            SPREAD=smoothing > 0, SOFT=soft, BY_CLASS=by_class,
            MASK=mask_kind(m, ms), IGNORES=not soft and may_ignore(target, ignore_index), **shape, **LAUNCH,
        )  # fmt: skip
