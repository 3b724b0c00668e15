"""Small matrices [SIZE, SIZE] one per block: inverse, product, and the number of warps to use."""

import triton
import triton.language as tl


def warps(size: int) -> int:
    """8 matrix elements per thread, so that a few matrices fit the registers; a size of 64 still spills some."""
    return {32: 4, 64: 16}.get(size, 1)


@triton.jit
def spd_inverse(M, SIZE: tl.constexpr):
    """M [SIZE, SIZE] float64 -> its inverse, by Gauss-Jordan on the matrix scaled to a diagonal of ones.

    Positive definite matrices need no pivoting; the scaling makes z / x of an interior-point method harmless.
    """
    i = tl.arange(0, SIZE)
    diagonal = i[:, None] == i[None, :]
    scale = 1.0 / tl.sqrt(tl.sum(tl.where(diagonal, M, 0.0), axis=1))
    M = M * scale[:, None] * scale[None, :]
    for k in range(SIZE):
        row = tl.sum(tl.where(i[:, None] == k, M, 0.0), axis=0)
        column = tl.sum(tl.where(i[None, :] == k, M, 0.0), axis=1)
        pivot = 1.0 / tl.sum(tl.where(i == k, row, 0.0), axis=0)
        rest = M - column[:, None] * (row * pivot)[None, :]
        rest = tl.where(i[:, None] == k, (row * pivot)[None, :], rest)
        rest = tl.where(i[None, :] == k, -(column * pivot)[:, None], rest)
        M = tl.where((i[:, None] == k) & (i[None, :] == k), pivot, rest)
    return M * scale[:, None] * scale[None, :]


@triton.jit
def times(M, x):
    """M [SIZE, SIZE] x [SIZE]."""
    return tl.sum(M * x[None, :], axis=1)
