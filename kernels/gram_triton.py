# ruff: noqa: RUF005 (Triton supports `a + (b,)` but not `(*a, b)`)
"""Gram matrix of K gradients on a GPU: float32 products in short runs, summed in float64, in a fixed order.

Two launches. The first cuts the columns into splits, whose number depends only on the shape, and computes the inner
products of all rows over one split: every thread keeps a sum per pair over its columns, so each row is read once, in
16-byte loads, and threads exchange nothing until a run ends. The second adds the splits. No atomics and no TF32:
bit-equal over repeats. More rows than the registers hold are the first launch of `gram_tiles_triton`.
"""

import torch
import triton
import triton.language as tl

from . import gram_tiles_triton as tiled

LANES = 128  # columns a block holds side by side: one per thread
RUN = 128  # float32 products a thread adds up before the sum goes into float64
PROGRAMS = 1024  # target for every GPU, so that the splits and the result do not depend on the GPU
MIN_STEPS = 16  # a shorter split (in steps) is not worth its launch


@triton.jit
def _load_rows(J, first, row_stride, columns, width, T: tl.constexpr, MASKED: tl.constexpr, KIND: tl.constexpr):
    """T rows of J at `columns` [LANES, VEC], as a tuple."""
    rows = ()
    for i in tl.static_range(T):
        row = J + (first + i).to(tl.int64) * row_stride + columns
        if MASKED:
            rows = rows + (tl.load(row, mask=columns < width, other=0.0).to(KIND),)
        else:
            rows = rows + (tl.load(row).to(KIND),)
    return rows


@triton.jit
def _add_products(sums, x, T: tl.constexpr):
    """Adds x_i x_j to the sums [LANES] of the pairs j <= i, after summing its columns inside the thread."""
    out = ()
    for i in tl.static_range(T):
        for j in tl.static_range(i + 1):
            out = out + (sums[i * (i + 1) // 2 + j] + tl.sum(x[i] * x[j], axis=1),)
    return out


@triton.jit
def _add_lanes(totals, sums, PAIRS: tl.constexpr):
    """Adds each pair's lanes to its float64 total."""
    out = ()
    for pair in tl.static_range(PAIRS):
        out = out + (totals[pair] + tl.sum(sums[pair].to(tl.float64), axis=0),)
    return out


@triton.jit
def gram_partials_kernel(
    J,  # [K, P], rows row_stride apart
    partials,  # [T, T, splits] float64, written for j <= i; for the diagonal alone [K, splits]
    P,
    row_stride,
    split_columns,  # a multiple of LANES * VEC
    T: tl.constexpr,  # K, or for the diagonal 1
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    RUN: tl.constexpr,
):
    first, split = tl.program_id(0), tl.program_id(1)
    kind: tl.constexpr = tl.float64 if J.dtype.element_ty == tl.float64 else tl.float32
    step: tl.constexpr = LANES * VEC
    steps_per_run: tl.constexpr = RUN // VEC
    pairs: tl.constexpr = T * (T + 1) // 2

    begin = split.to(tl.int64) * split_columns
    width = tl.minimum(split_columns, P - begin)
    columns = begin + tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]  # [LANES, VEC]
    zero = tl.zeros([LANES], kind)
    totals = ()
    nothing = ()
    for _ in tl.static_range(pairs):
        totals = totals + (tl.sum(zero.to(tl.float64), axis=0),)
        nothing = nothing + (zero,)

    whole = width // step
    for run in range(0, whole, steps_per_run):
        sums = nothing
        for at in range(run, tl.minimum(run + steps_per_run, whole)):
            x = _load_rows(J, first, row_stride, columns + at * step, P, T, False, kind)
            sums = _add_products(sums, x, T)
        totals = _add_lanes(totals, sums, pairs)
    # The ragged end is separate: a mask that varies along the columns would break every 16-byte load.
    if whole * step < width:
        x = _load_rows(J, first, row_stride, columns + whole * step, P, T, True, kind)
        totals = _add_lanes(totals, _add_products(nothing, x, T), pairs)

    splits = tl.num_programs(1)
    for i in tl.static_range(T):
        for j in tl.static_range(i + 1):
            place = (first * T + i) * T + j
            tl.store(partials + place.to(tl.int64) * splits + split, totals[i * (i + 1) // 2 + j])


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


def _cut(P: int, step: int, splits: int) -> tuple[int, int]:
    """Columns of a split, a multiple of `step`, and the number of splits: at most as many as given."""
    columns = triton.cdiv(triton.cdiv(P, splits), step) * step
    return columns, triton.cdiv(P, columns)


def _launch(J: torch.Tensor, norms: bool) -> torch.Tensor:
    K, P = J.shape
    vector = 16 // J.dtype.itemsize  # columns a thread loads at once
    alone = 5 if J.dtype == torch.float64 else 8  # rows that fit the registers with the sums of all pairs
    options = {"VEC": vector, "RUN": RUN, "num_warps": 4}
    with torch.cuda.device_of(J):
        if norms or alone >= K:
            T, programs, step = 1 if norms else K, K if norms else 1, LANES * vector
            most = max(triton.cdiv(PROGRAMS, programs), 32)
            split_columns, splits = _cut(P, step, min(triton.cdiv(P, MIN_STEPS * step), most))
            partials = torch.empty(programs * T * T * splits, dtype=torch.float64, device=J.device)
            gram_partials_kernel[programs, splits](
                J, partials, P, J.stride(0), split_columns, T=T, LANES=LANES, **options
            )
        else:
            T, tiles, blocks = tiled.shape(K, J.dtype)
            step = tiled.LANES * tiled.UNROLL * vector
            most = max(tiled.PROGRAMS // blocks, 1)
            split_columns, splits = _cut(P, step, min(triton.cdiv(P, MIN_STEPS * step), most))
            partials = torch.empty(tiles * tiles * T * T * splits, dtype=torch.float64, device=J.device)
            tiled.gram_tiles_kernel[blocks, splits](
                J, partials, K, P, J.stride(0), split_columns, tiles,
                T=T, PAIRS=tiled.PAIRS, LANES=tiled.LANES, UNROLL=tiled.UNROLL, **options,
            )  # fmt: skip
        G = torch.empty((K,) if norms else (K, K), dtype=torch.float64, device=J.device)
        gram_finish_kernel[G.shape](partials, G, K, splits, T=T, NORMS=norms, BLOCK=256, num_warps=2)
    return G


def gram(J: torch.Tensor) -> torch.Tensor:
    """J [K, P] with contiguous rows -> G [K, K] float64."""
    return _launch(J, norms=False)


def squared_norms(J: torch.Tensor) -> torch.Tensor:
    """J [K, P] with contiguous rows -> the diagonal of G, [K] float64."""
    return _launch(J, norms=True)
