"""From decoded pixels to network input on the CPU, one pass per image: resampling through an affine matrix and a smooth
field, colour, noise, normalisation; and the same geometry for masks.

All release the interpreter lock. Numba compiles them at their first call and caches them if a folder is writable.

Sources are `flat` uint8 [N]: rows of `width` pixels of C interleaved channels, `pitch` bytes apart, the first at
`start`. `matrix` float32 [2, 3] maps output pixels to source pixels. `field` float32 [2, n + 3, n + 3] holds the
control points of a uniform cubic B-spline over the output, n cells a side, x and y shifts in fractions of the output;
n + 3 = 0: none.
"""

from __future__ import annotations

import numpy as np

from .compiled_numba import compiled


@compiled
def _spline(t, weights):
    """Weights [4] of the four control points around position `t`, 0..1, in a cell."""
    one, sixth = np.float32(1), np.float32(1 / 6)
    s = one - t
    weights[0] = s * s * s * sixth
    weights[3] = t * t * t * sixth
    weights[1] = (np.float32(3) * t * t * (t - np.float32(2)) + np.float32(4)) * sixth
    weights[2] = one - weights[0] - weights[1] - weights[3]


@compiled
def _columns(field, width):
    """For each output column its first control point, int32 [W], and the four weights, float32 [W, 4]."""
    cells = field.shape[2] - 3
    first, weights = np.zeros(width, np.int32), np.zeros((width, 4), np.float32)
    if cells > 0:
        for u in range(width):
            at = (np.float32(u) + np.float32(0.5)) * (np.float32(cells) / np.float32(width))
            first[u] = min(np.int32(at), cells - 1)
            _spline(at - np.float32(first[u]), weights[u])
    return first, weights


@compiled
def _positions(matrix, field, first, weights, v, height, width, line, xs, ys):
    """Source positions of output row v, in pixels from the first one's centre; `line` [2, n + 3] is scratch."""
    half = np.float32(0.5)
    y_down = np.float32(v) + half
    x_start = matrix[0, 1] * y_down + matrix[0, 2] - half
    y_start = matrix[1, 1] * y_down + matrix[1, 2] - half
    x_step, y_step = matrix[0, 0], matrix[1, 0]
    for u in range(width):
        x_across = np.float32(u) + half
        xs[u], ys[u] = x_step * x_across + x_start, y_step * x_across + y_start
    cells = field.shape[1] - 3
    if cells <= 0:
        return
    at = y_down * (np.float32(cells) / np.float32(height))
    row, down = min(np.int32(at), cells - 1), np.empty(4, np.float32)
    _spline(at - np.float32(row), down)
    for axis, extent in enumerate((np.float32(width), np.float32(height))):
        for k in range(cells + 3):
            total = np.float32(0)
            for i in range(4):
                total += down[i] * field[axis, row + i, k]
            line[axis, k] = total * extent
    for u in range(width):
        across, below = np.float32(0), np.float32(0)
        for i in range(4):
            across += weights[u, i] * line[0, first[u] + i]
            below += weights[u, i] * line[1, first[u] + i]
        xs[u] += matrix[0, 0] * across + matrix[0, 1] * below
        ys[u] += matrix[1, 0] * across + matrix[1, 1] * below


@compiled
def _sample_row(flat, start, pitch, height, width, xs, ys, outside, line):
    """Bilinear RGB samples into `line` float32 [3, W], `outside` beyond the image."""
    base, row = np.uint64(start), np.uint64(pitch)
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    for u in range(xs.shape[0]):
        x, y = xs[u], ys[u]
        left, above = np.floor(x), np.floor(y)
        right, below = x - left, y - above
        w11 = right * below
        w01, w10 = right - w11, below - w11
        w00 = np.float32(1) - right - w10
        if left >= 0 and above >= 0 and left < width - 1 and above < height - 1:
            # Unsigned indices: Numba would otherwise test each one for being negative.
            a = base + np.uint64(above) * row + np.uint64(left) * three
            b = a + row
            c, d = a + three, b + three
            line[0, u] = w00 * flat[a] + w01 * flat[c] + w10 * flat[b] + w11 * flat[d]
            line[1, u] = w00 * flat[a + one] + w01 * flat[c + one] + w10 * flat[b + one] + w11 * flat[d + one]
            line[2, u] = w00 * flat[a + two] + w01 * flat[c + two] + w10 * flat[b + two] + w11 * flat[d + two]
        else:
            for channel in range(3):
                total = np.float32(0)
                for corner in range(4):
                    i, j = above + corner // 2, left + corner % 2
                    value = outside
                    if i >= 0 and j >= 0 and i < height and j < width:
                        value = np.float32(flat[start + np.int64(i) * pitch + np.int64(j) * 3 + channel])
                    total += (w00, w01, w10, w11)[corner] * value
                line[channel, u] = total


@compiled
def _noise(index, key):
    """Nearly normal, mean 0 and variance 1: the four bytes of a hash of pixel and key, added."""
    h = np.uint32(index) ^ np.uint32(key)
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    h = np.uint32(h ^ (h >> np.uint32(16)))
    total = (h & np.uint32(255)) + ((h >> np.uint32(8)) & np.uint32(255)) + ((h >> np.uint32(16)) & np.uint32(255))
    return (np.float32(total + (h >> np.uint32(24))) - np.float32(510)) * np.float32(1 / 147.80054)


