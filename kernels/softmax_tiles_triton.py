"""The sums of softmax losses with many classes for NVIDIA GPUs, and the code with which their kernels read pixels.

A program handles blocks of pixels with TILE classes, [TILE, BLOCK] in registers. Each pixel's maximum and sum of
exponentials are written first (8 bytes per pixel), then the logits are read a second time, one tile of classes after
the other. The sums are those of softmax_sums_triton.py.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .planes_triton import LAUNCH, as_planes, chunk_size, unit

_CLASSES = 32  # of a tile
_INFINITY = tl.constexpr(float("inf"))
_NOWHERE = tl.constexpr(1 << 30)  # a class number above all others


@triton.jit
def read_pixels(
    t, tb, ts, m, mb, ms, b, offsets, pixels, channels, ignore_index, SOFT: tl.constexpr, HAS_MASK: tl.constexpr
):
    """Class numbers (-1: none), which pixels are valid, and which of them have an invalid class number."""
    inside = offsets < pixels
    valid = inside
    if HAS_MASK:
        valid = valid & (tl.load(m + b * mb + offsets * ms, mask=inside, other=0) != 0)
    if SOFT:
        invalid_class = valid & (offsets < 0)
        index = tl.where(inside, -1, -1)
    else:
        number = tl.load(t + b * tb + offsets * ts, mask=inside, other=0).to(tl.int64)
        valid = valid & (number != ignore_index)
        exists = (number >= 0) & (number < channels)
        invalid_class = valid & (exists == 0)
        index = tl.where(valid & exists, number, -1).to(tl.int32)
    return index, valid, invalid_class


@triton.jit
def read_logits(x, xb, xc, xs, b, c, offsets, valid, channels, pixels, EVICTION: tl.constexpr):
    """[TILE, BLOCK] float32: 0 for invalid pixels, -infinity beyond the last class."""
    # The load mask leaves out `valid`, which would split the load into single elements.
    live = c[:, None] < channels
    inside = live & (offsets[None, :] < pixels)
    at = x + b * xb + c[:, None].to(tl.int64) * xc + offsets[None, :] * xs
    logits = tl.load(at, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    return tl.where(live, tl.where(valid[None, :], logits, 0.0), -_INFINITY)


@triton.jit
def read_soft(t, tb, tc, ts, b, c, offsets, valid, channels, pixels):
    inside = (c[:, None] < channels) & (offsets[None, :] < pixels)
    at = t + b * tb + c[:, None].to(tl.int64) * tc + offsets[None, :] * ts
    target = unit(tl.load(at, mask=inside, other=0).to(tl.float32))
    return tl.where(valid[None, :], target, 0.0)


@triton.jit
def _first_of_largest(logits, top, c):
    """The first class of the largest logit; far above all classes if it is NaN."""
    return tl.min(tl.where(logits == top[None, :], c[:, None], _NOWHERE), 0)


@triton.jit
def _any_not_finite(logits, c, channels):
    non_finite = (tl.abs(logits) < _INFINITY) == 0
    return tl.max((non_finite & (c[:, None] < channels)).to(tl.int32), 0)


@triton.jit
def softmax_normalisers(
    x, t, m, normalisers,
    xb, xc, xs, tb, ts, mb, ms,
    ignore_index, samples, channels, pixels, blocks,
    SOFT: tl.constexpr, HAS_MASK: tl.constexpr, COUNTS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """normalisers [2, B, pixels]: maximum and sum of exponentials; with COUNTS [4, ...]: also the predicted class, and
    whether any logit is not finite. Grid [blocks * B]."""
    pid = tl.program_id(0)
    b = (pid // blocks).to(tl.int64)
    offsets = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    index, valid, invalid_class = read_pixels(
        t, tb, ts, m, mb, ms, b, offsets, pixels, channels, ignore_index, SOFT, HAS_MASK
    )
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    chosen = tl.zeros([BLOCK], tl.int32)  # if no logit is above -infinity
    non_finite = tl.zeros([BLOCK], tl.int32)
    for start in range(0, channels, TILE):
        c = start + tl.arange(0, TILE)
        logits = read_logits(x, xb, xc, xs, b, c, offsets, valid, channels, pixels, "evict_last")
        largest = tl.max(logits, 0)
        if COUNTS:
            chosen = tl.where(largest > top, _first_of_largest(logits, largest, c), chosen)
            non_finite = tl.maximum(non_finite, _any_not_finite(logits, c, channels))
        higher = tl.maximum(top, largest)
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[None, :]), 0)
        top = higher
    at = normalisers + b * pixels + offsets
    size = tl.cast(samples, tl.int64) * pixels
    inside = offsets < pixels
    tl.store(at, top, mask=inside)
    tl.store(at + size, total, mask=inside)
    if COUNTS:
        tl.store(at + 2 * size, chosen.to(tl.float32), mask=inside)
        tl.store(at + 3 * size, non_finite.to(tl.float32), mask=inside)


@triton.jit
def softmax_sums_tiled(
    x, t, m, normalisers, partials, counts,
    xb, xc, xs, tb, tc, ts, mb, ms,
    ignore_index, samples, channels, pixels, chunk, splits, planes,
    OVER_BATCH: tl.constexpr, SQUARED: tl.constexpr, OVERLAP: tl.constexpr, SPREAD: tl.constexpr,
    SOFT: tl.constexpr, HAS_MASK: tl.constexpr, COUNTS: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One split of one sample, TILE classes; grid [splits * B, tiles]. counts [B, 3 C + 1]: zeros, added to."""
    pid = tl.program_id(0)
    split = pid % splits
    b = (pid // splits).to(tl.int64)
    tile = tl.program_id(1)
    c = tile * TILE + tl.arange(0, TILE)
    live = c < channels
    intersection = tl.zeros([TILE, BLOCK], tl.float32)
    prediction = tl.zeros([TILE, BLOCK], tl.float32)
    truth = tl.zeros([TILE, BLOCK], tl.float32)
    entropy = tl.zeros([TILE, BLOCK], tl.float32)
    spread = tl.zeros([TILE, BLOCK], tl.float32)
    hits = tl.zeros([TILE, BLOCK], tl.int32)
    chosen = tl.zeros([TILE, BLOCK], tl.int32)
    number = tl.zeros([BLOCK], tl.float32)
    non_finite = tl.zeros([BLOCK], tl.int32)
    first = split.to(tl.int64) * chunk
    size = tl.cast(samples, tl.int64) * pixels
    for start in range(0, chunk, BLOCK):
        offsets = first + start + tl.arange(0, BLOCK)
        index, valid, invalid_class = read_pixels(
            t, tb, ts, m, mb, ms, b, offsets, pixels, channels, ignore_index, SOFT, HAS_MASK
        )
        logits = read_logits(x, xb, xc, xs, b, c, offsets, valid, channels, pixels, "evict_last")
        hit = index[None, :] == c[:, None]
        at = normalisers + b * pixels + offsets
        top = tl.load(at, mask=offsets < pixels, other=0.0)
        total = tl.load(at + size, mask=offsets < pixels, other=1.0)
        e = tl.exp(logits - top[None, :])
        log_total = tl.log(total)
        cost = log_total[None, :] + (top[None, :] - logits)
        if OVERLAP:
            p = e * tl.where(valid, 1.0 / total, 0.0)[None, :]
            prediction += p * p if SQUARED else p
        if SOFT:
            target = read_soft(t, tb, tc, ts, b, c, offsets, valid, channels, pixels)
            truth += target * target if SQUARED else target
            entropy += tl.where(target == 0.0, 0.0, target * cost)
            if OVERLAP:
                intersection += p * target
        else:
            truth += hit.to(tl.float32)
            entropy += tl.where(hit, cost, 0.0)
            entropy += tl.where(invalid_class[None, :] & (c[:, None] == 0), float("nan"), 0.0)
            if OVERLAP:
                intersection += tl.where(hit, p, 0.0)
        if SPREAD:
            spread += tl.where(valid[None, :] & live[:, None], cost, 0.0)
        if COUNTS:
            choice = tl.load(at + 2 * size, mask=offsets < pixels, other=0.0).to(tl.int32)
            non_finite += tl.where(valid, tl.load(at + 3 * size, mask=offsets < pixels, other=0.0).to(tl.int32), 0)
            here = (choice[None, :] == c[:, None]) & valid[None, :]
            chosen += here.to(tl.int32)
            hits += (here & hit).to(tl.int32)
        number += valid.to(tl.float32)
    plane = c.to(tl.int64) * samples + b if OVER_BATCH else b * channels + c
    part = plane * splits + split
    step = tl.cast(planes, tl.int64) * splits
    if OVERLAP:
        tl.store(partials + part, tl.sum(intersection, 1), mask=live)
        tl.store(partials + step + part, tl.sum(prediction, 1), mask=live)
    truths = tl.sum(truth, 1)
    tl.store(partials + 2 * step + part, truths, mask=live)
    tl.store(partials + 3 * step + part, tl.sum(entropy, 1), mask=live)
    if SPREAD:
        tl.store(partials + 4 * step + part, tl.sum(spread, 1), mask=live)
    if tile == 0:
        tl.store(partials + 5 * step + b * splits + split, tl.sum(number))
    if COUNTS:  # sums of integers do not depend on their order
        row = counts + b * (3 * channels + 1)
        both = tl.sum(hits, 1).to(tl.int64)
        tl.atomic_add(row + c, both, mask=live, sem="relaxed")
        tl.atomic_add(row + channels + c, tl.sum(chosen, 1).to(tl.int64) - both, mask=live, sem="relaxed")
        tl.atomic_add(row + 2 * channels + c, truths.to(tl.int64) - both, mask=live, sem="relaxed")
        if tile == 0:
            tl.atomic_add(row + 3 * channels, tl.sum(non_finite).to(tl.int64), sem="relaxed")


def tile_of(channels: int, pixels: int, elements: int) -> tuple[int, int]:
    """The classes and the pixels of a tile of `elements`."""
    tile = min(_CLASSES, triton.next_power_of_2(channels))
    return tile, max(16, min(elements // tile, triton.next_power_of_2(pixels)))


def tiled_sums(
    input: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, counts: torch.Tensor | None,
    ignore_index: int, batch: bool, squared: bool, overlap: bool, spread: bool,
) -> tuple[torch.Tensor, int]:  # fmt: skip
    """As `sums` in softmax_sums_triton.py."""
    (B, C), pixels = input.shape[:2], math.prod(input.shape[2:])
    tile, block = tile_of(C, pixels, 1024)
    tiles, soft = triton.cdiv(C, tile), target.shape[1] != 1
    chunk = chunk_size(B * tiles * pixels, block)
    splits = triton.cdiv(pixels, chunk)
    partials = torch.empty((5 * C + 1) * B * splits, dtype=torch.float32, device=input.device)
    (x, xs), (t, (tb, tc, ts)), (m, (mb, _, ms)) = as_planes(input), as_planes(target), as_planes(mask)
    flags = {"SOFT": soft, "HAS_MASK": m is not None, "COUNTS": counts is not None}
    kinds = 2 if counts is None else 4
    normalisers = torch.empty((kinds, B, pixels), dtype=torch.float32, device=input.device)
    blocks = triton.cdiv(pixels, block)
    softmax_normalisers[(blocks * B,)](
        x, t, m, normalisers, *xs, tb, ts, mb, ms, ignore_index, B, C, pixels, blocks,
        **flags, TILE=tile, BLOCK=block, **LAUNCH,
    )  # fmt: skip
    softmax_sums_tiled[(splits * B, tiles)](
        x, t, m, normalisers, partials, counts, *xs, tb, tc, ts, mb, ms,
        ignore_index, B, C, pixels, chunk, splits, B * C,
        OVER_BATCH=batch, SQUARED=squared, OVERLAP=overlap, SPREAD=spread, **flags,
        TILE=tile, BLOCK=block, **LAUNCH,
    )  # fmt: skip
    return partials, splits
