"""Softmax Dice + cross-entropy for NVIDIA GPUs, from class numbers: segment sums, two small finishing kernels, and a
gradient.

The sums are those of softmax_sums_triton.py. Their partials are read once, by a program for some classes of each row,
and added in a fixed order in float64: no float atomics, and splits that depend only on the shape.
fastmtl/ops/losses/dice_ce_backends.py has the formulas.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .dice_score_triton import dice_score
from .planes_triton import LAUNCH, sum_parts
from .softmax_sums_triton import sums


@triton.jit
def dice_ce_segments(
    partials, weight, coefficients, terms,
    samples, rows, channels, parts, planes, smoothing, smooth_nr, smooth_dr,
    BACKGROUND: tl.constexpr, SQUARED: tl.constexpr, JACCARD: tl.constexpr, EMPTY: tl.constexpr,
    OVERLAP: tl.constexpr, SPREAD: tl.constexpr, SOFT: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """TILE classes of one row, which is a sample or the whole batch; grid [rows, tiles].

    Writes their coefficients [3, B, C] before the division by what only all classes or rows know, and to
    terms [4, rows, tiles] their sums of cross-entropies, of its divisor, of Dice losses and of segments that count.
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    size = tl.cast(planes, tl.int64) * (parts // (samples // rows))
    c = tile * TILE + tl.arange(0, TILE)
    live = c < channels
    segment = row.to(tl.int64) * channels + c
    truth = sum_parts(partials + 2 * size, segment, live, parts, TILE, PARTS)
    entropy = (1.0 - smoothing) * sum_parts(partials + 3 * size, segment, live, parts, TILE, PARTS)
    only = tl.arange(0, 1)
    pixels = tl.zeros([TILE], tl.float64)
    pixels += tl.sum(sum_parts(partials + 5 * size, row.to(tl.int64) + only, only == 0, parts, 1, PARTS))
    if SPREAD:
        entropy += smoothing / channels * sum_parts(partials + 4 * size, segment, live, parts, TILE, PARTS)
    scale = tl.full([TILE], 1.0, tl.float64)
    if HAS_WEIGHT:
        scale = tl.load(weight + c, mask=live, other=0.0).to(tl.float64)
        entropy = tl.where(live, scale * entropy, 0.0)
    over = tl.where(c == 0, pixels, 0.0) if SOFT else scale * truth
    dice = tl.zeros([TILE], tl.float64)
    counted = dice
    of_intersection = dice
    of_prediction = dice
    if OVERLAP:
        intersection = sum_parts(partials, segment, live, parts, TILE, PARTS)
        prediction = sum_parts(partials + size, segment, live, parts, TILE, PARTS)
        there, dice, of_intersection, of_prediction = dice_score(
            intersection, prediction, truth, pixels, smooth_nr, smooth_dr, SQUARED, JACCARD, EMPTY
        )
        there = there & live & (c >= (0 if BACKGROUND else 1))
        dice = tl.where(there, scale * dice, 0.0)
        of_intersection = tl.where(there, scale * of_intersection, 0.0)
        of_prediction = tl.where(there, scale * of_prediction, 0.0)
        counted = there.to(tl.float64)
    for sample in range(samples // rows):
        at = coefficients + segment + sample * channels
        tl.store(at, scale, mask=live)
        tl.store(at + planes, of_intersection, mask=live)
        tl.store(at + 2 * planes, of_prediction, mask=live)
    tiles = tl.num_programs(1)
    at = terms + row * tiles + tile
    tl.store(at, tl.sum(entropy))
    tl.store(at + rows * tiles, tl.sum(over))
    tl.store(at + 2 * rows * tiles, tl.sum(dice))
    tl.store(at + 3 * rows * tiles, tl.sum(counted))


@triton.jit
def _sum(terms, size, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(terms + i, mask=i < size, other=0.0)
    return tl.sum(total)


@triton.jit
def _sum_tiles(terms, row, live, tiles, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for tile in range(tiles):
        total += tl.load(terms + row * tiles + tile, mask=live, other=0.0)
    return total


@triton.jit
def _factors(over, counted, ce_weight, dice_weight, REDUCTION: tl.constexpr):
    """What a sum of cross-entropies, and one of Dice losses, is multiplied by."""
    of_ce = ce_weight / tl.where((over == 0) | (REDUCTION >= 3), 1.0, over)
    return of_ce, dice_weight / tl.maximum(counted, 1.0)


@triton.jit
def dice_ce_finish(
    terms, loss, coefficients, rows, tiles, planes, ce_weight, dice_weight,
    REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss, by the first program, and the coefficients of `dice_ce_segments` divided, in place, by all of them.
    REDUCTION 1 divides by the sums of all rows, others by those of each row."""
    size = rows * tiles
    if REDUCTION == 1:
        of_ce, of_dice = _factors(
            _sum(terms + size, size, BLOCK), _sum(terms + 3 * size, size, BLOCK), ce_weight, dice_weight, REDUCTION
        )
    if tl.program_id(0) == 0:
        if REDUCTION == 1:
            tl.store(loss, of_ce * _sum(terms, size, BLOCK) + of_dice * _sum(terms + 2 * size, size, BLOCK))
        else:
            total = tl.zeros([BLOCK], tl.float64)
            for start in range(0, rows, BLOCK):
                row = start + tl.arange(0, BLOCK)
                live = row < rows
                of_row_ce, of_row_dice = _factors(
                    _sum_tiles(terms + size, row, live, tiles, BLOCK),
                    _sum_tiles(terms + 3 * size, row, live, tiles, BLOCK),
                    ce_weight, dice_weight, REDUCTION,
                )  # fmt: skip
                value = of_row_ce * _sum_tiles(terms, row, live, tiles, BLOCK)
                value += of_row_dice * _sum_tiles(terms + 2 * size, row, live, tiles, BLOCK)
                if REDUCTION == 0 or REDUCTION == 4:
                    tl.store(loss + row, value, mask=live)
                else:
                    total += value
            if REDUCTION == 2 or REDUCTION == 3:
                tl.store(loss, tl.sum(total))
    for start in range(tl.program_id(0) * BLOCK, planes, tl.num_programs(0) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        live = i < planes
        if REDUCTION != 1:
            row = i // (planes // rows)
            of_ce, of_dice = _factors(
                _sum_tiles(terms + size, row, live, tiles, BLOCK),
                _sum_tiles(terms + 3 * size, row, live, tiles, BLOCK),
                ce_weight, dice_weight, REDUCTION,
            )  # fmt: skip
        at = coefficients + i
        tl.store(at, of_ce * tl.load(at, mask=live), mask=live)
        tl.store(at + planes, of_dice * tl.load(at + planes, mask=live), mask=live)
        tl.store(at + 2 * planes, of_dice * tl.load(at + 2 * planes, mask=live), mask=live)


def forward(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, mask: torch.Tensor | None,
    loss: torch.Tensor, coefficients: torch.Tensor, counts: torch.Tensor | None,
    ce_weight: float, dice_weight: float, ignore_index: int, smoothing: float, background: bool, batch: bool,
    squared: bool, jaccard: bool, smooth_nr: float, smooth_dr: float, empty: int, reduction: int,
) -> None:  # fmt: skip
    """Fills loss and coefficients [3, B, C], adds to counts [B, 3 C + 1]. Tensors have one pixel stride each."""
    B, C = input.shape[:2]
    overlap, spread = dice_weight != 0, smoothing > 0
    with torch.cuda.device_of(input):
        partials, splits = sums(
            input, target, mask, counts, ignore_index, batch, squared, overlap, spread, weight is not None
        )
        rows, parts = (1, splits * B) if batch else (B, splits)
        width = min(1024, triton.next_power_of_2(parts))
        tile = min(triton.next_power_of_2(C), max(1, 2048 // width))
        tiles = triton.cdiv(C, tile)
        terms = torch.empty(4, rows, tiles, dtype=torch.float64, device=input.device)
        dice_ce_segments[(rows, tiles)](
            partials, weight, coefficients, terms, B, rows, C, parts, B * C, smoothing, smooth_nr, smooth_dr,
            BACKGROUND=background, SQUARED=squared, JACCARD=jaccard, EMPTY=empty,
            OVERLAP=overlap, SPREAD=spread, SOFT=target.shape[1] != 1, HAS_WEIGHT=weight is not None,
            TILE=tile, PARTS=width, **LAUNCH,
        )  # fmt: skip
        dice_ce_finish[(min(128, triton.cdiv(B * C, 512)),)](
            terms, loss, coefficients, rows, tiles, B * C, ce_weight, dice_weight,
            REDUCTION=reduction, BLOCK=512, **LAUNCH,
        )  # fmt: skip


def overlap(
    input: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, out: torch.Tensor,
    ignore_index: int, squared: bool,
) -> None:  # fmt: skip
    """Fills out [5, B, C]: I, P, T, cross-entropy, valid pixels. A sample with an invalid class number has NaN in P."""
    B, C = input.shape[:2]
    with torch.cuda.device_of(input):
        partials, splits = sums(input, target, mask, None, ignore_index, False, squared, True, False, True)
    size = B * C * splits
    out[:4] = partials[: 4 * size].view(4, B, C, splits).sum(3, dtype=torch.float64)
    # The kernels mark an invalid class number in the cross-entropy, which the losses of overlaps do not read.
    out[1] = torch.where(out[3].isnan().any(1, keepdim=True), float("nan"), out[1])
    out[4] = partials[5 * size :].view(B, 1, splits).sum(2, dtype=torch.float64)
