"""Linear assignment on NVIDIA GPUs: one program matches one sample, with the algorithm of reference/assignment.py.

A program holds one number per column (the larger side of the sample) in registers and scans all columns at once; it
reads a row of costs per step, and writes only at the end. The chain of steps takes the time, so a sample uses a single
warp if it fits: a reduction is then a few shuffles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_INFINITY = tl.constexpr(float("inf"))
_LARGEST = tl.constexpr(1e100)  # larger costs count as infinite


@triton.jit
def _read(cost, row, row_stride, columns, column_stride, there):
    """A row of costs as float64, 0 beyond the last column."""
    return tl.load(cost + row * row_stride + columns * column_stride, mask=there, other=0.0).to(tl.float64)


@triton.jit
def _finite(costs, last_resort, forbidden):
    usable = tl.abs(costs) <= _LARGEST
    return tl.where(usable, costs, tl.where(costs > _LARGEST, forbidden, last_resort))


@triton.jit
def _pick(values, columns, column):
    return tl.sum(tl.where(columns == column, values, 0))


@triton.jit
def assignment_kernel(
    cost, num_targets, matches, cb, cq, ct, queries, targets, factor, HAS_NUMBER: tl.constexpr, BLOCK: tl.constexpr
):
    """matches [B, T] must be filled with -1; grid [B]. `factor`: a power of two above queries and targets."""
    b = tl.program_id(0).to(tl.int64)
    cost += b * cb
    matches += b * targets
    number = targets
    if HAS_NUMBER:
        number = tl.minimum(tl.maximum(tl.load(num_targets + b), 0), targets).to(tl.int32)
    swapped = number > queries  # the smaller set is the rows: each row finds a column
    rows = tl.minimum(number, queries)
    columns = tl.maximum(number, queries)
    row_stride = tl.where(swapped, cq, ct).to(tl.int64)
    column_stride = tl.where(swapped, ct, cq).to(tl.int64)
    k = tl.arange(0, BLOCK)
    there = k < columns

    lows = tl.full([BLOCK], _INFINITY, tl.float64)
    highs = tl.full([BLOCK], -_INFINITY, tl.float64)
    for row in range(rows):
        costs = _read(cost, row, row_stride, k, column_stride, there)
        usable = there & (tl.abs(costs) <= _LARGEST)
        lows = tl.minimum(lows, tl.where(usable, costs, _INFINITY))
        highs = tl.maximum(highs, tl.where(usable, costs, -_INFINITY))
    low = tl.min(lows)
    high = tl.max(highs)
    any_usable = high >= low
    low = tl.where(any_usable, low, 0.0)
    high = tl.where(any_usable, high, 0.0)
    spread = tl.where(high > low, high - low, 1.0)
    scale = factor.to(tl.float64)
    last_resort = low + scale * spread
    forbidden = low + scale * scale * spread

    price = tl.zeros([BLOCK], tl.float64)
    owner = tl.full([BLOCK], -1, tl.int32)  # of a column: its row
    for row in range(rows):
        distance = tl.full([BLOCK], _INFINITY, tl.float64)
        previous = tl.full([BLOCK], -1, tl.int32)  # the column before it on the path
        still_open = there
        last = -1
        here = row
        passed = low * 0.0
        reached = low * 0.0
        while here >= 0:
            costs = _finite(_read(cost, here, row_stride, k, column_stride, there), last_resort, forbidden)
            reduced = costs - price
            if last >= 0:
                passed = _pick(reduced, k, last) - reached
            through = reduced - passed
            nearer = still_open & (through < distance)
            distance = tl.where(nearer, through, distance)
            previous = tl.where(nearer, last, previous)
            reached = tl.min(tl.where(still_open, distance, _INFINITY))
            # Among equals a free column, then the first.
            rank = tl.where(still_open & (distance == reached), tl.where(owner >= 0, k + BLOCK, k), 2 * BLOCK)
            last = tl.min(rank) % BLOCK
            still_open = still_open & (k != last)
            here = _pick(owner, k, last)
        on_path = there & (still_open == 0)
        price = tl.where(on_path, price + (distance - reached), price)
        while last >= 0:
            before = _pick(previous, k, last)
            taken = row
            if before >= 0:
                taken = _pick(owner, k, before)
            owner = tl.where(k == last, taken, owner)
            last = before

    matched = there & (owner >= 0)
    paid = tl.load(cost + owner * row_stride + k * column_stride, mask=matched, other=0.0).to(tl.float64)
    matched = matched & ((paid > _LARGEST) == 0)
    target = tl.where(swapped, k, owner)
    query = tl.where(swapped, owner, k)
    tl.store(matches + target, query.to(tl.int64), mask=matched)


def linear_assignment(cost: torch.Tensor, num_targets: torch.Tensor | None) -> torch.Tensor:
    """cost [B, Q, T] with any strides, num_targets int64 [B] or None -> matches int64 [B, T]."""
    B, Q, T = cost.shape
    matches = torch.full((B, T), -1, dtype=torch.int64, device=cost.device)
    size = max(Q, T)
    block = max(32, triton.next_power_of_2(size))
    with torch.cuda.device_of(cost):
        assignment_kernel[(B,)](
            cost, num_targets, matches, *cost.stride(), Q, T, 1 << size.bit_length(),
            HAS_NUMBER=num_targets is not None, BLOCK=block, num_warps=1 if block <= 256 else min(16, block // 128),
            enable_fp_fusion=True,
        )  # fmt: skip
    return matches
