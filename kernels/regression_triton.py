"""Squared, absolute and smooth absolute errors on NVIDIA GPUs: sums per sample, a finaliser, elementwise slopes.

Sums go to `partials [2, samples, parts]` (errors, valid elements), and one program adds them in a fixed order in
float64: no float atomics, and splits that depend only on the shape, so results are bit-equal between runs and between
GPUs. Offsets are 64-bit. Every tensor [B, C, pixels] is passed with its three strides.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .planes_triton import BY_PIXEL, LAUNCH, block_size, chunk_size, finish_tile, mask_kind, place_of, visible_pixels

Strides = tuple[int, int, int]


@triton.jit
def _load_difference(
    x, xb, xc, xs, t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, pixels,
    HAS_MASK: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """input - target in float32, 0 for masked elements, and which elements are valid."""
    inside = offsets < pixels
    input = tl.load(x + b * xb + c * xc + offsets * xs, mask=inside, other=0, eviction_policy=EVICTION)
    target = tl.load(t + b * tb + c * tc + offsets * ts, mask=inside, other=0, eviction_policy=EVICTION)
    difference = input.to(tl.float32) - target.to(tl.float32)
    valid = inside
    if HAS_MASK:
        valid = tl.load(m + b * mb + c * mc + offsets * ms, mask=inside, other=0) != 0
        difference = tl.where(valid, difference, 0.0)
    return difference, valid


@triton.jit
def regression_sums(
    x, t, m, partials,
    xb, xc, xs, tb, tc, ts, mb, mc, ms,
    channels, pixels, chunk, splits, planes, beta,
    ERROR: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One split of one plane; grid [splits * planes]. ERROR 0: squared; 1: absolute; 2: smooth."""
    b, c, split = place_of(tl.program_id(0), channels, splits)
    plane = b * channels + c
    errors = tl.zeros([BLOCK], tl.float32)
    elements = tl.zeros([BLOCK], tl.float32)
    first = split.to(tl.int64) * chunk
    visible = visible_pixels(m, mb, mc, b, c, pixels, MASK)
    for start in range(0, chunk, BLOCK):
        offsets = first + start + tl.arange(0, BLOCK)
        d, valid = _load_difference(
            x, xb, xc, xs, t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, visible, MASK == BY_PIXEL, "evict_last",
        )  # fmt: skip
        if ERROR == 0:
            errors += d * d
        elif ERROR == 1:
            errors += tl.abs(d)
        else:
            near = tl.where(tl.abs(d) < beta, tl.abs(d), beta)
            errors += near * (tl.abs(d) - 0.5 * near) / beta
        if MASK == BY_PIXEL:
            elements += valid.to(tl.float32)
    part = plane * splits + split
    tl.store(partials + part, tl.sum(errors))
    if MASK == BY_PIXEL:
        number = tl.sum(elements)
    else:
        number = tl.minimum(tl.maximum(visible - first, 0), chunk).to(tl.float32)
    tl.store(partials + tl.cast(planes, tl.int64) * splits + part, number)


@triton.jit
def regression_finish(
    partials, loss, slopes, samples, parts, REDUCTION: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr
):
    """Loss and slopes [samples] from `parts` partials each; one program. REDUCTION 0: none; 1: mean; 2: sum."""
    size = tl.cast(samples, tl.int64) * parts
    all_errors = tl.zeros([TILE], tl.float64)
    all_elements = tl.zeros([TILE], tl.float64)
    for start in range(0, samples, TILE):
        sample = start + tl.arange(0, TILE)
        errors = tl.zeros([TILE], tl.float64)
        elements = tl.zeros([TILE], tl.float64)
        for first in range(0, parts, PARTS):
            part = first + tl.arange(0, PARTS)
            inside = (sample < samples)[:, None] & (part < parts)[None, :]
            at = partials + sample.to(tl.int64)[:, None] * parts + part[None, :]
            errors += tl.sum(tl.load(at, mask=inside, other=0.0).to(tl.float64), 1)
            elements += tl.sum(tl.load(at + size, mask=inside, other=0.0).to(tl.float64), 1)
        if REDUCTION == 0:
            number = tl.maximum(elements, 1.0)
            tl.store(loss + sample, errors / number, mask=sample < samples)
            tl.store(slopes + sample, 1.0 / number, mask=sample < samples)
        all_errors += errors
        all_elements += elements
    if REDUCTION != 0:
        slope = 1.0 / tl.maximum(tl.sum(all_elements), 1.0) if REDUCTION == 1 else 1.0
        tl.store(loss, tl.sum(all_errors) * slope)
        for start in range(0, samples, TILE):
            sample = start + tl.arange(0, TILE)
            tl.store(slopes + sample, tl.zeros([TILE], tl.float64) + slope, mask=sample < samples)


