"""The Dice (or Jaccard) loss of segments from their sums or partials, with its slopes, as in dice_score.hpp."""

from __future__ import annotations

import triton
import triton.language as tl

from .planes_triton import sum_parts


@triton.jit
def dice_score(
    intersection, prediction, truth, elements, smooth_nr, smooth_dr,
    SQUARED: tl.constexpr, JACCARD: tl.constexpr, EMPTY: tl.constexpr,
):  # fmt: skip
    """Whether a segment counts; its loss, d loss / d I and q times d loss / d P, 0 if it does not count."""
    counted = elements > 0
    if EMPTY == 2:
        counted = counted & (truth != 0)
    pair = (truth == 0) & (prediction == 0)  # the score of an empty pair is a constant
    total = prediction + truth
    if JACCARD:
        total = 2.0 * (total - intersection)
    denominator = tl.where(pair, 1.0, total + smooth_dr)
    score = (2.0 * intersection + smooth_nr) / denominator
    of_prediction = score / denominator
    of_intersection = -2.0 / denominator
    if JACCARD:
        of_intersection -= 2.0 * of_prediction
        of_prediction *= 2.0
    if SQUARED:
        of_prediction *= 2.0
    loss = tl.where(counted, tl.where(pair, 0.0 if EMPTY == 0 else 1.0, 1.0 - score), 0.0)
    moving = counted & (pair == 0)
    return counted, loss, tl.where(moving, of_intersection, 0.0), tl.where(moving, of_prediction, 0.0)


@triton.jit
def segments(
    partials, weight, first, start, number, channels, parts, size, smooth_nr, smooth_dr,
    SQUARED: tl.constexpr, JACCARD: tl.constexpr, EMPTY: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BCE sum, valid elements, whether counted, weighted Dice loss and its slopes in I and P: each [TILE]."""
    segment = start + tl.arange(0, TILE)
    live = segment < number
    row = first + segment
    intersection = sum_parts(partials, row, live, parts, TILE, PARTS)
    prediction = sum_parts(partials + size, row, live, parts, TILE, PARTS)
    truth = sum_parts(partials + 2 * size, row, live, parts, TILE, PARTS)
    bce = sum_parts(partials + 3 * size, row, live, parts, TILE, PARTS)
    elements = sum_parts(partials + 4 * size, row, live, parts, TILE, PARTS)
    counted, dice, of_intersection, of_prediction = dice_score(
        intersection, prediction, truth, elements, smooth_nr, smooth_dr, SQUARED, JACCARD, EMPTY
    )
    if HAS_WEIGHT:
        group_channel = first // number * channels + segment % channels
        scale = tl.load(weight + group_channel, mask=live, other=0.0).to(tl.float64)
        dice = tl.where(counted, scale * dice, 0.0)  # not 0 times an infinite weight
        of_intersection = tl.where(counted, scale * of_intersection, 0.0)
        of_prediction = tl.where(counted, scale * of_prediction, 0.0)
    return bce, elements, counted.to(tl.float64), dice, of_intersection, of_prediction
