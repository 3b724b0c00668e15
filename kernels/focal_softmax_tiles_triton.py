"""Softmax focal loss with many classes for NVIDIA GPUs: as focal_softmax_triton.py, but the threads of a program share
the classes of a pixel."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .focal_triton import LARGEST, exponent_code, focal_power
from .planes_triton import LAUNCH, as_planes, log1p_unit
from .softmax_tiles_triton import read_logits, read_pixels

_MOST_CLASSES = 1024  # elements of one tile in registers


@triton.jit
def _softmax_tile(
    x, t, m, factors, xb, xc, xs, tb, ts, mb, ms, b, offsets, channels, pixels, ignore_index,
    HAS_MASK: tl.constexpr, HAS_FACTORS: tl.constexpr, CLASSES: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """For a tile [CLASSES, BLOCK]: exp(x - max), and whether the class is the target. For each pixel: the sum of the
    exponentials, the sum without the target's row, the loss -log p_y, a_y, and whether it is valid."""
    index, valid, invalid_class = read_pixels(
        t, tb, ts, m, mb, ms, b, offsets, pixels, channels, ignore_index, False, HAS_MASK
    )
    rows = tl.arange(0, CLASSES)
    logits = read_logits(x, xb, xc, xs, b, rows, offsets, valid, channels, pixels, EVICTION)
    below = tl.max(logits, 0)[None, :] - logits
    e = tl.exp(-below)
    hit = rows[:, None] == index[None, :]
    gap = tl.sum(tl.where(hit, below, 0.0), 0)
    total = tl.sum(e, 0)
    others = tl.sum(tl.where(hit, 0.0, e), 0)
    small = log1p_unit(tl.minimum(others, 1.0))
    alone = tl.where(others <= 1.0, small, tl.log(1.0 + others))
    loss = tl.where(gap == 0, alone, gap + tl.log(total))  # well classified: the loss may be tiny
    loss = tl.where(invalid_class, float("nan"), loss)  # raising would wait for the device
    if HAS_FACTORS:
        of_class = tl.load(factors + rows.to(tl.int64), mask=rows < channels, other=0.0)
        factor = tl.sum(tl.where(hit, of_class[:, None], 0.0), 0)
    else:
        factor = total * 0.0 + 1.0
    return e, hit, total, others, loss, factor, valid


