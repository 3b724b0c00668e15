"""CAGrad's weights on a GPU: the secant search of `balance.cagrad` over small quadratic programs, in one launch."""

import torch
import triton
import triton.language as tl

from .nonnegative_qp_triton import ITERATIONS, solve_nonnegative
from .spd_triton import times, warps


@triton.jit
def _length(v, A):
    return tl.sqrt(tl.maximum(tl.sum(v * times(A, v), axis=0), 0.0))


@triton.jit
def cagrad_kernel(
    G,  # [K, K] float64
    numbers,  # [3] float64: c, what the result is multiplied by, the length below which a vector is 0
    w,  # [K] float64
    K,
    STEPS: tl.constexpr,
    SIZE: tl.constexpr,  # K rounded up to a power of two
    ITERATIONS: tl.constexpr,
):
    i = tl.arange(0, SIZE)
    there = i < K
    diagonal = i[:, None] == i[None, :]
    c, rescale, least = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    A = tl.load(G + i[:, None] * K + i[None, :], mask=there[:, None] & there[None, :], other=0.0)
    sound = tl.abs(A) < float("inf")
    poison = tl.sum(tl.sum(tl.where(sound, 0.0, float("nan")), axis=1), axis=0)
    A = tl.where(sound, A, 0.0)
    squares = tl.sum(tl.where(diagonal, A, 0.0), axis=1)
    active = squares != 0.0
    both = active[:, None] & active[None, :]
    count = tl.maximum(tl.sum(active.to(tl.float64), axis=0), 1.0)
    mean = tl.where(active, 1.0 / count, 0.0)
    size = tl.max(squares, axis=0)
    A = tl.where(both, A / tl.where(size > 0.0, size, 1.0), 0.0)
    towards = times(A, mean)
    square = tl.sum(mean * towards, axis=0)
    radius = c * tl.sqrt(tl.maximum(square, 0.0))
    stationary = (radius > least) == 0
    radius_or_1 = tl.where(stationary, 1.0, radius)
    low, high = tl.log(least / radius_or_1), tl.log(2.0 / radius_or_1)
    at_low, at_high = square * 0.0, square * 0.0
    closest = square * 0.0 + float("inf")
    v = mean
    was_right, was_left = at_low > 0.0, at_low > 0.0
    n = 0
    while (n < STEPS + 2) & (closest > 1e-13) & (stationary == 0):  # the first two tries are the ends
        middle = high - at_high * (high - low) / tl.where(at_high == at_low, 1.0, at_high - at_low)
        middle = tl.where((middle > low) & (middle < high), middle, (low + high) / 2)
        middle = tl.where(n == 0, low, tl.where(n == 1, high, middle))
        t = tl.exp(middle)
        slant = t * towards
        shifted = tl.where(both, A + slant[:, None] + slant[None, :] + t * t * square, 0.0)
        largest = tl.max(tl.sum(tl.where(diagonal, shifted, 0.0), axis=1), axis=0)
        H = tl.where(both, shifted / tl.where(largest > 0.0, largest, 1.0) + 1.0, tl.where(diagonal, 1.0, 0.0))
        x = solve_nonnegative(H, tl.where(active, -1.0, 1.0).to(tl.float64), there, SIZE, ITERATIONS)
        x = tl.where(active, x, 0.0)
        total = tl.sum(x, axis=0)
        x = x / tl.where(total == 0.0, 1.0, total)
        found = tl.log(tl.maximum(_length(x, A) / (t * radius_or_1), 1e-300))
        ends = n < 2
        better = (tl.abs(found) < closest) & (n >= 2)
        v = tl.where(better, x, v)
        closest = tl.where(better, tl.abs(found), closest)
        right = found < 0.0  # then the root is to the left: `middle` replaces `high`
        # Anderson and Bjorck: reduce the value at an end that was kept twice, or it would be kept forever.
        fade_low = tl.where(was_right, tl.where(found > at_high, 1.0 - found / at_high, 0.5), 1.0)
        fade_high = tl.where(was_left, tl.where(found < at_low, 1.0 - found / at_low, 0.5), 1.0)
        new_low = tl.where(right, at_low * fade_low, found)
        new_high = tl.where(right, found, at_high * fade_high)
        at_low = tl.where(n == 0, found, tl.where(ends, at_low, new_low))
        at_high = tl.where(n == 1, found, tl.where(ends, at_high, new_high))
        low = tl.where(ends | right, low, middle)
        high = tl.where(ends | (right == 0), high, middle)
        was_right, was_left = right & (n >= 2), (right == 0) & (n >= 2)
        stationary = stationary | ((n == 0) & ((found > 0.0) == 0))
        n += 1
    length = _length(v, A)
    made = (mean + radius * v / tl.where(length > 0.0, length, 1.0)) * rescale
    tl.store(w + i, tl.where(active & (stationary == 0), made, 0.0) + poison, mask=there)


def cagrad(G: torch.Tensor, options: torch.Tensor, steps: int) -> torch.Tensor:
    """G [K, K] float64 contiguous, options as in the kernel -> w [K] float64; NaN where G is not finite."""
    K = len(G)
    w = torch.empty(K, dtype=torch.float64, device=G.device)
    size = triton.next_power_of_2(K)
    with torch.cuda.device_of(G):
        cagrad_kernel[(1,)](G, options, w, K, STEPS=steps, SIZE=size, ITERATIONS=ITERATIONS, num_warps=warps(size))
    return w
