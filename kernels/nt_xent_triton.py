"""NT-Xent on NVIDIA GPUs: blocks of similarities in registers, sums relative to a running maximum, never 2N x 2N.

Four kernels. `nt_xent_prepare` divides each row by a power of two, which is exact, so that no product overflows, and
computes its norm. `nt_xent_rows` gives each program a block of rows, loops over all others and keeps each row's maximum
and sum. `nt_xent_finish` adds the rows' losses in a fixed order in float64. `nt_xent_gradient` computes the
similarities again. float32 products are IEEE (no TF32); half-precision products use tensor cores with float32 sums. No
atomics: bit-equal between runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Explicit, because Triton 3.10 changes the default and 3.9 warns about it.
_LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}
ROWS = 64  # rows of a program, and of a step of its loop
TILE = 16  # rows of a program that prepares them
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
    scaled, norms, losses, coefficients, rows, pairs, padded_rows, padded_dim: tl.constexpr, inverse_temperature,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Loss, maximum and weight of ROWS rows; grid [padded_rows // ROWS]."""
    lanes = tl.arange(0, ROWS).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * ROWS + lanes
    partner = tl.where(i < pairs, i + pairs, i - pairs)
    maximum = tl.full([ROWS], -2.0, tl.float32)  # below any cosine
    total = tl.zeros([ROWS], tl.float32)
    positive = tl.zeros([ROWS], tl.float32)
    for start in range(0, padded_rows, ROWS):
        j = start + lanes
        s = _cosines(scaled, norms, i, j, padded_dim, ROWS, DEPTH, WIDEN)
        positive += tl.sum(tl.where(j[None, :] == partner[:, None], s, 0.0), 1)
        valid = tl.load(norms + 3 * padded_rows + j) != 0
        s = tl.where(valid[None, :] & (i[:, None] != j[None, :]), s, _NEGATIVE_INFINITY)
        raised = tl.maximum(maximum, tl.max(s, 1))
        terms = tl.exp((s - raised[:, None]) * inverse_temperature)
        total = total * tl.exp((maximum - raised) * inverse_temperature) + tl.sum(terms, 1)
        maximum = raised
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
def nt_xent_gradient(
    grad, scaled, norms, coefficients, out,
    rows, pairs, dim, padded_rows, padded_dim: tl.constexpr, inverse_temperature,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """WIDTH columns of the gradient of ROWS rows; grid [padded_rows // ROWS, cdiv(padded_dim, WIDTH)]."""
    lanes = tl.arange(0, ROWS).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * ROWS + lanes
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    partner = tl.where(i < pairs, i + pairs, i - pairs)
    maximum = tl.load(coefficients + i, mask=i < rows, other=0.0)
    weight = tl.load(coefficients + rows + i, mask=i < rows, other=0.0)
    valid = tl.load(norms + 3 * padded_rows + i) != 0
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    along = tl.zeros([ROWS], tl.float32)
    for start in range(0, padded_rows, ROWS):
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
    row = tl.load(scaled + i[:, None] * padded_dim + column[None, :]).to(tl.float32) * tl.load(norms + i)[:, None]
    # The part of the gradient along the row only changes its norm, which normalisation removes.
    along *= tl.load(norms + 2 * padded_rows + i)
    factor = tl.load(grad) * tl.load(coefficients + 2 * rows) * inverse_temperature
    values = factor * (sums - row * along[:, None]) * tl.load(norms + padded_rows + i)[:, None]
    values = tl.where(valid[:, None], values, 0.0)
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


def forward(
    input: torch.Tensor, mask: torch.Tensor | None, loss: torch.Tensor, coefficients: torch.Tensor, temperature: float
) -> None:
    """Fills loss [] and coefficients [2 * rows + 1] for contiguous input [rows, dim], mask uint8 [rows / 2]."""
    rows = input.shape[0]
    with torch.cuda.device_of(input):
        scaled, norms = _prepare(input, mask)
        padded_rows, padded_dim = scaled.shape
        losses = torch.empty(padded_rows, dtype=torch.float32, device=input.device)
        nt_xent_rows[(padded_rows // ROWS,)](
            scaled, norms, losses, coefficients, rows, rows // 2, padded_rows, padded_dim, 1.0 / temperature,
            ROWS=ROWS, DEPTH=_depth(input, padded_dim), WIDEN=_widen(input), **_LAUNCH,
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
        nt_xent_gradient[(padded_rows // ROWS, padded_dim // width)](
            grad, scaled, norms, coefficients, gradient, rows, rows // 2, dim, padded_rows, padded_dim,
            1.0 / temperature, ROWS=ROWS, DEPTH=min(64, _depth(input, padded_dim)), WIDTH=width, WIDEN=_widen(input),
            **_LAUNCH,
        )  # fmt: skip
