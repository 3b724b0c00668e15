"""Sigmoid focal loss on logits for NVIDIA GPUs: sums, a finaliser, and an elementwise gradient.

csrc/losses/focal_sigmoid_cpu.cpp has the formulas. Sums go to `partials [2, segments, splits]` (loss, valid
elements); one program adds them in a fixed order in float64: no float atomics, and splits that depend only on the
shape. Offsets are 64-bit. Tensors [B, C, pixels] are passed with their strides.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .planes_triton import (
    BY_PIXEL,
    LAUNCH,
    as_planes,
    block_size,
    chunk_size,
    exp2_fast,
    finish_tile,
    load_plane,
    log1p_unit,
    log2_fast,
    mask_kind,
    place_of,
    reciprocal,
    sigmoid_parts,
    sum_parts,
    visible_pixels,
)

LARGEST = tl.constexpr(1.0e30)
_FIXED = (0.0, 1.0, 2.0)  # exponents with separate code; others use a logarithm


@triton.jit
def focal_power(u, gamma, GAMMA: tl.constexpr):
    """u^gamma for u from 0 to 1; GAMMA is gamma if that is 0, 1 or 2, else -1."""
    if GAMMA == 0:
        return u * 0.0 + 1.0
    if GAMMA == 1:
        return u
    if GAMMA == 2:
        return u * u
    return exp2_fast(gamma * log2_fast(u))  # gamma > 0: 2^-infinity is 0


@triton.jit
def sigmoid_focal_sums(
    x, t, m, factors, partials,
    xb, xc, xs, tb, tc, ts, mb, mc, ms,
    channels, pixels, chunk, splits, planes, positive, negative, gamma,
    GAMMA: tl.constexpr, MASK: tl.constexpr, HAS_FACTORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One split of one plane; grid [splits * planes]."""
    b, c, split = place_of(tl.program_id(0), channels, splits)
    plane = b * channels + c
    of_positive = positive * tl.load(factors + c) if HAS_FACTORS else positive
    of_negative = negative * tl.load(factors + channels + c) if HAS_FACTORS else negative
    loss = tl.zeros([BLOCK], tl.float32)
    elements = tl.zeros([BLOCK], tl.float32)
    first = split.to(tl.int64) * chunk
    visible = visible_pixels(m, mb, mc, b, c, pixels, MASK)
    for start in range(0, chunk, BLOCK):
        offsets = first + start + tl.arange(0, BLOCK)
        logits, target, valid = load_plane(
            x, xb, xc, xs, t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, visible, MASK == BY_PIXEL, "evict_last"
        )
        e, r = sigmoid_parts(logits)
        if t.dtype.element_ty.is_int():  # w is 0 or 1; an invalid target is NaN in `scale`
            wrong = (logits >= 0) != (target != 0)
            linear = tl.where(wrong, tl.abs(logits), 0.0)
            u = tl.where(wrong, 1.0, e) * r
        else:
            w = tl.where(logits >= 0, 1.0 - target, target)
            linear = tl.where(w == 0, 0.0, w * tl.abs(logits))  # a correct infinite logit costs 0, not NaN
            u = (w + (1.0 - w) * e) * r
        scale = of_negative + (of_positive - of_negative) * target
        loss += scale * focal_power(u, gamma, GAMMA) * (linear + log1p_unit(e))
        if MASK == BY_PIXEL:
            elements += valid.to(tl.float32)
    part = plane * splits + split
    if MASK == BY_PIXEL:
        number = tl.sum(elements)
    else:
        number = tl.minimum(tl.maximum(visible - first, 0), chunk).to(tl.float32)
    # An infinite factor makes masked elements NaN.
    tl.store(partials + part, tl.where(number > 0, tl.sum(loss), 0.0))
    tl.store(partials + tl.cast(planes, tl.int64) * splits + part, number)


