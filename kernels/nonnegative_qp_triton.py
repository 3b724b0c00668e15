"""Small quadratic programs over x >= 0 on a GPU: one block for each, Mehrotra's method, without waiting for the
host."""

import torch
import triton
import triton.language as tl

from .spd_triton import spd_inverse, times, warps

ITERATIONS = 40


@triton.jit
def _longest(x, dx):
    """The longest step along dx that keeps x >= 0, at most slightly above 1."""
    shrinking = dx < 0.0
    return tl.minimum(tl.min(tl.where(shrinking, -x / tl.where(shrinking, dx, -1.0), 2.0), axis=0), 1.0 / 0.995)


@triton.jit
def solve_nonnegative(A, c, there, SIZE: tl.constexpr, ITERATIONS: tl.constexpr):
    """argmin x^T A x / 2 + c^T x over x >= 0, [SIZE] float64; NaN if A or c is not finite."""
    i = tl.arange(0, SIZE)
    inside = there[:, None] & there[None, :]
    diagonal = i[:, None] == i[None, :]
    sound = tl.abs(A) < float("inf")
    level = tl.abs(c) < float("inf")
    poison = tl.sum(tl.sum(tl.where(sound, 0.0, float("nan")), axis=1) + tl.where(level, 0.0, float("nan")), axis=0)
    A, c = tl.where(sound, A, 0.0), tl.where(level, c, 0.0)
    size = tl.max(tl.sum(tl.where(diagonal, A, 0.0), axis=1), axis=0)
    slope = tl.max(tl.abs(c), axis=0)
    size, slope = tl.where(size > 0.0, size, 1.0), tl.where(slope > 0.0, slope, 1.0)
    # Beyond K: min x^2 / 2 + x, whose solution is 0.
    A = tl.where(inside, A / size, tl.where(diagonal, 1.0, 0.0))
    c = tl.where(there, c / slope, 1.0)
    x = tl.full([SIZE], 1.0, tl.float64)
    z = tl.full([SIZE], 1.0, tl.float64)
    gap = tl.sum(x * z, axis=0) / SIZE
    n = 0
    while (n < ITERATIONS) & (gap >= 1e-18):
        product = times(A, x) + c  # the residual plus z
        inverse = spd_inverse(A + tl.where(diagonal, (z / x + 1e-14)[:, None], 0.0), SIZE)
        dx = times(inverse, -product)
        dz = -z - z / x * dx
        step = tl.minimum(_longest(x, dx), _longest(z, dz))
        aimed = tl.sum((x + step * dx) * (z + step * dz), axis=0) / SIZE
        ratio = tl.minimum(tl.maximum(aimed / gap, 0.0), 1.0)
        goal = gap * ratio * ratio * ratio - dx * dz
        dx = times(inverse, -product + goal / x)
        dz = -z + (goal - z * dx) / x
        fine = tl.sum(tl.where((tl.abs(dx) < float("inf")) & (tl.abs(dz) < float("inf")), 0.0, 1.0), axis=0) == 0.0
        step = tl.minimum(0.995 * tl.minimum(_longest(x, dx), _longest(z, dz)), 1.0)
        x = tl.where(fine, tl.maximum(x + step * dx, 1e-200), x)
        z = tl.where(fine, tl.maximum(z + step * dz, 1e-200), z)
        gap = tl.where(fine, tl.sum(x * z, axis=0) / SIZE, 0.0)
        n += 1
    return x * (slope / size) + poison


@triton.jit
def nonnegative_qp_kernel(
    H,  # [B, K, K] float64
    q,  # [B, K] float64
    out,  # [B, K] float64
    K,
    SIZE: tl.constexpr,  # K rounded up to a power of two
    ITERATIONS: tl.constexpr,
):
    problem = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    there = i < K
    inside = there[:, None] & there[None, :]
    A = tl.load(H + problem * K * K + i[:, None] * K + i[None, :], mask=inside, other=0.0)
    c = tl.load(q + problem * K + i, mask=there, other=0.0)
    tl.store(out + problem * K + i, solve_nonnegative(A, c, there, SIZE, ITERATIONS), mask=there)


def nonnegative_qp(H: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """H [B, K, K] and q [B, K] float64, both contiguous -> x [B, K] float64."""
    B, K = q.shape
    out = torch.empty_like(q)
    size = triton.next_power_of_2(K)
    with torch.cuda.device_of(q):
        nonnegative_qp_kernel[(B,)](H, q, out, K, SIZE=size, ITERATIONS=ITERATIONS, num_warps=warps(size))
    return out
