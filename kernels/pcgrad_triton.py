"""PCGrad's weights on a GPU: one block, all tasks at once, without waiting for the host."""

import torch
import triton
import triton.language as tl


@triton.jit
def pcgrad_kernel(
    G,  # [K, K] float64
    order,  # [K, M] int64
    w,  # [K] float64
    K,
    M,
    SIZE: tl.constexpr,  # K rounded up to a power of two
    MEAN: tl.constexpr,
):
    i = tl.arange(0, SIZE)
    k = tl.arange(0, SIZE)
    there = i < K
    norms = tl.load(G + i * K + i, mask=there, other=0.0)  # squared
    C = tl.where((i[:, None] == k[None, :]) & there[:, None], 1.0, 0.0).to(tl.float64)  # row i: coefficients of task i
    outside = tl.zeros([SIZE], tl.float64)
    for m in range(M):
        j = tl.load(order + i * M + m, mask=there, other=0)
        wrong = (j < 0) | (j >= K)
        outside = tl.where(wrong, float("nan"), outside)
        j = tl.where(wrong, 0, j)
        g = tl.load(G + j[:, None] * K + k[None, :], mask=there[:, None] & there[None, :], other=0.0)
        norm = tl.load(G + j * K + j, mask=there, other=0.0)
        s = tl.sum(g * C, axis=1)
        conflict = there & (s < 0.0) & (norm != 0.0) & (j != i)
        step = tl.where(conflict, s / tl.where(conflict, norm, 1.0), 0.0)
        C -= tl.where(k[None, :] == j[:, None], step[:, None], 0.0)
    total = tl.sum(C, axis=0)
    if MEAN:
        active = tl.sum((norms != 0.0).to(tl.float64), axis=0)
        total = total / tl.maximum(active, 1.0)
    # NaN if G is not finite, which s < 0 would miss.
    everything = tl.load(G + i[:, None] * K + k[None, :], mask=there[:, None] & there[None, :], other=0.0)
    infinite = tl.where(tl.abs(everything) < float("inf"), 0.0, float("nan"))
    poison = tl.sum(tl.sum(infinite, axis=1) + outside, axis=0)
    tl.store(w + k, total + poison, mask=there)


def pcgrad_weights(G: torch.Tensor, order: torch.Tensor, mean: bool) -> torch.Tensor:
    """G [K, K] float64 and order [K, M] int64, both contiguous -> w [K] float64."""
    K, M = order.shape
    w = torch.empty(K, dtype=torch.float64, device=G.device)
    size = triton.next_power_of_2(K)
    with torch.cuda.device_of(G):
        pcgrad_kernel[(1,)](G, order, w, K, M, SIZE=size, MEAN=mean, num_warps=1 if size <= 16 else 8)
    return w
