"""Tiles missing from a level, and the same area in the finer level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .orientation import Box, stored_box
from .raster import Layout, Raster


def empty_in(raster: Raster, box: Box) -> Iterator[Box]:
    """Rectangles of the tiles that do not exist and overlap a rectangle, both as stored."""
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], raster.width), min(box[1] + box[3], raster.height)
    wide, high = raster.tile_width, raster.tile_height
    rows, columns = slice(top // high, -(-bottom // high)), slice(left // wide, -(-right // wide))
    if right > left and bottom > top:
        for row, column in np.argwhere(~raster.stored[rows, columns]).tolist():
            x, y = (column + left // wide) * wide, (row + top // high) * high
            yield x, y, min(wide, raster.width - x), min(high, raster.height - y)


def finer_box(layout: Layout, level: int, box: Box) -> tuple[Box, tuple[float, float, float, float]]:
    """The pixels of the finer level that cover an upright rectangle, and the rectangle's exact edges in them."""
    finer, own = layout.rasters[level - 1].shown_size, layout.rasters[level].shown_size
    across, down = finer[0] / own[0], finer[1] / own[1]
    left, top, right, bottom = box[0] * across, box[1] * down, (box[0] + box[2]) * across, (box[1] + box[3]) * down
    x, y = int(left), int(top)
    width, height = max(1, math.ceil(right - 1e-6) - x), max(1, math.ceil(bottom - 1e-6) - y)
    return (x, y, width, height), (left - x, top - y, min(right - x, width), min(bottom - y, height))


def holds(layout: Layout, level: int, box: Box) -> bool:
    """Whether this level or a finer one has a tile in an upright rectangle."""
    raster = layout.rasters[level]
    x, y, width, height = stored_box(box, raster.shown_size, raster.encoding.orientation)
    rows = slice(max(y, 0) // raster.tile_height, -(-(y + height) // raster.tile_height))
    columns = slice(max(x, 0) // raster.tile_width, -(-(x + width) // raster.tile_width))
    if raster.stored[rows, columns].any():
        return True
    return level > 0 and holds(layout, level - 1, finer_box(layout, level, box)[0])


def said_of_empty(rasters: Sequence[Raster]) -> list[str]:
    """How many tiles each level lacks, in words; empty if there are none."""
    found = []
    for level, raster in enumerate(rasters):
        if empty := int(np.count_nonzero(~raster.stored)):
            drawn = f"drawn from level {level - 1}" if level and not raster.placement else "background"
            found.append(f"{empty} of {raster.stored.size} of level {level} ({drawn})")
    return [f"has empty tiles: {', '.join(found)}"] if found else []
