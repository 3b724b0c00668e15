"""Dice + BCE on logits for NVIDIA GPUs: segment sums, a finaliser, and an elementwise gradient.

Sums go to `partials [5, segments, parts]` (I, P, T, BCE, valid elements), and one program per group adds them in a
fixed order in float64: no float atomics, and splits that depend only on the shape, so results are bit-equal between
runs and between GPUs. Planes are those of planes_triton.py; a segment is a plane, or with OVER_BATCH a channel of a
group. A group is the whole batch, except under vmap.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .dice_score_triton import segments
from .planes_triton import (
    BY_PIXEL,
    LAUNCH,
    as_planes,
    block_size,
    chunk_size,
    finish_tile,
    load_plane,
    log1p_unit,
    mask_kind,
    place_of,
    sigmoid_parts,
    sum_parts,
    visible_pixels,
)

_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def dice_bce_sums(
    x, t, m, pos_weight, partials, counts,
    xb, xc, xs, tb, tc, ts, mb, mc, ms,
    samples, channels, pixels, chunk, splits, planes,
    OVER_BATCH: tl.constexpr, SQUARED: tl.constexpr, MASK: tl.constexpr, HAS_POS_WEIGHT: tl.constexpr,
    COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One split of one plane; grid [splits * planes]. counts [4, planes]: zeros to add to, if COUNTS."""
    b, c, split = place_of(tl.program_id(0), channels, splits)
    plane = b * channels + c
    group = b // samples
    weight = tl.load(pos_weight + group * channels + c).to(tl.float32) if HAS_POS_WEIGHT else 1.0
    intersection = tl.zeros([BLOCK], tl.float32)
    prediction = tl.zeros([BLOCK], tl.float32)
    truth = tl.zeros([BLOCK], tl.float32)
    bce = tl.zeros([BLOCK], tl.float32)
    elements = tl.zeros([BLOCK], tl.float32)
    both = tl.zeros([BLOCK], tl.int32)
    predicted = tl.zeros([BLOCK], tl.int32)
    wanted = tl.zeros([BLOCK], tl.int32)
    non_finite = tl.zeros([BLOCK], tl.int32)
    first = split.to(tl.int64) * chunk
    visible = visible_pixels(m, mb, mc, b, c, pixels, MASK)
    for start in range(0, chunk, BLOCK):
        offsets = first + start + tl.arange(0, BLOCK)
        logits, target, valid = load_plane(
            x, xb, xc, xs, t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, visible, MASK == BY_PIXEL, "evict_last"
        )
        e, r = sigmoid_parts(logits)
        p = tl.where(logits >= 0, r, e * r)
        slope = tl.where(logits >= 0, 1.0 - target, -weight * target)
        linear = tl.where(slope == 0, 0.0, slope * logits)  # a correct infinite logit costs 0, not NaN
        entropy = log1p_unit(e)
        if HAS_POS_WEIGHT:
            entropy *= 1.0 + (weight - 1.0) * target
        bce += linear + entropy
        intersection += p * target
        prediction += p * p if SQUARED else p
        truth += target * target if SQUARED else target
        if MASK == BY_PIXEL:
            elements += valid.to(tl.float32)
        if COUNTS:
            hit = logits > 0
            true = target >= 0.5
            both += (hit & true).to(tl.int32)
            predicted += hit.to(tl.int32)
            wanted += true.to(tl.int32)
            finite = tl.abs(logits) < _INFINITY
            non_finite += (valid & (finite == 0)).to(tl.int32)
    if COUNTS:  # sums of integers do not depend on their order
        total = tl.sum(both).to(tl.int64)
        tl.atomic_add(counts + plane, total, sem="relaxed")
        tl.atomic_add(counts + planes + plane, tl.sum(predicted).to(tl.int64) - total, sem="relaxed")
        tl.atomic_add(counts + 2 * planes + plane, tl.sum(wanted).to(tl.int64) - total, sem="relaxed")
        tl.atomic_add(counts + 3 * planes + plane, tl.sum(non_finite).to(tl.int64), sem="relaxed")
    part = plane * splits + split
    if OVER_BATCH:
        part = ((group * channels + c) * samples + b % samples) * splits + split
    size = tl.cast(planes, tl.int64) * splits
    tl.store(partials + part, tl.sum(intersection))
    tl.store(partials + size + part, tl.sum(prediction))
    tl.store(partials + 2 * size + part, tl.sum(truth))
    if MASK == BY_PIXEL:
        number = tl.sum(elements)
    else:
        number = tl.minimum(tl.maximum(visible - first, 0), chunk).to(tl.float32)
    cost = tl.where(number > 0, tl.sum(bce), 0.0)  # an infinite weight makes masked elements NaN
    tl.store(partials + 3 * size + part, cost)
    tl.store(partials + 4 * size + part, number)


