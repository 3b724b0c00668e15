"""The positive solution of C y = r / y^p on a GPU: one block, damped Newton, without waiting for the host."""

import torch
import triton
import triton.language as tl

from .spd_triton import spd_inverse, times, warps

_ITERATIONS, _HALVINGS = 150, 8


@triton.jit
def _objective(A, r, p, y, there):
    logs = tl.log(y)
    flat = tl.abs(p - 1.0) < 1e-15
    psi = tl.where(flat, logs, tl.exp((1.0 - p) * logs) / tl.where(flat, 1.0, 1.0 - p))
    return tl.sum(tl.where(there, 0.5 * y * times(A, y) - r * psi, 0.0), axis=0)


@triton.jit
def equilibrium_kernel(
    C,  # [K, K] float64
    r,  # [K] float64
    power,  # [1] float64: p; Triton would pass a plain number as float32
    out,  # [K] float64
    K,
    SIZE: tl.constexpr,  # K rounded up to a power of two
    ITERATIONS: tl.constexpr,
    HALVINGS: tl.constexpr,
):
    i = tl.arange(0, SIZE)
    there = i < K
    inside = there[:, None] & there[None, :]
    diagonal = i[:, None] == i[None, :]
    p = tl.load(power)
    A = tl.load(C + i[:, None] * K + i[None, :], mask=inside, other=0.0)
    pull = tl.load(r + i, mask=there, other=1.0)
    sound = tl.abs(A) < float("inf")
    level = tl.abs(pull) < float("inf")
    poison = tl.sum(tl.sum(tl.where(sound, 0.0, float("nan")), axis=1) + tl.where(level, 0.0, float("nan")), axis=0)
    A = tl.where(inside & sound, A, tl.where(diagonal, 1.0, 0.0)) + tl.where(diagonal, 1e-12, 0.0)
    pull = tl.where(level, pull, 1.0)
    y = tl.full([SIZE], 1.0, tl.float64)
    moving = tl.sum(tl.where(there, y, 0.0), axis=0)
    n = 0
    while (n < ITERATIONS) & (moving > 0.0):
        drawn = pull * tl.exp(-p * tl.log(y))
        gradient = times(A, y) - drawn
        inverse = spd_inverse(A + tl.where(diagonal, (p * drawn / y)[:, None], 0.0), SIZE)
        dy = -times(inverse, gradient)
        decrement = -tl.sum(tl.where(there, gradient * dy, 0.0), axis=0)
        scale = tl.sum(tl.where(there, drawn * y, 0.0), axis=0)
        shrinking = dy < 0.0
        step = tl.min(tl.where(shrinking, -0.95 * y / tl.where(shrinking, dy, -1.0), 1.0), axis=0)
        step = tl.minimum(step, 1.0)
        if decrement > 1e-3 * scale:
            best = _objective(A, pull, p, y + step * dy, there)
            tried = step
            for _ in range(HALVINGS - 1):
                tried = 0.5 * tried
                value = _objective(A, pull, p, y + tried * dy, there)
                better = value < best
                best = tl.where(better, value, best)
                step = tl.where(better, tried, step)
        moves = decrement > 1e-26 * scale  # false for NaN as well
        y = tl.where(moves, y + step * dy, y)
        moving = tl.where(moves, moving, 0.0)
        n += 1
    tl.store(out + i, y + poison, mask=there)


def equilibrium(C: torch.Tensor, r: torch.Tensor, p: float) -> torch.Tensor:
    """C [K, K] and r [K] float64, both contiguous -> y [K] float64."""
    K = len(r)
    out = torch.empty_like(r)
    power = torch.full((1,), p, dtype=torch.float64, device=r.device)
    size = triton.next_power_of_2(K)
    constants = {"SIZE": size, "ITERATIONS": _ITERATIONS, "HALVINGS": _HALVINGS}
    with torch.cuda.device_of(r):
        equilibrium_kernel[(1,)](C, r, power, out, K, **constants, num_warps=warps(size))
    return out