@triton.jit
def softmax_focal_sums_tiled(
    x, t, m, factors, partials,
    xb, xc, xs, tb, ts, mb, ms,
    channels, pixels, chunk, splits, samples, gamma, ignore_index,
    GAMMA: tl.constexpr, HAS_MASK: tl.constexpr, HAS_FACTORS: tl.constexpr,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One split of one sample; grid [splits * samples]."""
    pid = tl.program_id(0)
    split = pid % splits
    b = (pid // splits).to(tl.int64)
    losses = tl.zeros([BLOCK], tl.float32)
    elements = tl.zeros([BLOCK], tl.float32)
    first = split.to(tl.int64) * chunk
    for start in range(0, chunk, BLOCK):
        offsets = first + start + tl.arange(0, BLOCK)
        e, hit, total, others, loss, factor, valid = _softmax_tile(
            x, t, m, factors, xb, xc, xs, tb, ts, mb, ms, b, offsets, channels, pixels, ignore_index,
            HAS_MASK, HAS_FACTORS, CLASSES, "evict_last",
        )  # fmt: skip
        losses += tl.where(valid, factor * focal_power(others / total, gamma, GAMMA) * loss, 0.0)
        elements += valid.to(tl.float32)
    part = b * splits + split
    tl.store(partials + part, tl.sum(losses))
    tl.store(partials + tl.cast(samples, tl.int64) * splits + part, tl.sum(elements))


@triton.jit
def softmax_focal_gradient_tiled(
    grad, gb, x, t, m, factors, coefficients, out,
    xb, xc, xs, tb, ts, mb, ms, ob, oc, os,
    channels, pixels, blocks, gamma, ignore_index,
    GAMMA: tl.constexpr, HAS_MASK: tl.constexpr, HAS_FACTORS: tl.constexpr,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = grad * d loss / d logits, one block of pixels; grid [blocks * samples]."""
    pid = tl.program_id(0)
    b = (pid // blocks).to(tl.int64)
    offsets = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    e, hit, total, others, exact, factor, valid = _softmax_tile(
        x, t, m, factors, xb, xc, xs, tb, ts, mb, ms, b, offsets, channels, pixels, ignore_index,
        HAS_MASK, HAS_FACTORS, CLASSES, "evict_first",
    )  # fmt: skip
    r = 1.0 / total
    u = others * r
    loss = tl.where(exact > LARGEST, LARGEST, exact)  # times p_y = 0 of an infinite logit: 0, not NaN
    surprise = tl.sum(tl.where(hit, e, 0.0), 0) * r * loss
    power = focal_power(u, gamma, GAMMA)
    if GAMMA == 0:
        slope = power + 0.0 * loss  # NaN for an invalid class number
    elif GAMMA == 1:
        slope = power + surprise
    elif GAMMA == 2:
        slope = power + 2.0 * u * surprise
    else:
        slope = power * (1.0 + gamma * tl.where(u > 0, surprise / u, 0.0))
    weight = tl.load(grad + b * gb).to(tl.float32) * tl.load(coefficients + b) * factor * slope
    values = weight[None, :] * tl.where(hit, -u[None, :], e * r[None, :])
    values = tl.where(valid[None, :], values, 0.0)
    rows = tl.arange(0, CLASSES)
    places = b * ob + rows.to(tl.int64)[:, None] * oc + offsets[None, :] * os
    tl.store(out + places, values, mask=(rows < channels)[:, None] & (offsets < pixels)[None, :])


def _shape(input: torch.Tensor) -> tuple[int, int, int]:
    """Pixels of a sample; classes and pixels of a tile, 4096 numbers if that leaves at least 16 pixels."""
    pixels, classes = math.prod(input.shape[2:]), triton.next_power_of_2(input.shape[1])
    if classes > _MOST_CLASSES:
        raise ValueError(f"the Triton kernel takes up to {_MOST_CLASSES} classes; got {input.shape[1]}.")
    block = min(1024, max(16, 4096 // classes), max(16, triton.next_power_of_2(pixels)))
    return pixels, classes, block


def tiled_sums(
    input: torch.Tensor, target: torch.Tensor, factors: torch.Tensor | None, mask: torch.Tensor | None,
    gamma: float, ignore_index: int,
) -> tuple[torch.Tensor, int]:  # fmt: skip
    """As `_sums` in focal_softmax_triton.py."""
    samples, channels = input.shape[:2]
    pixels, classes, block = _shape(input)
    chunk = block * max(1, triton.cdiv(samples * pixels, 1024 * block))
    splits = triton.cdiv(pixels, chunk)
    partials = torch.empty(2 * samples * splits, dtype=torch.float32, device=input.device)
    (x, xs), (t, ts), (m, ms) = as_planes(input), as_planes(target), as_planes(mask)
    softmax_focal_sums_tiled[(splits * samples,)](
        x, t, m, factors, partials, *xs, ts[0], ts[2], ms[0], ms[2], channels, pixels, chunk, splits, samples,
        gamma, ignore_index, GAMMA=exponent_code(gamma), HAS_MASK=m is not None, HAS_FACTORS=factors is not None,
        CLASSES=classes, BLOCK=block, **LAUNCH,
    )  # fmt: skip
    return partials, splits


def tiled_gradient(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, factors: torch.Tensor | None,
    mask: torch.Tensor | None, coefficients: torch.Tensor, gradient: torch.Tensor, gamma: float, ignore_index: int,
) -> None:  # fmt: skip
    """As `backward` in focal_softmax_triton.py."""
    samples, channels = input.shape[:2]
    pixels, classes, block = _shape(input)
    blocks = triton.cdiv(pixels, block)
    (x, xs), (t, ts), (m, ms), (out, os) = as_planes(input), as_planes(target), as_planes(mask), as_planes(gradient)
    softmax_focal_gradient_tiled[(blocks * samples,)](
        grad, grad.stride(0), x, t, m, factors, coefficients, out, *xs, ts[0], ts[2], ms[0], ms[2], *os,
        channels, pixels, blocks, gamma, ignore_index, GAMMA=exponent_code(gamma), HAS_MASK=m is not None,
        HAS_FACTORS=factors is not None, CLASSES=classes, BLOCK=block, **LAUNCH,
    )  # fmt: skip
