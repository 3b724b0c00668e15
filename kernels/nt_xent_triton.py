"""NT-Xent on NVIDIA GPUs: blocks of similarities in registers, sums relative to a running maximum, never 2N x 2N.

`nt_xent_prepare` divides each row by a power of two, which is exact, so that no product overflows, and computes its
norm. `nt_xent_rows` gives each program a block of rows and a part of the others, and keeps each row's maximum and sum;
`nt_xent_merge` merges the parts and `nt_xent_finish` adds the rows' losses in a fixed order in float64. The backward
computes the similarities again, `nt_xent_slopes` by parts as well, which `nt_xent_gradient` adds in order. float32
products are IEEE (no TF32); half-precision products use tensor cores with float32 sums. No atomics: bit-equal between
runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Explicit, because Triton 3.10 changes the default and 3.9 warns about it.
_LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}
ROWS = 64  # rows of a program, and of a step of its loop
TILE = 16  # rows of a program that prepares them or adds up their gradient
_PROGRAMS = 132  # the SMs of an H100; a constant, so that the order of additions is the same on all GPUs
_EXPONENT = tl.constexpr(0x7F800000)
_NEGATIVE_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def nt_xent_prepare(
    z, m, scaled, norms, rows, pairs, dim, padded_rows, padded_dim: tl.constexpr,
    HAS_MASK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """scaled [padded_rows, padded_dim] = z over a power of two, 0 for padding and invalid rows.

    norms [4, padded_rows]: 1 / the scaled row's norm; 1 / the row's norm; whether that norm depends on the row (not if
    clamped to 1e-12); whether the row is valid. TILE rows per program; grid [padded_rows // TILE].
    """
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    live = tl.where(row < rows, dim, 0)  # elements of each row to read
    if HAS_MASK:
        live = tl.where(tl.load(m + row % pairs) != 0, live, 0)
    lanes = tl.arange(0, BLOCK)
    largest = tl.zeros([TILE], tl.float32)
    for start in range(0, padded_dim, BLOCK):
        column = (start + lanes)[None, :]
        x = tl.load(z + row[:, None] * dim + column, mask=column < live[:, None], other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
    top = tl.minimum(tl.maximum(largest, 1e-30), 1e30)
    scale = 1.0 / (top.to(tl.int32, bitcast=True) & _EXPONENT).to(tl.float32, bitcast=True)
    square = tl.zeros([TILE], tl.float32)
    for start in range(0, padded_dim, BLOCK):
        column = (start + lanes)[None, :]
        x = tl.load(z + row[:, None] * dim + column, mask=column < live[:, None], other=0.0).to(tl.float32)
        y = (x * scale[:, None]).to(scaled.dtype.element_ty)
        tl.store(scaled + row[:, None] * padded_dim + column, y)
        square += tl.sum(y.to(tl.float32) * y.to(tl.float32), 1)
    norm = tl.sqrt(square)
    clamped = norm < 1e-12 * scale
    inverse = 1.0 / tl.where(clamped, 1e-12 * scale, norm)
    tl.store(norms + row, inverse)
    tl.store(norms + padded_rows + row, inverse * scale)
    tl.store(norms + 2 * padded_rows + row, tl.where(clamped, 0.0, 1.0))
    tl.store(norms + 3 * padded_rows + row, tl.where(live > 0, 1.0, 0.0))


@triton.jit
def _cosines(
    scaled, norms, i, j, padded_dim: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr
):
    """Rows i with rows j, [ROWS, ROWS]."""
    depth = tl.arange(0, DEPTH)
    s = tl.zeros([ROWS, ROWS], tl.float32)
    for start in range(0, padded_dim, DEPTH):
        a = tl.load(scaled + i[:, None] * padded_dim + start + depth[None, :])
        b = tl.load(scaled + j[:, None] * padded_dim + start + depth[None, :])
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        s = tl.dot(a, tl.trans(b), s, input_precision="ieee")
    return s * tl.load(norms + i)[:, None] * tl.load(norms + j)[None, :]


@triton.jit
def nt_xent_rows(
    scaled, norms, partials, pairs, padded_rows, padded_dim: tl.constexpr, inverse_temperature, columns,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """ROWS rows with `columns` others; grid [padded_rows // ROWS, splits].

    partials [splits, 3, padded_rows]: the largest cosine, the sum of exponentials relative to it, and the cosine with
    the row's partner, 0 if that is in another split.
    """
    lanes = tl.arange(0, ROWS).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * ROWS + lanes
    partner = tl.where(i < pairs, i + pairs, i - pairs)
    maximum = tl.full([ROWS], -2.0, tl.float32)  # below any cosine
    total = tl.zeros([ROWS], tl.float32)
    positive = tl.zeros([ROWS], tl.float32)
    first = tl.program_id(1) * columns
    for start in range(first, tl.minimum(first + columns, padded_rows), ROWS):
        j = start + lanes
        s = _cosines(scaled, norms, i, j, padded_dim, ROWS, DEPTH, WIDEN)
        positive += tl.sum(tl.where(j[None, :] == partner[:, None], s, 0.0), 1)
        valid = tl.load(norms + 3 * padded_rows + j) != 0
        s = tl.where(valid[None, :] & (i[:, None] != j[None, :]), s, _NEGATIVE_INFINITY)
        raised = tl.maximum(maximum, tl.max(s, 1))
        terms = tl.exp((s - raised[:, None]) * inverse_temperature)
        total = total * tl.exp((maximum - raised) * inverse_temperature) + tl.sum(terms, 1)
        maximum = raised
    at = partials + tl.program_id(1) * 3 * padded_rows + i
    tl.store(at, maximum)
    tl.store(at + padded_rows, total)
    tl.store(at + 2 * padded_rows, positive)


@triton.jit
def nt_xent_merge(
    partials, norms, losses, coefficients, rows, padded_rows, inverse_temperature, splits,
    ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Loss, maximum and weight of ROWS rows from their partials; grid [padded_rows // ROWS]."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.arange(0, SPLITS)[:, None]
    at, there = partials + split * 3 * padded_rows + i[None, :], split < splits
    each = tl.load(at, mask=there, other=-2.0)
    maximum = tl.max(each, 0)
    totals = tl.load(at + padded_rows, mask=there, other=0.0)
    total = tl.sum(totals * tl.exp((each - maximum[None, :]) * inverse_temperature), 0)
    positive = tl.sum(tl.load(at + 2 * padded_rows, mask=there, other=0.0), 0)
    valid = tl.load(norms + 3 * padded_rows + i) != 0
    loss = tl.log(total) - (positive - maximum) * inverse_temperature
    tl.store(losses + i, tl.where(valid, loss, 0.0))
    tl.store(coefficients + i, maximum, mask=i < rows)
    tl.store(coefficients + rows + i, tl.where(valid, 1.0 / total, 0.0), mask=i < rows)


@triton.jit
def nt_xent_finish(losses, norms, loss, coefficients, rows, padded_rows, BLOCK: tl.constexpr):
    """The mean over the valid rows, and 1 / their number; one program."""
    total = tl.zeros([BLOCK], tl.float64)
    number = tl.zeros([BLOCK], tl.float64)
    for start in range(0, padded_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        total += tl.load(losses + row, mask=row < padded_rows, other=0.0).to(tl.float64)
        number += tl.load(norms + 3 * padded_rows + row, mask=row < padded_rows, other=0.0).to(tl.float64)
    inverse = 1.0 / tl.maximum(tl.sum(number, 0), 1.0)
    tl.store(loss, tl.sum(total, 0) * inverse)
    tl.store(coefficients + 2 * rows, inverse)


@triton.jit
def nt_xent_slopes(
    scaled, norms, coefficients, partials, alongs,
    rows, pairs, padded_rows, padded_dim: tl.constexpr, inverse_temperature, columns,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """WIDTH columns of the gradient of ROWS normalised rows, from `columns` other rows; grid [padded_rows // ROWS,
    padded_dim // WIDTH, splits]. partials [splits, padded_rows, padded_dim]; alongs [splits, padded_rows]: the part
    of the gradient along the row."""
    lanes = tl.arange(0, ROWS).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * ROWS + lanes
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    partner = tl.where(i < pairs, i + pairs, i - pairs)
    maximum = tl.load(coefficients + i, mask=i < rows, other=0.0)
    weight = tl.load(coefficients + rows + i, mask=i < rows, other=0.0)
    valid = tl.load(norms + 3 * padded_rows + i) != 0
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    along = tl.zeros([ROWS], tl.float32)
    first = tl.program_id(2) * columns
    for start in range(first, tl.minimum(first + columns, padded_rows), ROWS):
        j = start + lanes
        s = _cosines(scaled, norms, i, j, padded_dim, ROWS, DEPTH, WIDEN)
        other_maximum = tl.load(coefficients + j, mask=j < rows, other=0.0)
        other_weight = tl.load(coefficients + rows + j, mask=j < rows, other=0.0)
        slope = tl.exp((s - maximum[:, None]) * inverse_temperature) * weight[:, None]
        slope += tl.exp((s - other_maximum[None, :]) * inverse_temperature) * other_weight[None, :]
        slope -= tl.where(j[None, :] == partner[:, None], 2.0, 0.0)
        other_valid = tl.load(norms + 3 * padded_rows + j) != 0
        slope = tl.where(valid[:, None] & other_valid[None, :] & (i[:, None] != j[None, :]), slope, 0.0)
        along += tl.sum(slope * s, 1)
        slope *= tl.load(norms + j)[None, :]
        block = tl.load(scaled + j[:, None] * padded_dim + column[None, :])
        if WIDEN:
            sums = tl.dot(slope, block.to(tl.float32), sums, input_precision="ieee")
        else:
            high = slope.to(scaled.dtype.element_ty)
            sums = tl.dot(high, block, sums, input_precision="ieee")
            if scaled.dtype.element_ty != tl.float32:  # the part that rounding the slopes to half would lose
                sums = tl.dot((slope - high.to(tl.float32)).to(high.dtype), block, sums)
    row = tl.program_id(2).to(tl.int64) * padded_rows + i
    tl.store(partials + row[:, None] * padded_dim + column[None, :], sums)
    if tl.program_id(1) == 0:
        tl.store(alongs + row, along)


@triton.jit
def nt_xent_gradient(
    grad, scaled, norms, coefficients, partials, alongs, out,
    rows, dim, padded_rows, padded_dim: tl.constexpr, inverse_temperature, splits,
    TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """WIDTH columns of the gradient of TILE rows, the splits added in order; grid [padded_rows // TILE,
    padded_dim // WIDTH]."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    place = i[:, None] * padded_dim + column[None, :]
    sums = tl.zeros([TILE, WIDTH], tl.float32)
    along = tl.zeros([TILE], tl.float32)
    for split in range(splits):
        first = tl.cast(split, tl.int64) * padded_rows
        sums += tl.load(partials + first * padded_dim + place)
        along += tl.load(alongs + first + i)
    row = tl.load(scaled + place).to(tl.float32) * tl.load(norms + i)[:, None]
    # The part of the gradient along the row only changes its norm, which normalisation removes.
    along *= tl.load(norms + 2 * padded_rows + i)
    factor = tl.load(grad) * tl.load(coefficients + 2 * rows) * inverse_temperature
    values = factor * (sums - row * along[:, None]) * tl.load(norms + padded_rows + i)[:, None]
    values = tl.where((tl.load(norms + 3 * padded_rows + i) != 0)[:, None], values, 0.0)
    inside = (i < rows)[:, None] & (column < dim)[None, :]
    tl.store(out + i[:, None] * dim + column[None, :], values, mask=inside)


def _depth(input: torch.Tensor, padded_dim: int) -> int:
    """Columns per step of the product of rows with rows: a divisor of padded_dim that fits the registers."""
    return 32 if input.dtype == torch.float32 else 128 if padded_dim % 128 == 0 else 64


def _widen(input: torch.Tensor) -> bool:
    """The interpreter has no bfloat16 products; in float32 the numbers are the same."""
    return input.device.type == "cpu" and input.dtype == torch.bfloat16


def _prepare(input: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    rows, dim = input.shape
    padded_rows, padded_dim = triton.cdiv(rows, ROWS) * ROWS, triton.cdiv(dim, 64) * 64
    scaled = torch.empty(padded_rows, padded_dim, dtype=input.dtype, device=input.device)
    norms = torch.empty(4, padded_rows, dtype=torch.float32, device=input.device)
    block = 128 if padded_dim % 128 == 0 else 64
    nt_xent_prepare[(padded_rows // TILE,)](
        input, mask, scaled, norms, rows, rows // 2, dim, padded_rows, padded_dim,
        HAS_MASK=mask is not None, TILE=TILE, BLOCK=block, **_LAUNCH,
    )  # fmt: skip
    return scaled, norms


def _splits(padded_rows: int, tiles: int) -> tuple[int, int]:
    """In how many parts to cut the columns of the similarities, and the columns of each, so that about as many
    programs as there are SMs run for small batches too; `tiles` programs share a block of rows and a part."""
    blocks = padded_rows // ROWS
    steps = triton.cdiv(blocks, max(1, _PROGRAMS // (blocks * tiles)))
    return triton.cdiv(blocks, steps), steps * ROWS


def forward(
    input: torch.Tensor, mask: torch.Tensor | None, loss: torch.Tensor, coefficients: torch.Tensor, temperature: float
) -> None:
    """Fills loss [] and coefficients [2 * rows + 1] for contiguous input [rows, dim], mask uint8 [rows / 2]."""
    rows = input.shape[0]
    with torch.cuda.device_of(input):
        scaled, norms = _prepare(input, mask)
        padded_rows, padded_dim = scaled.shape
        splits, columns = _splits(padded_rows, 1)
        losses = torch.empty(padded_rows, dtype=torch.float32, device=input.device)
        partials = torch.empty(splits, 3, padded_rows, dtype=torch.float32, device=input.device)
        nt_xent_rows[(padded_rows // ROWS, splits)](
            scaled, norms, partials, rows // 2, padded_rows, padded_dim, 1.0 / temperature, columns,
            ROWS=ROWS, DEPTH=_depth(input, padded_dim), WIDEN=_widen(input), **_LAUNCH,
        )  # fmt: skip
        nt_xent_merge[(padded_rows // ROWS,)](
            partials, norms, losses, coefficients, rows, padded_rows, 1.0 / temperature, splits,
            ROWS=ROWS, SPLITS=triton.next_power_of_2(splits), **_LAUNCH,
        )  # fmt: skip
        nt_xent_finish[(1,)](losses, norms, loss, coefficients, rows, padded_rows, BLOCK=1024, **_LAUNCH)


def backward(
    grad: torch.Tensor, input: torch.Tensor, mask: torch.Tensor | None, coefficients: torch.Tensor,
    gradient: torch.Tensor, temperature: float,
) -> None:  # fmt: skip
    """Fills gradient [rows, dim], contiguous, from the coefficients of `forward`."""
    rows, dim = input.shape
    with torch.cuda.device_of(input):
        scaled, norms = _prepare(input, mask)
        padded_rows, padded_dim = scaled.shape
        width = 128 if padded_dim % 128 == 0 else 64
        splits, columns = _splits(padded_rows, padded_dim // width)
        alongs = torch.empty(splits, padded_rows, dtype=torch.float32, device=input.device)
        partials = torch.empty(splits, padded_rows, padded_dim, dtype=torch.float32, device=input.device)
        nt_xent_slopes[(padded_rows // ROWS, padded_dim // width, splits)](
            scaled, norms, coefficients, partials, alongs, rows, rows // 2, padded_rows, padded_dim,
            1.0 / temperature, columns, ROWS=ROWS, DEPTH=min(64, _depth(input, padded_dim)), WIDTH=width,
            WIDEN=_widen(input), **_LAUNCH,
        )  # fmt: skip
        nt_xent_gradient[(padded_rows // TILE, padded_dim // width)](
            grad, scaled, norms, coefficients, partials, alongs, gradient, rows, dim, padded_rows, padded_dim,
            1.0 / temperature, splits, TILE=TILE, WIDTH=width, **_LAUNCH,
        )  # fmt: skip