@triton.jit
def focal_finish(
    partials, loss, coefficients, segments, parts,
    REDUCTION: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Loss [segments] or [], and its slope in the sum of each segment; a single program."""
    size = tl.cast(segments, tl.int64) * parts
    all_losses = tl.zeros([TILE], tl.float64)
    all_elements = tl.zeros([TILE], tl.float64)
    for start in range(0, segments, TILE):
        segment = start + tl.arange(0, TILE).to(tl.int64)
        live = segment < segments
        sums = sum_parts(partials, segment, live, parts, TILE, PARTS)
        elements = sum_parts(partials + size, segment, live, parts, TILE, PARTS)
        all_losses += sums
        all_elements += elements
        if REDUCTION == 0:
            slope = 1.0 / tl.maximum(elements, 1.0)
            tl.store(loss + segment, sums * slope, mask=live)
            tl.store(coefficients + segment, slope, mask=live)
    if REDUCTION != 0:
        slope = 1.0 / tl.maximum(tl.sum(all_elements), 1.0) if REDUCTION == 1 else 1.0
        tl.store(loss, tl.sum(all_losses) * slope)
        for start in range(0, segments, TILE):
            segment = start + tl.arange(0, TILE).to(tl.int64)
            tl.store(coefficients + segment, tl.zeros([TILE], tl.float64) + slope, mask=segment < segments)


@triton.jit
def sigmoid_focal_gradient(
    grad, gb, gc, x, t, m, factors, coefficients, out,
    xb, xc, xs, tb, tc, ts, mb, mc, ms, ob, oc, os,
    channels, pixels, blocks, positive, negative, gamma,
    GAMMA: tl.constexpr, MASK: tl.constexpr, HAS_FACTORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = grad * d loss / d logits, one block of one plane; grid [blocks * planes]."""
    b, c, block = place_of(tl.program_id(0), channels, blocks)
    plane = b * channels + c
    go = tl.load(grad + b * gb + c * gc).to(tl.float32) * tl.load(coefficients + plane)
    of_positive = go * (positive * tl.load(factors + c) if HAS_FACTORS else positive)
    of_negative = go * (negative * tl.load(factors + channels + c) if HAS_FACTORS else negative)
    offsets = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    visible = visible_pixels(m, mb, mc, b, c, pixels, MASK)
    logits, target, valid = load_plane(
        x, xb, xc, xs, t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, visible, MASK == BY_PIXEL, "evict_first"
    )
    exact = tl.abs(logits)
    size = tl.where(exact > LARGEST, LARGEST, exact)  # for an infinite logit e = 0 times its entropy is 0, not NaN
    w = tl.where(logits >= 0, 1.0 - target, target)
    e, r = sigmoid_parts(size)
    miss = w + (1.0 - w) * e
    of_entropy = w - (1.0 - w) * e
    of_miss = (2.0 * w - 1.0) * e * (w * size + log1p_unit(e))
    if GAMMA == 0:
        slope = r * of_entropy
    elif GAMMA == 1:
        slope = r * r * (of_miss + miss * of_entropy)
    elif GAMMA == 2:
        slope = r * r * r * miss * (2.0 * of_miss + miss * of_entropy)
    else:
        ratio = tl.where(miss > 1e-37, of_miss * reciprocal(miss), 0.0)  # u^(gamma - 1) alone could be infinite
        slope = focal_power(r * miss, gamma, GAMMA) * r * (gamma * ratio + of_entropy)
    values = (of_negative + (of_positive - of_negative) * target) * tl.where(logits >= 0, slope, -slope)
    if MASK:
        values = tl.where(valid, values, 0.0)  # a NaN coefficient must not reach masked elements either
    tl.store(out + b * ob + c * oc + offsets * os, values, mask=offsets < pixels)


def exponent_code(gamma: float) -> int:
    return int(gamma) if gamma in _FIXED else -1


def finish_sums(
    partials: torch.Tensor, loss: torch.Tensor, coefficients: torch.Tensor, parts: int, reduction: int
) -> None:
    segments = coefficients.numel()
    options = LAUNCH | finish_tile(segments, parts)
    focal_finish[(1,)](partials, loss, coefficients, segments, parts, REDUCTION=reduction, **options)


def forward(
    input: torch.Tensor, target: torch.Tensor, factors: torch.Tensor | None, mask: torch.Tensor | None,
    loss: torch.Tensor, coefficients: torch.Tensor, gamma: float, positive: float, negative: float, reduction: int,
) -> None:  # fmt: skip
    """Fills loss and coefficients [B, C]. Tensors [B, C, *spatial] have one pixel stride each."""
    channels, pixels = input.shape[1], math.prod(input.shape[2:])
    planes, block = input.shape[0] * channels, block_size(pixels)
    chunk = chunk_size(planes * pixels, block)
    splits = triton.cdiv(pixels, chunk)
    partials = torch.empty(2 * planes * splits, dtype=torch.float32, device=input.device)
    (x, xs), (t, ts), (m, ms) = as_planes(input), as_planes(target), as_planes(mask)
    with torch.cuda.device_of(input):
        sigmoid_focal_sums[(splits * planes,)](
            x, t, m, factors, partials, *xs, *ts, *ms, channels, pixels, chunk, splits, planes,
            positive, negative, gamma, GAMMA=exponent_code(gamma), MASK=mask_kind(m, ms[2]),
            HAS_FACTORS=factors is not None, BLOCK=block, **LAUNCH,
        )  # fmt: skip
        finish_sums(partials, loss, coefficients, splits, reduction)


def backward(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, factors: torch.Tensor | None,
    mask: torch.Tensor | None, coefficients: torch.Tensor, gradient: torch.Tensor,
    gamma: float, positive: float, negative: float,
) -> None:  # fmt: skip
    """Fills gradient [B, C, *spatial] from grad [B, C] and the coefficients of `forward`."""
    channels, pixels = input.shape[1], math.prod(input.shape[2:])
    planes, block = input.shape[0] * channels, block_size(pixels)
    blocks = triton.cdiv(pixels, block)
    (x, xs), (t, ts), (m, ms), (out, os) = as_planes(input), as_planes(target), as_planes(mask), as_planes(gradient)
    with torch.cuda.device_of(input):
        sigmoid_focal_gradient[(blocks * planes,)](
            grad, *grad.stride(), x, t, m, factors, coefficients, out, *xs, *ts, *ms, *os, channels, pixels, blocks,
            positive, negative, gamma, GAMMA=exponent_code(gamma), MASK=mask_kind(m, ms[2]),
            HAS_FACTORS=factors is not None, BLOCK=block, **LAUNCH,
        )  # fmt: skip
