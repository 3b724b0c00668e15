"""Move bounding boxes with the augmentation of their image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .augment import Parameters, displacement

SMALLEST_SHARE = 0.1
"""A box counts as absent if a smaller fraction of it is inside the image."""

_STEPS = 24  # of the fixed point; each reduces the error by the slope of the field, at most about 0.8
_PER_EDGE = 16


def move_boxes(boxes: NDArray[np.float64], drawn: Parameters) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The bounding box of each moved box, clipped to the image, and whether enough of it is left.

    Args:
        boxes: float64 [B, 4]: centre x, centre y, width, height in 0..1 of the source; NaN for no box.
        drawn: the augmentation of the B images.

    Returns:
        float32 [B, 4], the same of the output, 0 where nothing is left; bool [B].
    """
    result, left = np.zeros((len(boxes), 4), np.float32), np.zeros(len(boxes), bool)
    for row, box in enumerate(boxes):
        if not np.isfinite(box).all():
            continue
        outline = _outline(box, 1 if drawn.field[row].size == 0 else _PER_EDGE)
        points = to_output(outline, drawn.matrix[row], drawn.field[row])
        low, high = points.min(1), points.max(1)
        inner_low, inner_high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        inner = inner_high - inner_low
        if inner.min() > 0 and inner.prod() >= SMALLEST_SHARE * (high - low).prod():
            result[row], left[row] = [*(inner_low + inner_high) / 2, *inner], True
    return result, left


def to_output(
    points: NDArray[np.float64], matrix: NDArray[np.float32], field: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Output positions [2, N] of the source positions `points` [2, N], all in 0..1: the inverse of the affine matrix,
    then of the field by fixed-point iteration."""
    affine = matrix.astype(np.float64)
    straight = np.asarray(np.linalg.solve(affine[:, :2], points - affine[:, 2:]), np.float64)
    found = straight
    if field.size:
        for _ in range(_STEPS):
            found = straight - displacement(field, found[0], found[1])
    return found


def _outline(box: NDArray[np.float64], per_edge: int) -> NDArray[np.float64]:
    """[2, 4 * per_edge] points around the box, the corners among them."""
    x, y, width, height = box
    along = np.arange(per_edge) / per_edge
    zero, one = np.zeros(per_edge), np.ones(per_edge)
    across = np.concatenate([along, one, 1 - along, zero]) - 0.5
    down = np.concatenate([zero, along, one, 1 - along]) - 0.5
    return np.stack([x + width * across, y + height * down])