@triton.jit
def regression_gradient(
    grad, grad_stride, x, t, m, slopes, out,
    xb, xc, xs, tb, tc, ts, mb, mc, ms, ob, oc, os,
    channels, pixels, blocks, beta,
    ERROR: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = grad * d loss / d input, one block of one plane; grid [blocks * planes]."""
    b, c, block = place_of(tl.program_id(0), channels, blocks)
    offsets = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    visible = visible_pixels(m, mb, mc, b, c, pixels, MASK)
    d, valid = _load_difference(
        x, xb, xc, xs, t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, visible, MASK == BY_PIXEL, "evict_first"
    )
    sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, d))
    if ERROR == 0:
        slope = 2.0 * d
    elif ERROR == 1:
        slope = sign
    else:
        slope = tl.where(tl.abs(d) >= beta, sign, d / beta)
    values = tl.load(grad + b * grad_stride).to(tl.float32) * tl.load(slopes + b) * slope
    if MASK:
        values = tl.where(valid, values, 0.0)  # an infinite slope must not reach masked elements either
    tl.store(out + b * ob + c * oc + offsets * os, values, mask=offsets < pixels)


def _bytes(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Bool read as bytes."""
    return tensor.view(torch.uint8) if tensor is not None and tensor.dtype == torch.bool else tensor


def forward(
    input: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, loss: torch.Tensor, slopes: torch.Tensor,
    shape: tuple[int, int, int], strides: list[Strides], error: int, beta: float, reduction: int,
) -> None:  # fmt: skip
    """Fills loss ([B] or []) and slopes [B]; shape is (B, channels, pixels) as the strides of each tensor see it."""
    samples, channels, pixels = shape
    planes, block = samples * channels, block_size(pixels)
    chunk = chunk_size(planes * pixels, block)
    splits = triton.cdiv(pixels, chunk)
    partials = torch.empty(2 * planes * splits, dtype=torch.float32, device=input.device)
    with torch.cuda.device_of(input):
        regression_sums[(splits * planes,)](
            input, _bytes(target), mask, partials, *strides[0], *strides[1], *strides[2],
            channels, pixels, chunk, splits, planes, beta,
            ERROR=error, MASK=mask_kind(mask, strides[2][2]), BLOCK=block, **LAUNCH,
        )  # fmt: skip
        parts = channels * splits
        options = LAUNCH | finish_tile(samples, parts)
        regression_finish[(1,)](partials, loss, slopes, samples, parts, REDUCTION=reduction, **options)


def backward(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, slopes: torch.Tensor,
    gradient: torch.Tensor, shape: tuple[int, int, int], strides: list[Strides], error: int, beta: float,
) -> None:  # fmt: skip
    """Fills gradient from grad ([B] or []) and the slopes of `forward`."""
    samples, channels, pixels = shape
    block = block_size(pixels)
    blocks = triton.cdiv(pixels, block)
    with torch.cuda.device_of(input):
        regression_gradient[(blocks * samples * channels,)](
            grad, grad.stride(0) if grad.dim() else 0, input, _bytes(target), mask, slopes, gradient,
            *strides[0], *strides[1], *strides[2], *strides[3], channels, pixels, blocks, beta,
            ERROR=error, MASK=mask_kind(mask, strides[2][2]), BLOCK=block, **LAUNCH,
        )  # fmt: skip
