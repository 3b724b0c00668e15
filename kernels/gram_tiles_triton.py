# ruff: noqa: RUF005 (Triton supports `a + (b,)` but not `(*a, b)`)
"""The pass of `gram_triton` for more rows of J than one tile of registers holds.

The rows form tiles of T. Each warp of a block has another pair of tiles, over the same columns, so that a row comes
from memory once for the pairs of a block, and otherwise from the first-level cache. A thread keeps a sum for each of
the T x T pairs of rows over its own columns, in chains of fused multiply-adds; after a run of float32 products, lanes
are added in float64.
"""

import torch
import triton
import triton.language as tl

PAIRS = 4  # of tiles in a block: one for each warp
LANES = 32
PROGRAMS = 1056  # four waves of two blocks on each of 132 multiprocessors; on every GPU, so that results are the same
UNROLL = 2  # steps with one address


@triton.jit
def _pair_of_tiles(pair):
    """(i, j), j <= i, number i (i + 1) / 2 + j. The root of a number that is no square is safe to round down."""
    i = ((tl.sqrt((8 * pair + 2).to(tl.float32)) - 1.0) * 0.5).to(tl.int32)
    return i, pair - i * (i + 1) // 2


@triton.jit
def _row_starts(J, tile, K, row_stride, T: tl.constexpr):
    """Rows past the last one repeat it, and are ignored later."""
    out = ()
    for i in tl.static_range(T):
        out = out + (J + tl.minimum(tile * T + i, K - 1).to(tl.int64)[:, None, None] * row_stride,)
    return out


@triton.jit
def _columns_apart(x, VEC: tl.constexpr):
    """[PAIRS, LANES, VEC] as a tuple of VEC [PAIRS, LANES], all in the registers of the same thread."""
    if VEC > 2:
        x = tl.reshape(x, (x.shape[0], x.shape[1], VEC // 2, 2))
    a, b = tl.split(x)
    out = (a, b)
    if VEC > 2:
        out = _columns_apart(a, VEC // 2) + _columns_apart(b, VEC // 2)
    return out


@triton.jit
def _load_rows(starts, columns, ahead, width, T: tl.constexpr, VEC: tl.constexpr, MASKED: tl.constexpr):
    """T rows at `columns`, and a fixed number of columns further on."""
    rows = ()
    for i in tl.static_range(T):
        if MASKED:
            row = tl.load(starts[i] + columns, mask=columns < width, other=0.0)
        else:
            row = tl.load(starts[i] + columns + ahead)
        rows = rows + (_columns_apart(row, VEC),)
    return rows


@triton.jit
def _add_products(sums, x, y, T: tl.constexpr, VEC: tl.constexpr, KIND: tl.constexpr):
    """Adds x_i y_j to the T x T sums [PAIRS, LANES]."""
    for v in tl.static_range(VEC):
        out = ()
        for i in tl.static_range(T):
            for j in tl.static_range(T):
                out = out + (sums[i * T + j] + x[i][v].to(KIND) * y[j][v].to(KIND),)
        sums = out
    return sums


@triton.jit
def _add_lanes(totals, sums, T: tl.constexpr):
    """Adds all lanes' sums to the float64 totals [PAIRS, T * T or more], a column for each pair of rows."""
    column = tl.arange(0, totals.shape[1])[None, :]
    run = tl.zeros_like(totals)
    for pair in tl.static_range(T * T):
        run = tl.where(column == pair, tl.sum(sums[pair].to(tl.float64), axis=1)[:, None], run)
    return totals + run


@triton.jit
def gram_tiles_kernel(
    J,  # [K, P], rows row_stride apart
    partials,  # [tiles, tiles, T, T, splits] float64; written for j <= i
    K,
    P,
    row_stride,
    split_columns,  # a multiple of LANES * VEC
    tiles,
    T: tl.constexpr,
    PAIRS: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    RUN: tl.constexpr,
    UNROLL: tl.constexpr,
):
    number = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    there = number < tiles * (tiles + 1) // 2
    tile_i, tile_j = _pair_of_tiles(tl.where(there, number, 0))
    split = tl.program_id(1)
    kind: tl.constexpr = tl.float64 if J.dtype.element_ty == tl.float64 else tl.float32
    step: tl.constexpr = LANES * VEC
    steps_per_run: tl.constexpr = RUN // VEC
    tl.static_assert(steps_per_run % UNROLL == 0)  # or a run would begin with steps of the one before

    begin = split.to(tl.int64) * split_columns
    width = tl.minimum(split_columns, P - begin).to(tl.int32)
    columns = tl.arange(0, LANES)[None, :, None] * VEC + tl.arange(0, VEC)[None, None, :]
    rows_i = _row_starts(J + begin, tile_i, K, row_stride, T)
    rows_j = _row_starts(J + begin, tile_j, K, row_stride, T)
    totals = tl.zeros([PAIRS, triton.next_power_of_2(T * T)], tl.float64)
    nothing = ()
    for _ in tl.static_range(T * T):
        nothing = nothing + (tl.zeros([PAIRS, LANES], kind),)

    whole = width // (step * UNROLL) * UNROLL
    for run in range(0, whole, steps_per_run):
        sums = nothing
        for at in range(run, tl.minimum(run + steps_per_run, whole), UNROLL):
            for ahead in tl.static_range(UNROLL):
                x = _load_rows(rows_i, columns + at * step, ahead * step, width, T, VEC, False)
                y = _load_rows(rows_j, columns + at * step, ahead * step, width, T, VEC, False)
                sums = _add_products(sums, x, y, T, VEC, kind)
        totals = _add_lanes(totals, sums, T)
    # The ragged end is separate: a mask that varies along the columns would break every 16-byte load.
    if whole * step < width:
        sums = nothing
        for at in range(whole, tl.cdiv(width, step)):
            x = _load_rows(rows_i, columns + at * step, 0, width, T, VEC, True)
            y = _load_rows(rows_j, columns + at * step, 0, width, T, VEC, True)
            sums = _add_products(sums, x, y, T, VEC, kind)
        totals = _add_lanes(totals, sums, T)

    pair = tl.arange(0, totals.shape[1])[None, :]
    place = (tile_i * tiles + tile_j).to(tl.int64)[:, None] * (T * T) + pair
    tl.store(partials + place * tl.num_programs(1) + split, totals, mask=there[:, None] & (pair < T * T))


def shape(K: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows per tile, as many as fit the registers; tiles; and blocks for all their pairs."""
    tiles = triton.cdiv(K, 4 if dtype == torch.float64 else 8)
    return triton.cdiv(K, tiles), tiles, triton.cdiv(tiles * (tiles + 1) // 2, PAIRS)