@compiled
def transform_image(
    flat, start, pitch, source_height, source_width, matrix, field, colour, noise, key, scale, shift, outside, out
):
    """clip(colour @ (rgb, 1) + noise * n, 0, 255) * scale + shift of bilinear samples.

    colour float32 [3, 4]; noise float32, standard deviation in grey levels; key uint32; scale and shift float32 [3];
    outside float32, 0..255; out float32 [3, H, W].
    """
    height, width = out.shape[1], out.shape[2]
    zero, top = np.float32(0), np.float32(255)
    first, weights = _columns(field, width)
    scratch = np.empty((2, max(field.shape[1], 1)), np.float32)
    xs, ys = np.empty(width, np.float32), np.empty(width, np.float32)
    line = np.empty((3, width), np.float32)  # one output row before colour, so that the second loop is vectorised
    for v in range(height):
        _positions(matrix, field, first, weights, v, height, width, scratch, xs, ys)
        _sample_row(flat, start, pitch, source_height, source_width, xs, ys, outside, line)
        for channel in range(3):
            from_red, from_green, from_blue, offset = colour[channel]
            factor, addend = scale[channel], shift[channel]
            if noise > 0:
                for u in range(width):
                    value = from_red * line[0, u] + from_green * line[1, u] + from_blue * line[2, u] + offset
                    value += noise * _noise((channel * height + v) * width + u, key)
                    out[channel, v, u] = min(max(value, zero), top) * factor + addend
            else:
                for u in range(width):
                    value = from_red * line[0, u] + from_green * line[1, u] + from_blue * line[2, u] + offset
                    out[channel, v, u] = min(max(value, zero), top) * factor + addend


@compiled
def warp_image(flat, start, pitch, source_height, source_width, matrix, field, outside, out, inside):
    """Bilinear samples rounded to whole grey levels: out uint8 [3, H, W]; inside uint8 [H, W], 0 where the background
    contributes."""
    height, width = out.shape[1], out.shape[2]
    first, weights = _columns(field, width)
    scratch = np.empty((2, max(field.shape[1], 1)), np.float32)
    xs, ys = np.empty(width, np.float32), np.empty(width, np.float32)
    line = np.empty((3, width), np.float32)
    for v in range(height):
        _positions(matrix, field, first, weights, v, height, width, scratch, xs, ys)
        _sample_row(flat, start, pitch, source_height, source_width, xs, ys, outside, line)
        for u in range(width):
            inside[v, u] = xs[u] >= 0 and ys[u] >= 0 and xs[u] <= source_width - 1 and ys[u] <= source_height - 1
        for channel in range(3):
            for u in range(width):
                out[channel, v, u] = np.uint8(line[channel, u] + np.float32(0.5))


@compiled
def add_noise(images, noise, keys, scale, shift):
    """images float32 [3, H, W], normalised as by `transform_image`, plus noise, clipped to the range of 0..255."""
    height, width = images.shape[1], images.shape[2]
    for channel in range(3):
        low, high = shift[channel], shift[channel] + np.float32(255) * scale[channel]
        deviation = noise * scale[channel]
        for v in range(height):
            for u in range(width):
                value = images[channel, v, u] + deviation * _noise((channel * height + v) * width + u, keys)
                images[channel, v, u] = min(max(value, low), high)


@compiled
def transform_mask(flat, start, pitch, source_height, source_width, channels, matrix, field, threshold, nearest, out):
    """Masks of `channels` channels, 0 beyond the image, into out uint8 [C, H, W], C <= channels: 1 where the bilinear
    sample is above the threshold; with `nearest` the value of the nearest pixel."""
    height, width = out.shape[1], out.shape[2]
    first, weights = _columns(field, width)
    scratch = np.empty((2, max(field.shape[1], 1)), np.float32)
    xs, ys = np.empty(width, np.float32), np.empty(width, np.float32)
    base, row, step = np.uint64(start), np.uint64(pitch), np.uint64(channels)
    half = np.float32(0.5)
    for v in range(height):
        _positions(matrix, field, first, weights, v, height, width, scratch, xs, ys)
        for u in range(width):
            x, y = xs[u], ys[u]
            if nearest:
                j, i = np.floor(x + half), np.floor(y + half)
                within = i >= 0 and j >= 0 and i < source_height and j < source_width
                for channel in range(out.shape[0]):
                    at = start + np.int64(i) * pitch + np.int64(j) * channels + channel if within else 0
                    out[channel, v, u] = flat[at] if within else 0
                continue
            left, above = np.floor(x), np.floor(y)
            right, below = x - left, y - above
            w11 = right * below
            w01, w10 = right - w11, below - w11
            w00 = np.float32(1) - right - w10
            simple = left >= 0 and above >= 0 and left < source_width - 1 and above < source_height - 1
            for channel in range(out.shape[0]):
                total = np.float32(0)
                if simple:
                    a = base + np.uint64(above) * row + np.uint64(left) * step + np.uint64(channel)
                    b = a + row
                    total = w00 * flat[a] + w01 * flat[a + step] + w10 * flat[b] + w11 * flat[b + step]
                else:
                    for corner in range(4):
                        i, j = above + corner // 2, left + corner % 2
                        if i >= 0 and j >= 0 and i < source_height and j < source_width:
                            at = start + np.int64(i) * pitch + np.int64(j) * channels + channel
                            total += (w00, w01, w10, w11)[corner] * np.float32(flat[at])
                out[channel, v, u] = total > threshold


@compiled
def is_constant(flat, channels):
    """Whether all pixels equal the first."""
    for at in range(channels, flat.shape[0]):  # noqa: SIM110 - Numba compiles a loop, not a generator
        if flat[at] != flat[at - channels]:
            return False
    return True
