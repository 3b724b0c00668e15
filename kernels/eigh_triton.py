"""Eigenvectors of a small symmetric matrix on a GPU: one block, Jacobi rotations, without waiting for the host.

A round rotates N/2 disjoint pairs at once, as in a round-robin tournament: after N - 1 rounds every pair has met. The
matrices are in global memory (cached), because each element needs those of the partners of its row and column.
"""

import torch
import triton
import triton.language as tl

from .spd_triton import warps

_SWEEPS = 12  # 6 to 9 reach rounding for 64 tasks


@triton.jit
def eigh_kernel(
    A,  # [N, N] float64, overwritten; its diagonal becomes the eigenvalues
    V,  # [N, N] float64: the identity, then the eigenvectors in columns
    N,  # even
    SIZE: tl.constexpr,  # N rounded up to a power of two
    SWEEPS: tl.constexpr,
):
    i = tl.arange(0, SIZE)
    there = i < N
    inside = there[:, None] & there[None, :]
    at = i[:, None] * N + i[None, :]
    for turn in range(SWEEPS * (N - 1)):
        r = turn % (N - 1)
        # i meets the j with i + j = r modulo N - 1; the i that would meet itself meets N - 1.
        j = (r - i + 2 * (N - 1)) % (N - 1)
        j = tl.where(j == i, N - 1, j)
        j = tl.where(i == N - 1, (r * (N // 2)) % (N - 1), j)
        j = tl.where(there, j, i)
        own = tl.load(A + i * N + i, mask=there, other=0.0)
        theirs = tl.load(A + j * N + j, mask=there, other=0.0)
        # Both use the upper half: the halves differ by rounding, and partners must rotate by the same angle.
        between = tl.load(A + tl.minimum(i, j) * N + tl.maximum(i, j), mask=there, other=0.0)
        turned = tl.abs(between) > 1e-17 * tl.sqrt(tl.abs(own * theirs))
        theta = (theirs - own) / tl.where(turned, 2.0 * between, 1.0)
        # For the partner theta has the opposite sign, and so must the sine if theta is 0.
        sign = tl.where(theta > 0.0, 1.0, tl.where(theta < 0.0, -1.0, tl.where(i < j, 1.0, -1.0)))
        tangent = tl.where(turned, sign / (tl.abs(theta) + tl.sqrt(theta * theta + 1.0)), 0.0)
        c = 1.0 / tl.sqrt(tangent * tangent + 1.0)
        s = tangent * c
        a = tl.load(A + at, mask=inside, other=0.0)
        row = tl.load(A + j[:, None] * N + i[None, :], mask=inside, other=0.0)
        column = tl.load(A + i[:, None] * N + j[None, :], mask=inside, other=0.0)
        corner = tl.load(A + j[:, None] * N + j[None, :], mask=inside, other=0.0)
        v = tl.load(V + at, mask=inside, other=0.0)
        beside = tl.load(V + i[:, None] * N + j[None, :], mask=inside, other=0.0)
        a = c[None, :] * (c[:, None] * a - s[:, None] * row) - s[None, :] * (c[:, None] * column - s[:, None] * corner)
        v = c[None, :] * v - s[None, :] * beside
        tl.debug_barrier()  # all have read
        tl.store(A + at, a, mask=inside)
        tl.store(V + at, v, mask=inside)
        tl.debug_barrier()  # all have written


def eigh(G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """G [K, K] float64 -> unordered eigenvalues [K], eigenvectors [K, K] in columns; NaN where G is not finite."""
    K = len(G)
    N = max(2, K + K % 2)
    A = torch.zeros(N, N, dtype=torch.float64, device=G.device)
    A[:K, :K] = G
    V = torch.eye(N, dtype=torch.float64, device=G.device)
    size = triton.next_power_of_2(N)
    with torch.cuda.device_of(G):
        eigh_kernel[(1,)](A, V, N, SIZE=size, SWEEPS=_SWEEPS, num_warps=warps(size))
    bad = 0.0 * G.sum()
    return A.diagonal()[:K] + bad, V[:K, :K] + bad
