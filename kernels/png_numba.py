"""Undo PNG's row filters: each row is stored as differences from the previous pixel, the row above or both.

Releases the interpreter lock.
"""

from __future__ import annotations

import numpy as np

from .compiled_numba import compiled


@compiled
def _paeth(left, above, corner):
    """Which of the three is nearest to left + above - corner; int32, 0..255. Without branches, which noise makes
    unpredictable."""
    from_left, from_above, from_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    nearest = above if from_above <= from_corner else corner
    return left if (from_left <= from_above) & (from_left <= from_corner) else nearest


@compiled
def _undo_paeth(row, above, step, out):
    zero, byte = np.int32(0), np.int32(255)
    if step == 3:  # three chains at a time, in registers: each waits only for its previous pixel
        one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
        red, green, blue, red_corner, green_corner, blue_corner = zero, zero, zero, zero, zero, zero
        for pixel in range(np.uint64(out.shape[0] // 3)):
            i = pixel * three
            red_above, green_above, blue_above = np.int32(above[i]), np.int32(above[i + one]), np.int32(above[i + two])
            red = (_paeth(red, red_above, red_corner) + np.int32(row[i])) & byte
            green = (_paeth(green, green_above, green_corner) + np.int32(row[i + one])) & byte
            blue = (_paeth(blue, blue_above, blue_corner) + np.int32(row[i + two])) & byte
            out[i], out[i + one], out[i + two] = red, green, blue
            red_corner, green_corner, blue_corner = red_above, green_above, blue_above
    else:
        for first in range(step):
            left, corner = zero, zero
            for i in range(first, out.shape[0], step):
                up = np.int32(above[i])
                left = (_paeth(left, up, corner) + np.int32(row[i])) & byte
                out[i] = left
                corner = up


@compiled
def undo_filters(rows, channels, out):
    """out uint8 [H, W * C] from rows uint8 [H, 1 + W * C], whose first column is the filter of the row (PNG, chapter
    6).

    Returns the number of the first row with an invalid filter, or -1.
    """
    length = out.shape[1]
    above = np.zeros(length, np.uint8)
    for v in range(out.shape[0]):
        code, row, line = rows[v, 0], rows[v, 1:], out[v]
        if code == 0:
            line[:] = row
        elif code == 1:
            line[:channels] = row[:channels]
            for i in range(channels, length):
                line[i] = row[i] + line[i - channels]
        elif code == 2:
            for i in range(length):
                line[i] = row[i] + above[i]
        elif code == 3:
            for i in range(channels):
                line[i] = row[i] + above[i] // 2
            for i in range(channels, length):
                line[i] = row[i] + (np.int32(line[i - channels]) + np.int32(above[i])) // 2
        elif code == 4:
            _undo_paeth(row, above, channels, line)
        else:
            return v
        above = line
    return -1
