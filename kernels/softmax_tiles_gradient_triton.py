"""The gradient of softmax losses with many classes for NVIDIA GPUs.

A block's logits are read twice, first for the sums over classes, then for the gradient: the second read usually finds
them in L2.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .planes_triton import LAUNCH, as_planes
from .softmax_tiles_triton import read_logits, read_pixels, read_soft, tile_of


@triton.jit
def _read_tile(
    x, xb, xc, xs, t, tb, tc, ts, slopes, go, b, start, offsets, index, valid, channels, pixels, planes,
    SOFT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """TILE classes from `start` on: class numbers, logits, whether the class is the pixel's, soft target, and slopes in
    cross-entropy, I and P."""
    c = start + tl.arange(0, TILE)
    live = c < channels
    logits = read_logits(x, xb, xc, xs, b, c, offsets, valid, channels, pixels, "evict_first")
    hit = index[None, :] == c[:, None]
    target = read_soft(t, tb, tc, ts, b, c, offsets, valid, channels, pixels) if SOFT else logits
    h = go * tl.load(slopes + c, mask=live, other=0.0)
    a = go * tl.load(slopes + planes + c, mask=live, other=0.0)
    slope = go * tl.load(slopes + 2 * planes + c, mask=live, other=0.0)
    return c, logits, hit, target, h, a, slope


@triton.jit
def _add_tile(
    top, own, other, others_slope, soft_slope, soft_ce, all_ce, logits, hit, target, h, a, slope,
    SQUARED: tl.constexpr, OVERLAP: tl.constexpr, SOFT: tl.constexpr,
):  # fmt: skip
    """Updates the sums over all classes that the gradient needs with one tile; all sums are of e = exp(x - top)."""
    higher = tl.maximum(top, tl.max(logits, 0))
    factor = tl.exp(top - higher)
    e = tl.exp(logits - higher[None, :])
    rest = tl.where(hit, 0.0, e)
    own = own * factor + tl.sum(tl.where(hit, e, 0.0), 0)
    other = other * factor + tl.sum(rest, 0)
    if OVERLAP:
        powers = rest * rest if SQUARED else rest
        others_slope = others_slope * (factor * factor if SQUARED else factor) + tl.sum(powers * slope[:, None], 0)
    if SOFT:
        soft_slope = soft_slope * factor
        if OVERLAP:
            soft_slope += tl.sum(e * a[:, None] * target, 0)
        soft_ce += tl.sum(h[:, None] * target, 0)
    return higher, own, other, others_slope, soft_slope, soft_ce, all_ce + h


@triton.jit
def _write_tile(
    out, ob, oc, os, b, c, offsets, valid, channels, pixels, logits, hit, target, top, inverse, common, at_class,
    h, a, slope, per_class, kept,
    SQUARED: tl.constexpr, OVERLAP: tl.constexpr, SOFT: tl.constexpr,
):  # fmt: skip
    p = tl.exp(logits - top[None, :]) * inverse[None, :]
    u = common[None, :]
    if OVERLAP:
        u += slope[:, None] * p if SQUARED else slope[:, None]
        if SOFT:
            u += a[:, None] * target
    values = p * u - per_class * h[:, None]
    if SOFT:
        values -= kept * h[:, None] * target
    else:
        values = tl.where(hit, at_class[None, :], values)
    values = tl.where(valid[None, :], values, 0.0)  # a NaN coefficient must not reach masked pixels either
    inside = (offsets[None, :] < pixels) & (c[:, None] < channels)
    at = out + b * ob + c[:, None].to(tl.int64) * oc + offsets[None, :] * os
    tl.store(at, values, mask=inside)


@triton.jit
def softmax_gradient_tiled(
    grad, gb, x, t, m, coefficients, out,
    xb, xc, xs, tb, tc, ts, mb, ms, ob, oc, os,
    ignore_index, channels, pixels, blocks, planes, smoothing,
    SQUARED: tl.constexpr, OVERLAP: tl.constexpr, SPREAD: tl.constexpr, SOFT: tl.constexpr,
    HAS_MASK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = grad * d loss / d logits, all classes of one block of pixels; grid [blocks * B]."""
    pid = tl.program_id(0)
    b = (pid // blocks).to(tl.int64)
    offsets = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    index, valid, invalid_class = read_pixels(
        t, tb, ts, m, mb, ms, b, offsets, pixels, channels, ignore_index, SOFT, HAS_MASK
    )
    go = tl.load(grad + b * gb).to(tl.float32)
    slopes = coefficients + b * channels
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    zeros = tl.zeros([BLOCK], tl.float32)
    own, other, others_slope, soft_slope, soft_ce = zeros, zeros, zeros, zeros, zeros
    all_ce = tl.zeros([TILE], tl.float32)
    for start in range(0, channels, TILE):
        c, logits, hit, target, h, a, slope = _read_tile(
            x, xb, xc, xs, t, tb, tc, ts, slopes, go, b, start, offsets, index, valid, channels, pixels, planes,
            SOFT, TILE,
        )  # fmt: skip
        top, own, other, others_slope, soft_slope, soft_ce, all_ce = _add_tile(
            top, own, other, others_slope, soft_slope, soft_ce, all_ce, logits, hit, target, h, a, slope,
            SQUARED, OVERLAP, SOFT,
        )  # fmt: skip

    base = tl.sum(all_ce) * (smoothing / channels) if SPREAD else 0.0
    kept = 1.0 - smoothing
    per_class = smoothing / channels
    inverse = tl.where(valid, 1.0 / (own + other), 0.0)
    power = inverse * inverse if SQUARED else inverse
    if SOFT:
        common = kept * soft_ce + base - soft_slope * inverse - others_slope * power
        at_class = zeros
    else:
        there = index >= 0
        p = own * inverse
        rest = other * inverse  # 1 - p
        all_h = go * tl.load(slopes + index, mask=there, other=0.0)
        common = kept * all_h + base
        at_class = p * base - kept * all_h * rest - per_class * all_h
        if OVERLAP:
            u = go * tl.load(slopes + planes + index, mask=there, other=0.0)
            of_p = go * tl.load(slopes + 2 * planes + index, mask=there, other=0.0)
            u += of_p * p if SQUARED else of_p
            common -= others_slope * power + p * u
            at_class += p * (u * rest - others_slope * power)

    for start in range(0, channels, TILE):
        c, logits, hit, target, h, a, slope = _read_tile(
            x, xb, xc, xs, t, tb, tc, ts, slopes, go, b, start, offsets, index, valid, channels, pixels, planes,
            SOFT, TILE,
        )  # fmt: skip
        _write_tile(
            out, ob, oc, os, b, c, offsets, valid, channels, pixels, logits, hit, target, top, inverse, common,
            at_class, h, a, slope, per_class, kept, SQUARED, OVERLAP, SOFT,
        )  # fmt: skip


def tiled_gradient(
    grad: torch.Tensor, grad_stride: int, input: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None,
    coefficients: torch.Tensor, gradient: torch.Tensor,
    ignore_index: int, smoothing: float, squared: bool, overlap: bool,
) -> None:  # fmt: skip
    """As `backward` in softmax_gradient_triton.py."""
    (B, C), pixels = input.shape[:2], math.prod(input.shape[2:])
    tile, block = tile_of(C, pixels, 2048)
    blocks = triton.cdiv(pixels, block)
    (x, xs), (t, ts), (m, (mb, _, ms)) = as_planes(input), as_planes(target), as_planes(mask)
    out, os = as_planes(gradient)
    softmax_gradient_tiled[(blocks * B,)](
        grad, grad_stride, x, t, m, coefficients, out, *xs, *ts, mb, ms, *os,
        ignore_index, C, pixels, blocks, B * C, smoothing,
        SQUARED=squared, OVERLAP=overlap, SPREAD=smoothing > 0, SOFT=target.shape[1] != 1,
        HAS_MASK=m is not None, TILE=tile, BLOCK=block, **LAUNCH,
    )  # fmt: skip
