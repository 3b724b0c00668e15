"""Softmax Dice + cross-entropy for NVIDIA GPUs, from class numbers: segment sums, a finaliser, and a gradient.

The sums are those of softmax_sums_triton.py; one program adds their partials in a fixed order in float64: no float
atomics, and splits that depend only on the shape. fastmtl/ops/losses/dice_ce_backends.py has the formulas.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .dice_score_triton import dice_score
from .planes_triton import LAUNCH, sum_parts
from .softmax_sums_triton import sums


@triton.jit
def _classes(
    partials, weight, row, start, channels, parts, size, smoothing, smooth_nr, smooth_dr,
    BACKGROUND: tl.constexpr, SQUARED: tl.constexpr, JACCARD: tl.constexpr, EMPTY: tl.constexpr,
    OVERLAP: tl.constexpr, SPREAD: tl.constexpr, SOFT: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """For TILE classes of one row: cross-entropy, its divisor, Dice loss and whether it counts, weight, slopes."""
    c = start + tl.arange(0, TILE)
    live = c < channels
    segment = row * channels + c
    truth = sum_parts(partials + 2 * size, segment, live, parts, TILE, PARTS)
    entropy = (1.0 - smoothing) * sum_parts(partials + 3 * size, segment, live, parts, TILE, PARTS)
    pixels = sum_parts(partials + 5 * size, row + 0 * segment, live, parts, TILE, PARTS)
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
    return entropy, over, dice, counted, scale, of_intersection, of_prediction


@triton.jit
def _add_row(
    entropies, overs, dices, counts, partials, weight, row, channels, parts, size, smoothing, smooth_nr, smooth_dr,
    BACKGROUND: tl.constexpr, SQUARED: tl.constexpr, JACCARD: tl.constexpr, EMPTY: tl.constexpr,
    OVERLAP: tl.constexpr, SPREAD: tl.constexpr, SOFT: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    for start in range(0, channels, TILE):
        entropy, over, dice, counted, scale, of_intersection, of_prediction = _classes(
            partials, weight, row, start, channels, parts, size, smoothing, smooth_nr, smooth_dr,
            BACKGROUND, SQUARED, JACCARD, EMPTY, OVERLAP, SPREAD, SOFT, HAS_WEIGHT, TILE, PARTS,
        )  # fmt: skip
        entropies += entropy
        overs += over
        dices += dice
        counts += counted
    return entropies, overs, dices, counts


@triton.jit
def dice_ce_finish(
    partials, weight, loss, coefficients,
    samples, rows, channels, parts, planes, ce_weight, dice_weight, smoothing, smooth_nr, smooth_dr,
    BACKGROUND: tl.constexpr, SQUARED: tl.constexpr, JACCARD: tl.constexpr, EMPTY: tl.constexpr,
    REDUCTION: tl.constexpr, OVERLAP: tl.constexpr, SPREAD: tl.constexpr, SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Loss and coefficients [3, B, C] from the partials of `rows` samples, or of one row for the whole batch."""
    size = tl.cast(planes, tl.int64) * (parts // (samples // rows))
    zeros = tl.zeros([TILE], tl.float64)
    entropies, overs, dices, counts = zeros, zeros, zeros, zeros
    if REDUCTION == 1:
        for row in range(rows):
            entropies, overs, dices, counts = _add_row(
                entropies, overs, dices, counts, partials, weight, row, channels, parts, size,
                smoothing, smooth_nr, smooth_dr,
                BACKGROUND, SQUARED, JACCARD, EMPTY, OVERLAP, SPREAD, SOFT, HAS_WEIGHT, TILE, PARTS,
            )  # fmt: skip
    total = zeros
    for row in range(rows):
        if REDUCTION != 1:
            entropies, overs, dices, counts = _add_row(
                zeros, zeros, zeros, zeros, partials, weight, row, channels, parts, size,
                smoothing, smooth_nr, smooth_dr,
                BACKGROUND, SQUARED, JACCARD, EMPTY, OVERLAP, SPREAD, SOFT, HAS_WEIGHT, TILE, PARTS,
            )  # fmt: skip
        divisor = tl.sum(overs)
        of_ce = ce_weight / tl.where((divisor == 0) | (REDUCTION >= 3), 1.0, divisor)
        of_dice = dice_weight / tl.maximum(tl.sum(counts), 1.0)
        value = of_ce * tl.sum(entropies) + of_dice * tl.sum(dices)
        if REDUCTION == 0 or REDUCTION == 4:
            tl.store(loss + row, value)
        elif REDUCTION == 1:
            tl.store(loss, value)
        else:
            total += tl.where(tl.arange(0, TILE) == 0, value, 0.0)
        for start in range(0, channels, TILE):
            entropy, over, dice, counted, scale, of_intersection, of_prediction = _classes(
                partials, weight, row, start, channels, parts, size, smoothing, smooth_nr, smooth_dr,
                BACKGROUND, SQUARED, JACCARD, EMPTY, OVERLAP, SPREAD, SOFT, HAS_WEIGHT, TILE, PARTS,
            )  # fmt: skip
            c = start + tl.arange(0, TILE)
            live = c < channels
            for sample in range(samples // rows):
                at = coefficients + (row + sample) * channels + c
                tl.store(at, of_ce * scale, mask=live)
                tl.store(at + planes, of_dice * of_intersection, mask=live)
                tl.store(at + 2 * planes, of_dice * of_prediction, mask=live)
    if REDUCTION == 2 or REDUCTION == 3:
        tl.store(loss, tl.sum(total))


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
        dice_ce_finish[(1,)](
            partials, weight, loss, coefficients, B, 1 if batch else B, C, splits * (B if batch else 1), B * C,
            ce_weight, dice_weight, smoothing, smooth_nr, smooth_dr,
            BACKGROUND=background, SQUARED=squared, JACCARD=jaccard, EMPTY=empty, REDUCTION=reduction,
            OVERLAP=overlap, SPREAD=spread, SOFT=target.shape[1] != 1, HAS_WEIGHT=weight is not None,
            TILE=min(32, triton.next_power_of_2(C)), PARTS=32, **LAUNCH,
        )  # fmt: skip


def overlap(
    input: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, out: torch.Tensor,
    ignore_index: int, squared: bool,
) -> None:  # fmt: skip
    """Fills out [5, B, C]: I, P, T, cross-entropy, valid pixels."""
    B, C = input.shape[:2]
    with torch.cuda.device_of(input):
        partials, splits = sums(input, target, mask, None, ignore_index, False, squared, True, False, True)
    size = B * C * splits
    out[:4] = partials[: 4 * size].view(4, B, C, splits).sum(3, dtype=torch.float64)
    out[4] = partials[5 * size :].view(B, 1, splits).sum(2, dtype=torch.float64)
