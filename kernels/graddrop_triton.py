"""GradDrop on a GPU in one pass: the K gradients are read from memory once, their sum is written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .draws_triton import draw
from .planes_triton import LAUNCH

_BLOCK = 1024


@triton.jit
def graddrop_kernel(
    J,  # [K, P], rows row_stride apart
    w,  # [K] float64
    leak,  # [K] float64
    step,  # int64 scalar, of the draws
    out,  # [P]
    kept,  # [blocks, K] float64: sums of the kept products, of one block each
    P, row_stride, start, seed,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = tl.float64 if J.dtype.element_ty == tl.float64 else tl.float32
    block = tl.program_id(0).to(tl.int64)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < P
    u = draw(step, columns + tl.cast(start, tl.int64), seed).to(kind)
    total = tl.zeros([BLOCK], kind)
    size = tl.zeros([BLOCK], kind)
    for k in tl.static_range(K):
        g = tl.load(J + k * row_stride + columns, mask=inside, other=0.0).to(kind) * tl.load(w + k).to(kind)
        total += g
        size += tl.abs(g)
    purity = 0.5 * (1.0 + total / tl.where(size == 0.0, 1.0, size))
    combined = tl.zeros([BLOCK], kind)
    for k in tl.static_range(K):  # a second time, from the cache
        row = tl.load(J + k * row_stride + columns, mask=inside, other=0.0).to(kind)
        g = row * tl.load(w + k).to(kind)
        chosen = ((u < purity) & (g > 0.0)) | ((u > purity) & (g < 0.0))
        g = g * tl.where(chosen, 1.0, tl.load(leak + k).to(kind))
        combined += g
        tl.store(kept + block * K + k, tl.sum((g * row).to(tl.float64)))
    tl.store(out + columns, combined, mask=inside)


def graddrop(
    J: torch.Tensor, w: torch.Tensor, leak: torch.Tensor, step: torch.Tensor, seed: int, start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """J [K, P] with contiguous rows, w and leak [K] float64 -> the kept sum [P], and kept products [K] float64."""
    K, P = J.shape
    blocks = triton.cdiv(P, _BLOCK)
    out = torch.empty(P, dtype=J.dtype, device=J.device)
    kept = torch.empty(blocks, K, dtype=torch.float64, device=J.device)
    with torch.cuda.device_of(J):
        graddrop_kernel[(blocks,)](
            J, w.contiguous(), leak.contiguous(), step, out, kept, P, J.stride(0), start, seed,
            K=K, BLOCK=_BLOCK, **LAUNCH,
        )  # fmt: skip
    return out, kept.sum(0)
