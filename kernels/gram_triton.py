# ruff: noqa: RUF005 (Triton supports `a + (b,)` but not `(*a, b)`)
"""Gram matrix of K gradients on a GPU: float32 products in short runs, summed in float64, in a fixed order.

Two launches. The first cuts the columns into splits, whose number depends only on the shape, and computes the inner
products of two tiles of T rows over one split: every thread keeps a sum per pair over its columns, so each row is read
once, in 16-byte loads, and threads exchange nothing until a run ends. The second adds the splits. No atomics and no
TF32: bit-equal over repeats.
"""

import torch
import triton
import triton.language as tl

LANES = 128  # columns a block holds side by side: one per thread
RUN = 128  # float32 products a thread adds up before the sum goes into float64
PROGRAMS = 1024  # target for every GPU, so that the splits and the result do not depend on the GPU
MIN_STEPS = 16  # a shorter split (in steps) is not worth its launch


@triton.jit
def _load_rows(J, tile, K, row_stride, columns, width, T: tl.constexpr, MASKED: tl.constexpr, KIND: tl.constexpr):
    """T rows of J at `columns` [LANES, VEC], as a tuple. Rows past the last one repeat it, and are ignored later."""
    rows = ()
    for i in tl.static_range(T):
        row = J + tl.minimum(tile * T + i, K - 1).to(tl.int64) * row_stride + columns
        if MASKED:
            rows = rows + (tl.load(row, mask=columns < width, other=0.0).to(KIND),)
        else:
            rows = rows + (tl.load(row).to(KIND),)
    return rows


@triton.jit
def _add_products(sums, x, y, T: tl.constexpr, TRIANGLE: tl.constexpr):
    """Adds x_i y_j to the T x T sums [LANES] each, after summing its columns inside the thread."""
    out = ()
    for i in tl.static_range(T):
        for j in tl.static_range(T):
            if TRIANGLE and j > i:
                out = out + (sums[i * T + j],)
            else:
                out = out + (sums[i * T + j] + tl.sum(x[i] * y[j], axis=1),)
    return out


@triton.jit
def _add_lanes(totals, sums, T: tl.constexpr, TRIANGLE: tl.constexpr):
    """Adds each pair's lanes to its float64 total."""
    out = ()
    for pair in tl.static_range(T * T):
        if TRIANGLE and pair % T > pair // T:
            out = out + (totals[pair],)
        else:
            out = out + (totals[pair] + tl.sum(sums[pair].to(tl.float64), axis=0),)
    return out


@triton.jit
def gram_partials_kernel(
    J,  # [K, P], rows row_stride apart
    partials,  # [tiles, tiles, T, T, splits] float64; for the diagonal alone [K, 1, 1, 1, splits]
    K,
    P,
    row_stride,
    split_columns,  # a multiple of LANES * VEC
    T: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    RUN: tl.constexpr,
    TRIANGLE: tl.constexpr,  # both tiles are the same, so half of the products are enough
):
    tile_i = tl.program_id(0)
    tile_j = tile_i if TRIANGLE else tl.program_id(1)
    if tile_j > tile_i:
        return
    split = tl.program_id(2)
    kind: tl.constexpr = tl.float64 if J.dtype.element_ty == tl.float64 else tl.float32
    step: tl.constexpr = LANES * VEC
    steps_per_run: tl.constexpr = RUN // VEC

    begin = split.to(tl.int64) * split_columns
    width = tl.minimum(split_columns, P - begin)
    columns = begin + tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]  # [LANES, VEC]
    zero = tl.zeros([LANES], kind)
    totals = ()
    nothing = ()
    for _ in tl.static_range(T * T):
        totals = totals + (tl.sum(zero.to(tl.float64), axis=0),)
        nothing = nothing + (zero,)

    whole = width // step
    for run in range(0, whole, steps_per_run):
        sums = nothing
        for at in range(run, tl.minimum(run + steps_per_run, whole)):
            x = _load_rows(J, tile_i, K, row_stride, columns + at * step, P, T, False, kind)
            y = x if TRIANGLE else _load_rows(J, tile_j, K, row_stride, columns + at * step, P, T, False, kind)
            sums = _add_products(sums, x, y, T, TRIANGLE)
        totals = _add_lanes(totals, sums, T, TRIANGLE)
    # The ragged end is separate: a mask that varies along the columns would break every 16-byte load.
    if whole * step < width:
        x = _load_rows(J, tile_i, K, row_stride, columns + whole * step, P, T, True, kind)
        y = x if TRIANGLE else _load_rows(J, tile_j, K, row_stride, columns + whole * step, P, T, True, kind)
        totals = _add_lanes(totals, _add_products(nothing, x, y, T, TRIANGLE), T, TRIANGLE)

    tiles = tl.num_programs(1)
    splits = tl.num_programs(2)
    out = partials + (tile_i * tiles + (0 if TRIANGLE else tile_j)).to(tl.int64) * T * T * splits + split
    for pair in tl.static_range(T * T):
        tl.store(out + pair * splits, totals[pair])


