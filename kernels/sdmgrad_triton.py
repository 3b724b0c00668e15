"""SDMGrad's descent on the simplex on a GPU: all steps of `balance.sdmgrad`, in one launch."""

import torch
import triton
import triton.language as tl

from .spd_triton import times, warps


@triton.jit
def _project(v, active):
    """The nearest point of the simplex of the active tasks, [SIZE]; 0 elsewhere."""
    before = active[None, :] & (v[None, :] >= v[:, None])  # in descending order, ties together
    above = tl.sum(tl.where(before, v[None, :], 0.0), axis=1) - 1.0
    support = active & (v * tl.sum(before.to(tl.float64), axis=1) > above)
    number = tl.maximum(tl.sum(support.to(tl.float64), axis=0), 1.0)
    level = (tl.sum(tl.where(support, v, 0.0), axis=0) - 1.0) / number
    return tl.where(active & (v > level), v - level, 0.0)


@triton.jit
def sdmgrad_kernel(
    A,  # [K, K] float64, scaled; 0 where a task is inactive
    pull,  # [K] float64
    mask,  # [K] bool
    start,  # [K] float64
    out,  # [K] float64
    K, lr, momentum, steps,
    SIZE: tl.constexpr,  # K rounded up to a power of two
):  # fmt: skip
    i = tl.arange(0, SIZE)
    there = i < K
    products = tl.load(A + i[:, None] * K + i[None, :], mask=there[:, None] & there[None, :], other=0.0)
    towards = tl.load(pull + i, mask=there, other=0.0)
    active = tl.load(mask + i, mask=there, other=0) != 0
    v = _project(tl.load(start + i, mask=there, other=0.0), active)
    speed = tl.zeros([SIZE], tl.float64)
    for _ in range(steps):
        speed = momentum * speed + times(products, v + towards)
        v = _project(v - lr * speed, active)
    tl.store(out + i, v, mask=there)


def descend(
    A: torch.Tensor, pull: torch.Tensor, active: torch.Tensor, start: torch.Tensor,
    lr: float, momentum: float, steps: int,
) -> torch.Tensor:  # fmt: skip
    """See `balance.sdmgrad`; v [K] float64. A is contiguous."""
    K, out = len(A), torch.empty_like(start)
    size = triton.next_power_of_2(K)
    with torch.cuda.device_of(A):
        sdmgrad_kernel[(1,)](A, pull, active, start, out, K, lr, momentum, steps, SIZE=size, num_warps=warps(size))
    return out
