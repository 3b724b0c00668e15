"""From decoded pixels to network input on NVIDIA GPUs, as csrc/loading/transform_cpu.cpp computes it.

Decoded pictures lie anywhere in memory, each of its own size, so they come as a table, int64 [B, 5]: address, bytes
from row to row, height, width, channels; with height 0 there is no picture, and all its pixels count as outside.
`matrix` float32 [B, 6] maps output pixels to source pixels, `field` float32 [B, 2, n + 3, n + 3] holds the control
points of a cubic B-spline. One program computes a tile of pixels of one picture. Neighbouring pixels read neighbouring
bytes, at odd places: the caches make up for loads of single bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Explicit, because Triton 3.10 changes the default and 3.9 warns about it.
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
_TILE = 4, 32, 4  # output rows and columns of a program, and how many times; each warp has one row at a time
_BLOCK = 256
_ROWS, _BYTES = 8, 512


@triton.jit
def _spline(position, CELLS: tl.constexpr):
    """First of the four control points around positions 0..CELLS, and the weights of the four."""
    first = tl.minimum(position.to(tl.int32), CELLS - 1)
    t = position - first.to(tl.float32)
    s = 1.0 - t
    second = (3.0 * t * t * (t - 2.0) + 4.0) * (1 / 6)
    third = (3.0 * s * s * (s - 2.0) + 4.0) * (1 / 6)
    return first, (s * s * s * (1 / 6), second, third, t * t * t * (1 / 6))


@triton.jit
def _columns(size, COLUMNS: tl.constexpr, CELLS: tl.constexpr):
    """Output columns [1, COLUMNS] of this program, and their place in the spline."""
    u = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return u, _spline((u.to(tl.float32) + 0.5) * (CELLS / tl.cast(size, tl.float32)), CELLS)


@triton.jit
def _matrix(matrix, b):
    m = matrix + b * 6
    return tl.load(m), tl.load(m + 1), tl.load(m + 2) - 0.5, tl.load(m + 3), tl.load(m + 4), tl.load(m + 5) - 0.5


@triton.jit
def _positions(matrix, field, b, v, u, spline, size, CELLS: tl.constexpr, WIDTH: tl.constexpr):
    """Source positions of the output pixels of rows v [ROWS, 1] and columns u, from the first pixel's centre."""
    across, down = u.to(tl.float32) + 0.5, v.to(tl.float32) + 0.5
    if CELLS > 0:
        side: tl.constexpr = CELLS + 3
        extent = tl.cast(size, tl.float32)
        column, across_weights = spline
        row, down_weights = _spline(down * (CELLS / extent), CELLS)
        # A row blends its control points once, x shifts before y shifts; each pixel then takes four of each.
        k = tl.arange(0, 2 * WIDTH)[None, :]
        points = field + b * (2 * side * side) + ((k // WIDTH * side + row) * side + k % WIDTH)
        line = tl.zeros([v.shape[0], 2 * WIDTH], tl.float32)
        for i in tl.static_range(4):
            line += down_weights[i] * tl.load(points + i * side, mask=k % WIDTH < side, other=0.0)
        line *= extent
        first = column + tl.zeros_like(v)
        for j in tl.static_range(4):
            across += across_weights[j] * tl.gather(line, first + j, 1)
            down += across_weights[j] * tl.gather(line, first + (WIDTH + j), 1)
    xx, xy, x0, yx, yy, y0 = matrix
    return _bounded(xx * across + xy * down + x0), _bounded(yx * across + yy * down + y0)


@triton.jit
def _bounded(position):
    """Positions far outside stay outside, and convert to int32."""
    return _flat(tl.minimum(tl.maximum(position, -2.0), 1e9))


@triton.jit
def _flat(x):
    """A tile as one row, so that a warp also reads scattered pixels in the order in which it writes them."""
    return tl.reshape(x, (x.shape[0] * x.shape[1],))


@triton.jit
def _source(table, b):
    """One row of the table."""
    row = table + b * 5
    pixels, pitch = tl.load(row).to(tl.pointer_type(tl.uint8)), tl.load(row + 1)
    return pixels, pitch, tl.load(row + 2).to(tl.int32), tl.load(row + 3).to(tl.int32), tl.load(row + 4).to(tl.int32)


@triton.jit
def _within(i, extent):
    """0 <= i < extent in one comparison."""
    return i.to(tl.uint32, bitcast=True) < extent.to(tl.uint32, bitcast=True)


@triton.jit
def _bilinear(pixels, pitch, height, width, step, x, y, channel, inside, OUTSIDE: tl.constexpr):
    left, above = tl.floor(x), tl.floor(y)
    right, below = x - left, y - above
    w11 = right * below
    w01, w10 = right - w11, below - w11
    weights = (1.0 - right - w10, w01, w10, w11)
    j, i = left.to(tl.int32), above.to(tl.int32)
    first = pixels + i * pitch + j * step
    total = x * 0.0
    for corner in tl.static_range(4):
        there = inside & _within(i + corner // 2, height) & _within(j + corner % 2, width)
        value = tl.load(first + corner // 2 * pitch + corner % 2 * step + channel, mask=there, other=OUTSIDE)
        total += weights[corner] * value.to(tl.float32)
    return total


@triton.jit
def _noise(index, key):
    """Nearly normal, mean 0 and variance 1: the four bytes of a hash of pixel and key, added."""
    h = index.to(tl.uint32) ^ key.to(tl.uint32, bitcast=True)
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    h = h ^ (h >> 16)
    total = (h & 255) + ((h >> 8) & 255) + ((h >> 16) & 255) + (h >> 24)
    return (total.to(tl.float32) - 510.0) * (1 / 147.80054)


@triton.jit
def _channel_constants(colour, scale, shift, b, channel: tl.constexpr):
    c = colour + b * 12 + channel * 4
    mixed = tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
    return mixed, tl.load(scale + channel), tl.load(shift + channel)


@triton.jit
def transform_image_kernel(
    table, matrix, field, colour, noise, keys, scale, shift, out, size,
    CELLS: tl.constexpr, WIDTH: tl.constexpr, NOISE: tl.constexpr, OUTSIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """clip(colour @ (rgb, 1) + noise * n, 0, 255) * scale + shift; out float32 [B, 3, size, size]."""
    b = tl.program_id(2).to(tl.int64)
    u, spline = _columns(size, COLUMNS, CELLS)
    m = _matrix(matrix, b)
    pixels, pitch, height, width, step = _source(table, b)
    constants = (
        _channel_constants(colour, scale, shift, b, 0),
        _channel_constants(colour, scale, shift, b, 1),
        _channel_constants(colour, scale, shift, b, 2),
    )
    if NOISE:
        strength, key = tl.load(noise + b), tl.load(keys + b)
    for group in tl.static_range(STEPS):
        v = (tl.program_id(1) * STEPS + group) * ROWS + tl.arange(0, ROWS)[:, None]
        pixel, inside = _flat(v * size + u), _flat((v < size) & (u < size))
        x, y = _positions(m, field, b, v, u, spline, size, CELLS, WIDTH)
        red = _bilinear(pixels, pitch, height, width, step, x, y, 0, inside, OUTSIDE)
        green = _bilinear(pixels, pitch, height, width, step, x, y, 1, inside, OUTSIDE)
        blue = _bilinear(pixels, pitch, height, width, step, x, y, 2, inside, OUTSIDE)
        for channel in tl.static_range(3):
            mixed, factor, offset = constants[channel]
            value = mixed[0] * red + mixed[1] * green + mixed[2] * blue + mixed[3]
            if NOISE:
                value += strength * _noise(channel * size * size + pixel, key)
            value = tl.minimum(tl.maximum(value, 0.0), 255.0) * factor + offset
            tl.store(out + (b * 3 + channel) * size * size + pixel, value, mask=inside)


@triton.jit
def warp_image_kernel(
    table, matrix, field, out, within, size, CELLS: tl.constexpr, WIDTH: tl.constexpr, OUTSIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Samples rounded to whole grey levels, out uint8 [B, 3, size, size]; within uint8 [B, size, size], 0 where the
    background contributes."""
    b = tl.program_id(2).to(tl.int64)
    u, spline = _columns(size, COLUMNS, CELLS)
    m = _matrix(matrix, b)
    pixels, pitch, height, width, step = _source(table, b)
    for group in tl.static_range(STEPS):
        v = (tl.program_id(1) * STEPS + group) * ROWS + tl.arange(0, ROWS)[:, None]
        pixel, inside = _flat(v * size + u), _flat((v < size) & (u < size))
        x, y = _positions(m, field, b, v, u, spline, size, CELLS, WIDTH)
        for channel in tl.static_range(3):
            value = _bilinear(pixels, pitch, height, width, step, x, y, channel, inside, OUTSIDE)
            tl.store(out + (b * 3 + channel) * size * size + pixel, (value + 0.5).to(tl.uint8), mask=inside)
        covered = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
        tl.store(within + b * size * size + pixel, covered.to(tl.uint8), mask=inside)


@triton.jit
def transform_mask_kernel(
    table, matrix, field, out, size, threshold,
    CHANNELS: tl.constexpr, NEAREST: tl.constexpr, CELLS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """out uint8 [B, CHANNELS, size, size]: 1 where the bilinear sample is above the threshold, or the nearest pixel."""
    b = tl.program_id(2).to(tl.int64)
    u, spline = _columns(size, COLUMNS, CELLS)
    m = _matrix(matrix, b)
    pixels, pitch, height, width, step = _source(table, b)
    for group in tl.static_range(STEPS):
        v = (tl.program_id(1) * STEPS + group) * ROWS + tl.arange(0, ROWS)[:, None]
        pixel, inside = _flat(v * size + u), _flat((v < size) & (u < size))
        x, y = _positions(m, field, b, v, u, spline, size, CELLS, WIDTH)
        for channel in range(CHANNELS):
            if NEAREST:
                row, column = tl.floor(y + 0.5).to(tl.int32), tl.floor(x + 0.5).to(tl.int32)
                there = inside & _within(row, height) & _within(column, width)
                value = tl.load(pixels + row * pitch + column * step + channel, mask=there, other=0)
            else:
                value = _bilinear(pixels, pitch, height, width, step, x, y, channel, inside, 0) > threshold
            tl.store(out + (b * CHANNELS + channel) * size * size + pixel, value.to(tl.uint8), mask=inside)


@triton.jit
def add_noise_kernel(images, noise, keys, scale, shift, size, BLOCK: tl.constexpr):
    """images float32 [B, 3, size, size], normalised, plus noise, clipped to the range of 0..255; grid [blocks, B]."""
    b = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < 3 * size * size
    factor = tl.load(scale + index // (size * size), mask=inside, other=0.0)
    low = tl.load(shift + index // (size * size), mask=inside, other=0.0)
    at = images + b * 3 * size * size + index
    value = tl.load(at, mask=inside, other=0.0) + tl.load(noise + b) * factor * _noise(index, tl.load(keys + b))
    tl.store(at, tl.minimum(tl.maximum(value, low), low + 255.0 * factor), mask=inside)


@triton.jit
def stitch_kernel(jobs, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """Copy rectangles; jobs int64 [J, 6]: from, its pitch, to, its pitch, bytes a row, rows. Grid [row blocks, J]."""
    job = jobs + tl.program_id(1).to(tl.int64) * 6
    source, target = tl.load(job).to(tl.pointer_type(tl.uint8)), tl.load(job + 2).to(tl.pointer_type(tl.uint8))
    source_pitch, target_pitch = tl.load(job + 1), tl.load(job + 3)
    length, rows = tl.load(job + 4), tl.load(job + 5)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    for start in range(0, length, BYTES):
        column = start + tl.arange(0, BYTES)[None, :]
        inside = (row < rows) & (column < length)
        value = tl.load(source + row * source_pitch + column, mask=inside, other=0)
        tl.store(target + row * target_pitch + column, value, mask=inside)


def _launch(field: torch.Tensor, size: int, count: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid of `count` pictures, and the constants of the tile and the spline."""
    rows, columns, steps = _TILE
    options = {"CELLS": max(field.shape[-1] - 3, 0), "WIDTH": max(triton.next_power_of_2(field.shape[-1]), 16)}
    grid = (triton.cdiv(size, columns), triton.cdiv(size, rows * steps), count)
    return grid, {"ROWS": rows, "COLUMNS": columns, "STEPS": steps, **options, **_LAUNCH}


def transform_image(
    table: torch.Tensor, matrix: torch.Tensor, field: torch.Tensor, colour: torch.Tensor, noise: torch.Tensor | None,
    keys: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, outside: int, out: torch.Tensor,
) -> None:  # fmt: skip
    """Fill `out` float32 [B, 3, size, size]; noise float32 [B] in grey levels or None, keys int32 [B]."""
    size = out.shape[-1]
    grid, options = _launch(field, size, out.shape[0])
    with torch.cuda.device_of(out):
        transform_image_kernel[grid](
            table, matrix, field, colour, noise, keys, scale, shift, out, size,
            NOISE=noise is not None, OUTSIDE=outside, **options,
        )  # fmt: skip


def warp_image(
    table: torch.Tensor,
    matrix: torch.Tensor,
    field: torch.Tensor,
    outside: int,
    out: torch.Tensor,
    within: torch.Tensor,
) -> None:
    """Fill `out` uint8 [B, 3, size, size] and `within` uint8 [B, size, size]."""
    size = out.shape[-1]
    grid, options = _launch(field, size, out.shape[0])
    with torch.cuda.device_of(out):
        warp_image_kernel[grid](table, matrix, field, out, within, size, OUTSIDE=outside, **options)


def transform_mask(
    table: torch.Tensor, matrix: torch.Tensor, field: torch.Tensor, threshold: int, nearest: bool, out: torch.Tensor
) -> None:
    """Fill `out` uint8 [B, C, size, size]."""
    size = out.shape[-1]
    grid, options = _launch(field, size, out.shape[0])
    with torch.cuda.device_of(out):
        transform_mask_kernel[grid](
            table, matrix, field, out, size, threshold,
            CHANNELS=out.shape[1], NEAREST=nearest, **options,
        )  # fmt: skip


def add_noise(
    images: torch.Tensor, noise: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> None:
    """Change `images` float32 [B, 3, size, size] in place."""
    size = images.shape[-1]
    grid = (triton.cdiv(3 * size * size, _BLOCK), images.shape[0])
    with torch.cuda.device_of(images):
        add_noise_kernel[grid](images, noise, keys, scale, shift, size, BLOCK=_BLOCK, **_LAUNCH)


def stitch(jobs: torch.Tensor, most_rows: int) -> None:
    """Copy the rectangles of `jobs`, of which none has more than `most_rows` rows."""
    with torch.cuda.device_of(jobs):
        stitch_kernel[(triton.cdiv(most_rows, _ROWS), jobs.shape[0])](jobs, ROWS=_ROWS, BYTES=_BYTES, **_LAUNCH)
