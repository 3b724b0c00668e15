"""The Dice (or Jaccard) loss of segments from their sums, with its slopes, as in csrc/dice_score.hpp."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dice_score(
    intersection, prediction, truth, elements, smooth_nr, smooth_dr,
    SQUARED: tl.constexpr, JACCARD: tl.constexpr, EMPTY: tl.constexpr,
):  # fmt: skip
    """Whether a segment is counted; and where it is, else 0: its loss, d loss / d I and q times d loss / d P."""
    counted = elements > 0
    if EMPTY == 2:
        counted = counted & (truth != 0)
    pair = (truth == 0) & (prediction == 0)  # an empty pair scores a constant
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
