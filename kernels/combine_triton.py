"""Weighted sum of K gradients on a GPU: each element is read K times and written once."""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def combine_kernel(
    J,  # [K, P], rows row_stride apart
    w,  # [K] float32 or float64
    out,  # [P] float32, or float64 for float64 J
    P,
    row_stride,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    kind: tl.constexpr = out.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    row = J + columns
    # A mask would break 16-byte loads if P is not a multiple of 16, so only the last block has one.
    if first + BLOCK <= P:
        total = tl.load(w).to(kind) * tl.load(row).to(kind)
        for k in tl.static_range(1, K):
            row += row_stride
            total += tl.load(w + k).to(kind) * tl.load(row).to(kind)
        tl.store(out + columns, total)
    else:
        there = columns < P
        total = tl.load(w).to(kind) * tl.load(row, mask=there, other=0.0).to(kind)
        for k in tl.static_range(1, K):
            row += row_stride
            total += tl.load(w + k).to(kind) * tl.load(row, mask=there, other=0.0).to(kind)
        tl.store(out + columns, total, mask=there)


def combine(J: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> None:
    """J [K, P] with contiguous rows, w [K] -> out [P]."""
    K, P = J.shape
    with torch.cuda.device_of(J):
        combine_kernel[(triton.cdiv(P, BLOCK),)](J, w.contiguous(), out, P, J.stride(0), K=K, BLOCK=BLOCK, num_warps=4)
