"""Dice + BCE of several heads against one mask for NVIDIA GPUs: one launch of sums, a finaliser, one of gradients.

A head is passed as a tuple of kernel arguments, not as a table on the device: nothing is copied, nothing waits, and a
CUDA graph can capture the launches. The heads are unrolled, each behind a comparison of the program id, so each is
compiled for its strides and alignment: a full-resolution head with a plain mask uses 16-byte loads as dice_bce does.
The other heads gather their windows of the mask, which is cached after the first head. Splits depend only on the
shapes, and no sum on the order of programs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .dice_score_triton import segments
from .planes_triton import LAUNCH, as_planes, block_size, chunk_size, finish_tile, log1p_unit, sigmoid_parts
from .windows_triton import load_head


@triton.jit
def _weight(numbers, weights, HEAD: tl.constexpr, MOVING: tl.constexpr):
    # The interpreter passes a number in a tuple as a Python float: the sum is a tensor everywhere.
    return tl.full((), 0.0, tl.float32) + (tl.load(weights + HEAD).to(tl.float32) if MOVING else numbers[HEAD])


@triton.jit
def deep_supervision_sums(
    heads, numbers, weights, t, tb, tc, td, th, tw, ts, m, mb, mc, md, mh, mw, ms, pos_weight, partials,
    samples, channels, programs,
    SCALES: tl.constexpr, FLAT: tl.constexpr, HOW: tl.constexpr, MOVING: tl.constexpr, OVER_BATCH: tl.constexpr,
    SQUARED: tl.constexpr, HAS_MASK: tl.constexpr, HAS_POS_WEIGHT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One split of one plane of one head; grid [programs]. Partials [5, programs] as in dice_bce, head after head."""
    pid = tl.program_id(0)
    for level in tl.static_range(len(SCALES)):
        head = heads[level]
        pixels = head[6]
        chunk = head[7]
        splits = head[8]
        begin = head[9]
        own = pid - begin
        if (own >= 0) & (own < splits * samples * channels):
            split = own % splits
            plane = (own // splits).to(tl.int64)
            b = plane // channels
            c = plane % channels
            weight = tl.load(pos_weight + c).to(tl.float32) if HAS_POS_WEIGHT else 1.0
            intersection = tl.zeros([BLOCK], tl.float32)
            prediction = tl.zeros([BLOCK], tl.float32)
            truth = tl.zeros([BLOCK], tl.float32)
            bce = tl.zeros([BLOCK], tl.float32)
            elements = tl.zeros([BLOCK], tl.float32)
            first = split.to(tl.int64) * chunk
            # A head of weight 0 is off: it is not read.
            readable = tl.where(_weight(numbers, weights, level, MOVING) != 0, pixels, 0)
            for start in range(0, chunk, BLOCK):
                offsets = first + start + tl.arange(0, BLOCK)
                logits, target, valid = load_head(
                    head, t, tb, tc, td, th, tw, ts, m, mb, mc, md, mh, mw, ms, b, c, offsets, readable,
                    SCALES[level][0], SCALES[level][1], SCALES[level][2], FLAT, HOW, HAS_MASK, WIDE, "evict_last",
                )  # fmt: skip
                e, r = sigmoid_parts(logits)
                p = tl.where(logits >= 0, r, e * r)
                slope = tl.where(logits >= 0, 1.0 - target, -weight * target)
                linear = tl.where(slope == 0, 0.0, slope * logits)  # infinite and correct: 0, not NaN
                entropy = log1p_unit(e)
                if HAS_POS_WEIGHT:
                    entropy *= 1.0 + (weight - 1.0) * target
                bce += linear + entropy
                intersection += p * target
                prediction += p * p if SQUARED else p
                truth += target * target if SQUARED else target
                if HAS_MASK:
                    elements += valid.to(tl.float32)
            part = own.to(tl.int64)
            if OVER_BATCH:
                part = (c * samples + b) * splits + split
            part += begin
            tl.store(partials + part, tl.sum(intersection))
            tl.store(partials + programs + part, tl.sum(prediction))
            tl.store(partials + 2 * programs + part, tl.sum(truth))
            if HAS_MASK:
                number = tl.sum(elements)
            else:
                number = tl.minimum(pixels - first, chunk).to(tl.float32)
            cost = tl.where(number > 0, tl.sum(bce), 0.0)  # an infinite weight makes masked elements NaN
            tl.store(partials + 3 * programs + part, cost)
            tl.store(partials + 4 * programs + part, number)


@triton.jit
def deep_supervision_finish(
    heads, numbers, weights, partials, loss, coefficients,
    samples, channels, programs, bce_weight, dice_weight, smooth_nr, smooth_dr,
    HEADS: tl.constexpr, MOVING: tl.constexpr, OVER_BATCH: tl.constexpr, SQUARED: tl.constexpr, JACCARD: tl.constexpr,
    EMPTY: tl.constexpr, MEAN: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Loss and coefficients [L, 3, B, C] from the partials; one program, because a head has few numbers."""
    together = tl.full((), 0.0, tl.float64)
    planes = samples * channels
    number = channels if OVER_BATCH else planes
    for level in range(HEADS):  # not unrolled: only three numbers differ
        splits = heads[0][8]
        begin = heads[0][9]
        scale = _weight(numbers, weights, 0, MOVING).to(tl.float64)
        for k in tl.static_range(1, HEADS):
            splits = tl.where(level == k, heads[k][8], splits)
            begin = tl.where(level == k, heads[k][9], begin)
            scale = tl.where(level == k, _weight(numbers, weights, k, MOVING).to(tl.float64), scale)
        own = partials + begin
        parts = splits * samples if OVER_BATCH else splits
        all_bce = tl.zeros([TILE], tl.float64)
        all_elements = tl.zeros([TILE], tl.float64)
        all_counted = tl.zeros([TILE], tl.float64)
        all_dice = tl.zeros([TILE], tl.float64)
        for start in range(0, number, TILE):
            bce, elements, counted, dice, of_intersection, of_prediction = segments(
                own, None, 0, start, number, channels, parts, programs, smooth_nr, smooth_dr,
                SQUARED, JACCARD, EMPTY, False, TILE, PARTS,
            )  # fmt: skip
            all_bce += bce
            all_elements += elements
            all_counted += counted
            all_dice += dice
        of_bce = bce_weight / tl.maximum(tl.sum(all_elements), 1.0)
        of_dice = dice_weight / tl.maximum(tl.sum(all_counted), 1.0)
        value = tl.where(scale != 0, scale * (of_bce * tl.sum(all_bce) + of_dice * tl.sum(all_dice)), 0.0)
        together += value
        if not MEAN:
            tl.store(loss + level, value)
        of_bce = tl.where(scale != 0, scale * of_bce, 0.0)
        of_dice = tl.where(scale != 0, scale * of_dice, 0.0)
        for start in range(0, number, TILE):
            bce, elements, counted, dice, of_intersection, of_prediction = segments(
                own, None, 0, start, number, channels, parts, programs, smooth_nr, smooth_dr,
                SQUARED, JACCARD, EMPTY, False, TILE, PARTS,
            )  # fmt: skip
            segment = start + tl.arange(0, TILE)
            live = segment < number
            for sample in range(samples if OVER_BATCH else 1):
                row = coefficients + level * 3 * planes + sample * channels + segment
                tl.store(row, of_bce + tl.zeros([TILE], tl.float64), mask=live)
                tl.store(row + planes, tl.where(scale != 0, of_dice * of_intersection, 0.0), mask=live)
                tl.store(row + 2 * planes, tl.where(scale != 0, of_dice * of_prediction, 0.0), mask=live)
    if MEAN:
        tl.store(loss, together)


@triton.jit
def deep_supervision_gradient(
    heads, gradients, grad, gl, t, tb, tc, td, th, tw, ts, m, mb, mc, md, mh, mw, ms, pos_weight, coefficients,
    samples, channels,
    SCALES: tl.constexpr, FLAT: tl.constexpr, HOW: tl.constexpr, SQUARED: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_POS_WEIGHT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one plane of one head; the grid holds all heads' blocks."""
    pid = tl.program_id(0)
    planes = samples * channels
    for level in tl.static_range(len(SCALES)):
        head = heads[level]
        pixels = head[6]
        blocks = head[7]
        own = pid - head[8]
        if (own >= 0) & (own < blocks * planes):
            plane = (own // blocks).to(tl.int64)
            b = plane // channels
            c = plane % channels
            weight = tl.load(pos_weight + c).to(tl.float32) if HAS_POS_WEIGHT else 1.0
            slopes = coefficients + level * 3 * planes + plane
            of_bce = tl.load(slopes)
            of_intersection = tl.load(slopes + planes)
            of_prediction = tl.load(slopes + 2 * planes)
            # All 0 if the plane does not count, for example in a head that is off: a NaN in it has no effect.
            moves = (of_bce != 0) | (of_intersection != 0) | (of_prediction != 0)
            go = tl.load(grad + level * gl).to(tl.float32)
            of_bce *= go
            of_intersection *= go
            of_prediction *= go
            offsets = (own % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            logits, target, valid = load_head(
                head, t, tb, tc, td, th, tw, ts, m, mb, mc, md, mh, mw, ms, b, c, offsets,
                tl.where(moves, pixels, 0), SCALES[level][0], SCALES[level][1], SCALES[level][2], FLAT, HOW, HAS_MASK,
                WIDE, "evict_first",
            )  # fmt: skip
            e, r = sigmoid_parts(logits)
            p = tl.where(logits >= 0, r, e * r)
            q = tl.where(logits >= 0, e * r, r)
            slope = of_intersection * target + (of_prediction * p if SQUARED else of_prediction)
            values = of_bce * ((1.0 - target) * p - weight * target * q) + slope * (p * q)
            values = tl.where(
                valid, values, 0.0
            )  # a NaN grad or coefficient must not reach elements that were not read
            out = gradients[level]
            tl.store(out[0] + b * out[1] + c * out[2] + offsets * out[3], values, mask=offsets < pixels)


def _head(tensor: torch.Tensor) -> tuple[torch.Tensor | None, int, int, int]:
    """The tensor with its batch, channel and pixel stride, in one tuple."""
    plane, strides = as_planes(tensor)
    return plane, *strides


def _volume(tensor: torch.Tensor | None, flat: bool) -> tuple[torch.Tensor | None, int, int, int, int, int, int]:
    """The tensor, bool read as bytes, with batch, channel, depth, row and column stride; pixel stride if `flat`."""
    if tensor is None:
        return None, 0, 0, 0, 0, 0, 0
    bytes_too, (of_batch, of_channel, of_pixel) = as_planes(tensor)
    depth, row, column = (0,) * (5 - tensor.dim()) + tensor.stride()[2:]
    return bytes_too, of_batch, of_channel, depth, row, column, of_pixel if flat else 0


Scales = tuple[tuple[int, ...], ...]


def forward(
    inputs: Sequence[torch.Tensor], target: torch.Tensor, mask: torch.Tensor | None, scales: Scales, flat: bool,
    weights: Sequence[float] | torch.Tensor, pos_weight: torch.Tensor | None, loss: torch.Tensor,
    coefficients: torch.Tensor, how: int, bce_weight: float, dice_weight: float, batch: bool, squared: bool,
    jaccard: bool, smooth_nr: float, smooth_dr: float, empty: int,
) -> None:  # fmt: skip
    """Fills loss, [] or [L], and coefficients [L, 3, B, C]. `flat`: target and mask have one pixel stride each."""
    samples, channels = inputs[0].shape[:2]
    planes, sizes = samples * channels, [math.prod(x.shape[2:]) for x in inputs]
    block = block_size(max(sizes))
    chunk = chunk_size(planes * sum(sizes), block)
    heads, programs = [], 0
    for x, pixels in zip(inputs, sizes, strict=True):
        splits, lines = triton.cdiv(pixels, chunk), (1, *x.shape[2:])[-2:]
        heads.append((*_head(x), *lines, pixels, chunk, splits, programs))
        programs += splits * planes
    partials = torch.empty(5 * programs, dtype=torch.float32, device=target.device)
    moving = isinstance(weights, torch.Tensor)
    numbers, moved = ((0.0,) * len(heads), weights) if moving else (tuple(weights), None)
    with torch.cuda.device_of(inputs[0]):
        deep_supervision_sums[(programs,)](
            tuple(heads), numbers, moved, *_volume(target, flat), *_volume(mask, flat), pos_weight, partials, samples,
            channels, programs, SCALES=scales, FLAT=flat, HOW=how, MOVING=moving, OVER_BATCH=batch, SQUARED=squared,
            HAS_MASK=mask is not None, HAS_POS_WEIGHT=pos_weight is not None, WIDE=max(sizes) >= 2**31, BLOCK=block,
            **LAUNCH,
        )  # fmt: skip
        number, parts = (channels, programs // channels) if batch else (planes, programs // planes)
        deep_supervision_finish[(1,)](
            tuple(heads), numbers, moved, partials, loss, coefficients, samples, channels, programs, bce_weight,
            dice_weight, smooth_nr, smooth_dr, HEADS=len(heads), MOVING=moving, OVER_BATCH=batch, SQUARED=squared,
            JACCARD=jaccard, EMPTY=empty, MEAN=loss.dim() == 0, **(LAUNCH | finish_tile(number, parts)),
        )  # fmt: skip


def backward(
    grad: torch.Tensor, inputs: Sequence[torch.Tensor], target: torch.Tensor, mask: torch.Tensor | None,
    scales: Scales, flat: bool, pos_weight: torch.Tensor | None, coefficients: torch.Tensor,
    gradients: Sequence[torch.Tensor], how: int, squared: bool,
) -> None:  # fmt: skip
    """Fills every head's gradient from grad, [] or [L], and the coefficients of `forward`."""
    samples, channels = inputs[0].shape[:2]
    sizes = [math.prod(x.shape[2:]) for x in inputs]
    block, heads, programs = block_size(max(sizes)), [], 0
    for x, pixels in zip(inputs, sizes, strict=True):
        blocks, lines = triton.cdiv(pixels, block), (1, *x.shape[2:])[-2:]
        heads.append((*_head(x), *lines, pixels, blocks, programs))
        programs += blocks * samples * channels
    with torch.cuda.device_of(inputs[0]):
        deep_supervision_gradient[(programs,)](
            tuple(heads), tuple(map(_head, gradients)), grad, grad.stride(0) if grad.dim() else 0,
            *_volume(target, flat), *_volume(mask, flat), pos_weight, coefficients, samples, channels,
            SCALES=scales, FLAT=flat, HOW=how, SQUARED=squared, HAS_MASK=mask is not None,
            HAS_POS_WEIGHT=pos_weight is not None, WIDE=max(sizes) >= 2**31, BLOCK=block, **LAUNCH,
        )  # fmt: skip
