"""Draw polygons of rings: a pixel is inside a ring that winds around its centre, any number of times and in either
direction.

A polygon covers the area of its first ring without the areas of the others. Releases the interpreter lock.
"""

from __future__ import annotations

import math

import numpy as np

from .compiled_numba import compiled

_BAND = 2**20  # pixels whose winding numbers are stored at once


@compiled
def _wind(points, left, top, downsample, column, row, winding):
    """Add to winding int32 [h, w + 1] +1 or -1 where an edge of the ring crosses a row's centre line; summed along the
    row, that is how often the ring winds around each pixel's centre. (column, row) of the window is winding's corner;
    the last of points float64 [n, 2] joins the first."""
    height, width = winding.shape[0], winding.shape[1] - 1
    for index in range(points.shape[0]):
        x0, y0 = (points[index - 1, 0] - left) / downsample - column, (points[index - 1, 1] - top) / downsample - row
        x1, y1 = (points[index, 0] - left) / downsample - column, (points[index, 1] - top) / downsample - row
        step = 1
        if y0 > y1:  # from above to below: neighbours share an edge, and must cross each row at the same place
            x0, y0, x1, y1, step = x1, y1, x0, y0, -1
        first, last = math.ceil(max(y0 - 0.5, 0.0)), math.ceil(min(y1 - 0.5, float(height)))
        for line in range(first, last):
            x = x0 + (line + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            winding[line, math.ceil(min(max(x - 0.5, 0.0), float(width)))] += step


@compiled
def _cover(winding, inside, value):
    """Write `value` into inside uint8 [h, w] where the ring is; winding becomes 0 again."""
    for row in range(inside.shape[0]):
        around = 0
        for column in range(inside.shape[1]):
            around += winding[row, column]
            winding[row, column] = 0
            if around != 0:
                inside[row, column] = value
        winding[row, inside.shape[1]] = 0


@compiled
def draw_polygons(points, rings, polygons, boxes, chosen, values, left, top, downsample, out):
    """Draw the polygons numbered in `chosen` one after the other; those outside the window cost only a comparison.

    Args:
        points: float64 [P, 2], x and y of all rings' points.
        rings: int64 [R + 1]: ring r is points[rings[r] : rings[r + 1]].
        polygons: int64 [N + 1]: polygon n is the rings from polygons[n] to polygons[n + 1], its outline first.
        boxes: float64 [N, 4]: left, top, right and bottom of each outline.
        chosen: int64 [K].
        values: uint8 [K], the value to draw for each.
        left, top: the window's corner, in the points' unit.
        downsample: size of a pixel in the points' unit.
        out: uint8 [H, W], written where a polygon is.
    """
    height, width = out.shape
    for index in range(chosen.shape[0]):
        number = chosen[index]
        # The part of the window that the outline can reach, with a margin of one pixel.
        west = math.floor(min(max((boxes[number, 0] - left) / downsample - 1, 0.0), float(width)))
        north = math.floor(min(max((boxes[number, 1] - top) / downsample - 1, 0.0), float(height)))
        east = math.ceil(min(max((boxes[number, 2] - left) / downsample + 1, 0.0), float(width)))
        south = math.ceil(min(max((boxes[number, 3] - top) / downsample + 1, 0.0), float(height)))
        if west >= east or north >= south:
            continue
        band = max(1, _BAND // (east - west))
        winding = np.zeros((min(band, south - north), east - west + 1), np.int32)
        inside = np.zeros((winding.shape[0], east - west), np.uint8)
        for start in range(north, south, band):
            stop = min(start + band, south)
            part, counts = inside[: stop - start], winding[: stop - start]
            part[:] = 0
            for ring in range(polygons[number], polygons[number + 1]):
                edge = points[rings[ring] : rings[ring + 1]]
                _wind(edge, left, top, downsample, west, start, counts)
                _cover(counts, part, 1 if ring == polygons[number] else 0)
            for row in range(stop - start):
                for column in range(east - west):
                    if part[row, column]:
                        out[start + row, west + column] = values[index]
