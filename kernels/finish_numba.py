"""Resampling, colour and normalisation of one decoded image in one pass, and resampling of its mask.

Both release the interpreter lock. Numba compiles them at their first call and keeps them where a folder can be written.
"""

from __future__ import annotations

import numba
import numpy as np


def _compiled(function):
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder that a cache could be written to
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def finish_image(pixels, matrix, colour, scale, shift, outside, out):
    """Bilinear samples, `outside` beyond the image; then clip(colour @ (rgb, 1), 0, 255) * scale + shift.

    pixels uint8 [h, w, 3]; matrix float32 [2, 3], output pixel -> source pixel; colour float32 [3, 4]; scale and shift
    float32 [3]; outside float32, 0..255; out float32 [3, H, W].
    """
    source_height, source_width = pixels.shape[0], pixels.shape[1]
    flat = pixels.reshape(-1)
    row = np.uint64(3 * source_width)
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    height, width = out.shape[1], out.shape[2]
    half, zero, top = np.float32(0.5), np.float32(0), np.float32(255)
    x_step, y_step = matrix[0, 0], matrix[1, 0]
    line_of = np.empty((3, width), np.float32)  # one output row before colour: that second loop is then vectorised
    for v in range(height):
        y_down = np.float32(v) + half
        x_start = matrix[0, 1] * y_down + matrix[0, 2] - half
        y_start = matrix[1, 1] * y_down + matrix[1, 2] - half
        for u in range(width):
            x_across = np.float32(u) + half
            x, y = x_step * x_across + x_start, y_step * x_across + y_start
            left, above = np.floor(x), np.floor(y)
            column, line = np.int32(left), np.int32(above)
            right, below = x - left, y - above
            w11 = right * below
            w01, w10 = right - w11, below - w11
            w00 = np.float32(1) - right - w10
            if column >= 0 and line >= 0 and column < source_width - 1 and line < source_height - 1:
                # Unsigned indices: Numba would otherwise test each one for Python's counting from the end.
                a = np.uint64(line) * row + np.uint64(column) * three
                b = a + row
                c, d = a + three, b + three
                line_of[0, u] = w00 * flat[a] + w01 * flat[c] + w10 * flat[b] + w11 * flat[d]
                line_of[1, u] = w00 * flat[a + one] + w01 * flat[c + one] + w10 * flat[b + one] + w11 * flat[d + one]
                line_of[2, u] = w00 * flat[a + two] + w01 * flat[c + two] + w10 * flat[b + two] + w11 * flat[d + two]
            else:
                for channel in range(3):
                    total = zero
                    for corner in range(4):
                        i, j = line + corner // 2, column + corner % 2
                        within = i >= 0 and j >= 0 and i < source_height and j < source_width
                        value = np.float32(pixels[i, j, channel]) if within else outside
                        total += (w00, w01, w10, w11)[corner] * value
                    line_of[channel, u] = total
        for channel in range(3):
            from_red, from_green, from_blue, offset = colour[channel]
            factor, addend = scale[channel], shift[channel]
            for u in range(width):
                value = from_red * line_of[0, u] + from_green * line_of[1, u] + from_blue * line_of[2, u] + offset
                out[channel, v, u] = min(max(value, zero), top) * factor + addend


@_compiled
def finish_mask(pixels, matrix, threshold, out):
    """Bilinear samples, 1 above the threshold. pixels uint8 [h, w, 1]; matrix as above; out uint8 [1, H, W]."""
    source_height, source_width = pixels.shape[0], pixels.shape[1]
    flat = pixels.reshape(-1)
    row, one = np.uint64(source_width), np.uint64(1)
    height, width = out.shape[1], out.shape[2]
    half = np.float32(0.5)
    x_step, y_step = matrix[0, 0], matrix[1, 0]
    for v in range(height):
        y_down = np.float32(v) + half
        x_start = matrix[0, 1] * y_down + matrix[0, 2] - half
        y_start = matrix[1, 1] * y_down + matrix[1, 2] - half
        for u in range(width):
            x_across = np.float32(u) + half
            x, y = x_step * x_across + x_start, y_step * x_across + y_start
            left, above = np.floor(x), np.floor(y)
            column, line = np.int32(left), np.int32(above)
            right, below = x - left, y - above
            w11 = right * below
            w01, w10 = right - w11, below - w11
            w00 = np.float32(1) - right - w10
            total = np.float32(0)
            if column >= 0 and line >= 0 and column < source_width - 1 and line < source_height - 1:
                a = np.uint64(line) * row + np.uint64(column)
                b = a + row
                total = w00 * flat[a] + w01 * flat[a + one] + w10 * flat[b] + w11 * flat[b + one]
            else:
                for corner in range(4):
                    i, j = line + corner // 2, column + corner % 2
                    if i >= 0 and j >= 0 and i < source_height and j < source_width:
                        total += (w00, w01, w10, w11)[corner] * np.float32(pixels[i, j, 0])
            out[0, v, u] = total > threshold