@triton.jit
def gram_finish_kernel(
    partials,  # [tiles, tiles, T, T, splits] float64
    G,  # [K, K] float64; with NORMS [K]
    K,
    splits,
    T: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    j = i if NORMS else tl.program_id(1)
    if j > i:
        return
    pair = i if NORMS else ((i // T * tl.cdiv(K, T) + j // T) * T + i % T) * T + j % T
    sums = tl.zeros([BLOCK], tl.float64)
    for first in range(0, splits, BLOCK):
        split = first + tl.arange(0, BLOCK)
        sums += tl.load(partials + pair.to(tl.int64) * splits + split, mask=split < splits, other=0.0)
    total = tl.sum(sums, axis=0)
    if NORMS:
        tl.store(G + i, total)
    else:  # both halves get the same number: exactly symmetric
        tl.store(G + i * K + j, total)
        tl.store(G + j * K + i, total)


def tile(K: int, dtype: torch.dtype) -> int:
    """Rows per tile: as many as fit the registers with the sums of all pairs."""
    alone = 5 if dtype == torch.float64 else 8
    if alone >= K:
        return K  # one tile, whose lower triangle is enough
    largest = {8: 4, 4: 6, 2: 5}[dtype.itemsize]  # 2-byte rows are loaded eight columns at a time, in more registers
    return triton.cdiv(K, triton.cdiv(K, largest))


def vector(dtype: torch.dtype) -> int:
    """Columns a thread loads at once: 16 bytes."""
    return 16 // dtype.itemsize


def _launch(J: torch.Tensor, T: int, norms: bool) -> torch.Tensor:
    K, P = J.shape
    step = LANES * vector(J.dtype)
    tiles = triton.cdiv(K, T)
    pairs = K if norms else tiles * (tiles + 1) // 2
    splits = min(triton.cdiv(P, MIN_STEPS * step), max(triton.cdiv(PROGRAMS, pairs), 32))
    split_columns = triton.cdiv(triton.cdiv(P, splits), step) * step
    splits = triton.cdiv(P, split_columns)
    grid = (K, 1, splits) if norms else (tiles, tiles, splits)
    shape = (K,) if norms else (K, K)
    options = {"TRIANGLE": norms or tiles == 1, "LANES": LANES, "VEC": vector(J.dtype), "RUN": RUN}
    with torch.cuda.device_of(J):
        partials = torch.empty(grid[0] * grid[1] * T * T * splits, dtype=torch.float64, device=J.device)
        G = torch.empty(shape, dtype=torch.float64, device=J.device)
        gram_partials_kernel[grid](J, partials, K, P, J.stride(0), split_columns, T=T, num_warps=LANES // 32, **options)
        gram_finish_kernel[shape](partials, G, K, splits, T=T, NORMS=norms, BLOCK=256, num_warps=2)
    return G


def gram(J: torch.Tensor) -> torch.Tensor:
    """J [K, P] with contiguous rows -> G [K, K] float64."""
    return _launch(J, tile(J.shape[0], J.dtype), norms=False)


def squared_norms(J: torch.Tensor) -> torch.Tensor:
    """J [K, P] with contiguous rows -> the diagonal of G, [K] float64."""
    return _launch(J, 1, norms=True)
