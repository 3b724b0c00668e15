"""Softmax focal loss on class numbers for NVIDIA GPUs: sums, the finaliser of focal_triton.py, and a gradient.

csrc/losses/class_loss_cpu.cpp has the formulas. Threads hold all classes of their pixels (class_registers_triton.py);
focal_softmax_tiles_triton.py has the plan for more classes. In both the softmax is computed once in the forward and
once in the backward, and nothing of the size of the logits is written but the gradient.
"""
# ruff: noqa: RUF005  kernels cannot unpack a tuple into another

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .class_registers_triton import (
    above_one,
    again,
    as_logits,
    channels_last,
    exponentials,
    few_classes,
    lanes,
    log1p_positive,
    may_ignore,
    read_classes,
    read_labels,
    without_own,
    write_classes,
)
from .focal_softmax_tiles_triton import tiled_gradient, tiled_sums
from .focal_triton import LARGEST, exponent_code, finish_sums, focal_power
from .planes_triton import BY_PIXEL, LAUNCH, NO_MASK, as_planes, exp_fast, mask_kind, reciprocal, visible_pixels


@triton.jit
def _softmax_pixels(
    x, t, m, factors, xb, xc, xs, tb, ts, mb, ms, b, offsets, visible, ignore_index,
    C: tl.constexpr, LEVELS: tl.constexpr, LAST: tl.constexpr, MASK: tl.constexpr, IGNORES: tl.constexpr,
    HAS_FACTORS: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """For each pixel: its class, the exponentials of the others, 1 / their sum with its own, p_y, 1 - p_y, -log p_y,
    a_y, and whether it is valid."""
    if MASK == BY_PIXEL:
        m += b * mb
    index, valid = read_labels(t + b * tb, ts, m, ms, offsets, visible, ignore_index, C, False, MASK, IGNORES)
    values = read_classes(x + b * xb, xc, xs, offsets, visible, C, LAST, LEVELS, EVICTION)
    top, own_logit, others = without_own(as_logits(values, valid, C, MASK != BY_PIXEL and not IGNORES), index, C)
    e, other = exponentials(others, top, C)
    own = exp_fast(own_logit - top)
    inverse = reciprocal(own + other)
    loss = log1p_positive(above_one(own, other)) + (top - own_logit)
    # Raising for an invalid class number would wait for the device.
    loss = tl.where(index.to(tl.uint32, bitcast=True) < C, loss, float("nan"))
    factor = tl.full(loss.shape, 1.0, tl.float32)
    if HAS_FACTORS:
        for c in tl.static_range(C):
            factor = tl.where(index == c, tl.load(factors + c), factor)
    return index, e, inverse, own * inverse, other * inverse, loss, factor, valid


@triton.jit
def softmax_focal_sums(
    x, t, m, factors, partials,
    xb, xc, xs, tb, ts, mb, ms,
    pixels, chunk, splits, samples, gamma, ignore_index,
    GAMMA: tl.constexpr, MASK: tl.constexpr, IGNORES: tl.constexpr, HAS_FACTORS: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr, LAST: tl.constexpr,
    LANES: tl.constexpr, VEC: tl.constexpr, VEC_LEVELS: tl.constexpr,
):  # fmt: skip
    """One split of one sample; grid [splits * samples]."""
    pid = tl.program_id(0)
    split = pid % splits
    b = (pid // splits).to(tl.int64)
    visible = visible_pixels(m, mb, 0, b, 0, pixels, MASK)
    losses = tl.zeros([LANES], tl.float32)
    elements = tl.zeros([LANES], tl.float32)
    places = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    first = split.to(tl.int64) * chunk
    for start in range(0, chunk, LANES * VEC):
        index, e, inverse, own_p, rest, loss, factor, valid = _softmax_pixels(
            x, t, m, factors, xb, xc, xs, tb, ts, mb, ms, b, first + start + places, visible, ignore_index,
            C, LEVELS, LAST, MASK, IGNORES, HAS_FACTORS, "evict_last",
        )  # fmt: skip
        losses += tl.sum(tl.where(valid, factor * focal_power(rest, gamma, GAMMA) * loss, 0.0), 1)
        if MASK == BY_PIXEL or IGNORES:
            elements += tl.sum(valid.to(tl.float32), 1)
    if MASK == BY_PIXEL or IGNORES:
        number = tl.sum(elements)
    else:
        number = tl.maximum(tl.minimum(visible - first, chunk), 0).to(tl.float32)
    part = b * splits + split
    tl.store(partials + part, tl.sum(losses))
    tl.store(partials + tl.cast(samples, tl.int64) * splits + part, number)


@triton.jit
def softmax_focal_gradient(
    grad, gb, x, t, m, factors, coefficients, out,
    xb, xc, xs, tb, ts, mb, ms, ob, oc, os,
    pixels, blocks, gamma, ignore_index,
    GAMMA: tl.constexpr, MASK: tl.constexpr, IGNORES: tl.constexpr, HAS_FACTORS: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr, LAST: tl.constexpr, LAST_OUT: tl.constexpr,
    LANES: tl.constexpr, VEC: tl.constexpr, VEC_LEVELS: tl.constexpr,
):  # fmt: skip
    """out = grad * d loss / d logits, one block of pixels; grid [blocks * samples]."""
    pid = tl.program_id(0)
    b = (pid // blocks).to(tl.int64)
    places = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    offsets = (pid % blocks).to(tl.int64) * (LANES * VEC) + places
    visible = visible_pixels(m, mb, 0, b, 0, pixels, MASK)
    index, e, inverse, own_p, rest, exact, factor, valid = _softmax_pixels(
        x, t, m, factors, xb, xc, xs, tb, ts, mb, ms, b, offsets, visible, ignore_index,
        C, LEVELS, LAST, MASK, IGNORES, HAS_FACTORS, "evict_first",
    )  # fmt: skip
    loss = tl.where(exact > LARGEST, LARGEST, exact)  # times p_y = 0 of an infinite logit: 0, not NaN
    surprise = own_p * loss
    power = focal_power(rest, gamma, GAMMA)
    if GAMMA == 0:
        slope = power + 0.0 * loss  # NaN for an invalid class number
    elif GAMMA == 1:
        slope = power + surprise
    elif GAMMA == 2:
        slope = power + 2.0 * rest * surprise
    else:
        slope = power * (1.0 + gamma * tl.where(rest > 0, surprise / rest, 0.0))
    weight = tl.load(grad + b * gb).to(tl.float32) * tl.load(coefficients + b) * factor * slope
    index = again(index, own_p)
    inverse *= weight
    values = ()
    for c in tl.static_range(C):
        values = values + (tl.where(index == c, -rest * weight, e[c] * inverse),)
    clean: tl.constexpr = MASK == NO_MASK and not IGNORES
    write_classes(out + b * ob, oc, os, offsets, pixels, values, valid, C, LAST_OUT, LEVELS, clean)


def _sums(
    input: torch.Tensor, target: torch.Tensor, factors: torch.Tensor | None, mask: torch.Tensor | None,
    gamma: float, ignore_index: int,
) -> tuple[torch.Tensor, int]:  # fmt: skip
    """Partials [2, B, splits], flat: losses, valid pixels."""
    (samples, C), pixels = input.shape[:2], math.prod(input.shape[2:])
    shape = lanes(input, pixels, 1)
    block = shape["LANES"] * shape["VEC"]
    chunk = block * max(1, triton.cdiv(samples * pixels, max(512, 2048 // C) * block))
    splits = triton.cdiv(pixels, chunk)
    partials = torch.empty(2 * samples * splits, dtype=torch.float32, device=input.device)
    (x, xs), (t, ts), (m, ms) = as_planes(input), as_planes(target), as_planes(mask)
    softmax_focal_sums[(splits * samples,)](
        x, t, m, factors, partials, *xs, ts[0], ts[2], ms[0], ms[2], pixels, chunk, splits, samples,
        gamma, ignore_index, GAMMA=exponent_code(gamma), MASK=mask_kind(m, ms[2]),
        IGNORES=may_ignore(target, ignore_index), HAS_FACTORS=factors is not None, **shape, **LAUNCH,
    )  # fmt: skip
    return partials, splits


def forward(
    input: torch.Tensor, target: torch.Tensor, factors: torch.Tensor | None, mask: torch.Tensor | None,
    loss: torch.Tensor, coefficients: torch.Tensor, gamma: float, ignore_index: int, reduction: int,
) -> None:  # fmt: skip
    """Fills loss and coefficients [B]. target and mask are [B, 1, *spatial]."""
    with torch.cuda.device_of(input):
        arguments = input, target, factors, mask, gamma, ignore_index
        partials, splits = _sums(*arguments) if few_classes(input.shape[1]) else tiled_sums(*arguments)
        finish_sums(partials, loss, coefficients, splits, reduction)


def backward(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, factors: torch.Tensor | None,
    mask: torch.Tensor | None, coefficients: torch.Tensor, gradient: torch.Tensor, gamma: float, ignore_index: int,
) -> None:  # fmt: skip
    """Fills gradient [B, C, *spatial] from grad [B] and the coefficients of `forward`."""
    (samples, C), pixels = input.shape[:2], math.prod(input.shape[2:])
    with torch.cuda.device_of(input):
        if not few_classes(C):
            tiled_gradient(grad, input, target, factors, mask, coefficients, gradient, gamma, ignore_index)
            return
        shape = lanes(input, pixels, 1)
        blocks = triton.cdiv(pixels, shape["LANES"] * shape["VEC"])
        (x, xs), (t, ts), (m, ms), (out, os) = as_planes(input), as_planes(target), as_planes(mask), as_planes(gradient)
        softmax_focal_gradient[(blocks * samples,)](
            grad, grad.stride(0), x, t, m, factors, coefficients, out, *xs, ts[0], ts[2], ms[0], ms[2], *os,
            pixels, blocks, gamma, ignore_index, GAMMA=exponent_code(gamma), MASK=mask_kind(m, ms[2]),
            IGNORES=may_ignore(target, ignore_index), HAS_FACTORS=factors is not None,
            LAST_OUT=shape["LAST"] and channels_last(os, C), **shape, **LAUNCH,
        )  # fmt: skip