@triton.jit
def dice_bce_finish(
    partials, weight, loss, coefficients,
    samples, channels, number, parts, planes, bce_weight, dice_weight, smooth_nr, smooth_dr,
    OVER_BATCH: tl.constexpr, SQUARED: tl.constexpr, JACCARD: tl.constexpr, EMPTY: tl.constexpr,
    REDUCTION: tl.constexpr, HAS_WEIGHT: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Loss and coefficients [3, B, C] of one group from the partials of its `number` segments; grid [groups]."""
    group = tl.program_id(0).to(tl.int64)
    first = group * number
    size = parts * (tl.cast(planes, tl.int64) // samples if OVER_BATCH else tl.cast(planes, tl.int64))
    all_bce = tl.zeros([TILE], tl.float64)
    all_elements = tl.zeros([TILE], tl.float64)
    all_counted = tl.zeros([TILE], tl.float64)
    all_dice = tl.zeros([TILE], tl.float64)
    if REDUCTION == 1:
        for start in range(0, number, TILE):
            bce, elements, counted, dice, of_intersection, of_prediction = segments(
                partials, weight, first, start, number, channels, parts, size, smooth_nr, smooth_dr,
                SQUARED, JACCARD, EMPTY, HAS_WEIGHT, TILE, PARTS,
            )  # fmt: skip
            all_bce += bce
            all_elements += elements
            all_counted += counted
            all_dice += dice
    mean_elements = tl.maximum(tl.sum(all_elements), 1.0)
    mean_counted = tl.maximum(tl.sum(all_counted), 1.0)
    total = tl.zeros([TILE], tl.float64)
    for start in range(0, number, TILE):
        bce, elements, counted, dice, of_intersection, of_prediction = segments(
            partials, weight, first, start, number, channels, parts, size, smooth_nr, smooth_dr,
            SQUARED, JACCARD, EMPTY, HAS_WEIGHT, TILE, PARTS,
        )  # fmt: skip
        segment = start + tl.arange(0, TILE)
        live = segment < number
        of_bce = bce_weight / (tl.maximum(elements, 1.0) if REDUCTION != 1 else mean_elements + 0.0 * elements)
        if REDUCTION == 3:
            of_bce = tl.zeros([TILE], tl.float64) + bce_weight
        of_dice = dice_weight / (1.0 if REDUCTION != 1 else mean_counted)
        own = of_bce * bce + of_dice * dice
        if REDUCTION == 0:
            tl.store(loss + first + segment, own, mask=live)
        total += tl.where(live, own, 0.0)
        for sample in range(samples if OVER_BATCH else 1):
            row = (group * samples + sample) * channels + segment if OVER_BATCH else first + segment
            tl.store(coefficients + row, of_bce, mask=live)
            tl.store(coefficients + planes + row, of_dice * of_intersection, mask=live)
            tl.store(coefficients + 2 * planes + row, of_dice * of_prediction, mask=live)
    if REDUCTION == 1:
        tl.store(
            loss + group, bce_weight * tl.sum(all_bce) / mean_elements + dice_weight * tl.sum(all_dice) / mean_counted
        )
    elif REDUCTION >= 2:
        tl.store(loss + group, tl.sum(total))


@triton.jit
def overlap_finish(partials, sums, planes, parts, TILE: tl.constexpr, PARTS: tl.constexpr):
    """One row of sums [5, planes] for TILE planes from their partials; grid [5 * tiles]."""
    tiles = tl.cdiv(planes, TILE)
    kind = tl.program_id(0) // tiles
    plane = (tl.program_id(0) % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    size = tl.cast(planes, tl.int64)
    total = sum_parts(partials + kind * size * parts, plane, plane < planes, parts, TILE, PARTS)
    tl.store(sums + kind * size + plane, total, mask=plane < planes)


@triton.jit
def dice_bce_gradient(
    grad, gb, gc, x, t, m, pos_weight, coefficients, out,
    xb, xc, xs, tb, tc, ts, mb, mc, ms, ob, oc, os,
    samples, channels, pixels, blocks, planes,
    SQUARED: tl.constexpr, MASK: tl.constexpr, HAS_POS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = grad * d loss / d logits, one block of one plane; grid [blocks * planes]."""
    b, c, block = place_of(tl.program_id(0), channels, blocks)
    plane = b * channels + c
    weight = tl.load(pos_weight + b // samples * channels + c).to(tl.float32) if HAS_POS_WEIGHT else 1.0
    go = tl.load(grad + b * gb + c * gc).to(tl.float32)
    of_bce = go * tl.load(coefficients + plane)
    of_intersection = go * tl.load(coefficients + planes + plane)
    of_prediction = go * tl.load(coefficients + 2 * planes + plane)
    offsets = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    visible = visible_pixels(m, mb, mc, b, c, pixels, MASK)
    logits, target, valid = load_plane(
        x, xb, xc, xs, t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, visible, MASK == BY_PIXEL, "evict_first"
    )
    e, r = sigmoid_parts(logits)
    p = tl.where(logits >= 0, r, e * r)
    q = tl.where(logits >= 0, e * r, r)
    slope = of_intersection * target + (of_prediction * p if SQUARED else of_prediction)
    values = of_bce * ((1.0 - target) * p - weight * target * q) + slope * (p * q)
    if MASK:
        values = tl.where(valid, values, 0.0)  # a NaN coefficient must not reach masked elements either
    tl.store(out + b * ob + c * oc + offsets * os, values, mask=offsets < pixels)


def _sums(
    input: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None, mask: torch.Tensor | None,
    counts: torch.Tensor | None, batch: bool, squared: bool, groups: int,
) -> tuple[torch.Tensor, int]:  # fmt: skip
    """Partials [5, B, C, splits], or with batch [5, groups, C, samples, splits], flat; and splits."""
    channels, samples = input.shape[1], input.shape[0] // groups
    planes, pixels = input.shape[0] * channels, math.prod(input.shape[2:])
    block = block_size(pixels)
    chunk = chunk_size(planes * pixels, block)
    splits = triton.cdiv(pixels, chunk)
    partials = torch.empty(5 * planes * splits, dtype=torch.float32, device=input.device)
    (x, xs), (t, ts), (m, ms) = as_planes(input), as_planes(target), as_planes(mask)
    dice_bce_sums[(splits * planes,)](
        x, t, m, pos_weight, partials, counts, *xs, *ts, *ms, samples, channels, pixels, chunk, splits, planes,
        OVER_BATCH=batch, SQUARED=squared, MASK=mask_kind(m, ms[2]), HAS_POS_WEIGHT=pos_weight is not None,
        COUNTS=counts is not None, BLOCK=block, **LAUNCH,
    )  # fmt: skip
    return partials, splits


def forward(
    input: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None, weight: torch.Tensor | None,
    mask: torch.Tensor | None, loss: torch.Tensor, coefficients: torch.Tensor, counts: torch.Tensor | None,
    bce_weight: float, dice_weight: float, batch: bool, squared: bool, jaccard: bool, smooth_nr: float,
    smooth_dr: float, empty: int, reduction: int, groups: int,
) -> None:  # fmt: skip
    """Fills loss and coefficients [3, B, C], adds to counts [4, B, C]. Tensors [B, C, *spatial] have one pixel stride
    each."""
    channels, samples = input.shape[1], input.shape[0] // groups
    with torch.cuda.device_of(input):
        partials, splits = _sums(input, target, pos_weight, mask, counts, batch, squared, groups)
        number, parts = (channels, splits * samples) if batch else (samples * channels, splits)
        dice_bce_finish[(groups,)](
            partials, weight, loss, coefficients, samples, channels, number, parts, input.shape[0] * channels,
            bce_weight, dice_weight, smooth_nr, smooth_dr,
            OVER_BATCH=batch, SQUARED=squared, JACCARD=jaccard, EMPTY=empty, REDUCTION=reduction,
            HAS_WEIGHT=weight is not None, **(LAUNCH | finish_tile(number, parts)),
        )  # fmt: skip


def overlap(
    input: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None, mask: torch.Tensor | None,
    sums: torch.Tensor, squared: bool, groups: int,
) -> None:  # fmt: skip
    """Fills sums [5, B, C]: I, P, T, BCE, valid elements."""
    planes = input.shape[0] * input.shape[1]
    with torch.cuda.device_of(input):
        partials, splits = _sums(input, target, pos_weight, mask, None, False, squared, groups)
        overlap_finish[(5 * triton.cdiv(planes, 16),)](partials, sums, planes, splits, TILE=16, PARTS=64, **LAUNCH)


def backward(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None,
    mask: torch.Tensor | None, coefficients: torch.Tensor, gradient: torch.Tensor, squared: bool, groups: int,
) -> None:  # fmt: skip
    """Fills gradient [B, C, *spatial] from grad [B, C] and the coefficients of `forward`."""
    channels, pixels = input.shape[1], math.prod(input.shape[2:])
    planes, block = input.shape[0] * channels, block_size(pixels)
    blocks = triton.cdiv(pixels, block)
    (x, xs), (t, ts), (m, ms), (out, os) = as_planes(input), as_planes(target), as_planes(mask), as_planes(gradient)
    with torch.cuda.device_of(input):
        dice_bce_gradient[(blocks * planes,)](
            grad, *grad.stride(), x, t, m, pos_weight, coefficients, out, *xs, *ts, *ms, *os,
            input.shape[0] // groups, channels, pixels, blocks, planes,
            SQUARED=squared, MASK=mask_kind(m, ms[2]), HAS_POS_WEIGHT=pos_weight is not None, BLOCK=block, **LAUNCH,
        )  # fmt: skip
