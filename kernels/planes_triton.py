"""Common code of the loss kernels: tensors [B, C, pixels] as planes, read in blocks and summed in parts.

A plane is one channel of one sample, planes = B * C. Every tensor is passed with its batch, channel and pixel stride.
Offsets are 64-bit. If the plane size is a multiple of 16 and the tensors are aligned, all loads are of 16 bytes; other
planes use narrower loads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Explicit, because Triton 3.10 changes the default and 3.9 warns about it.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
_NEGATIVE_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def log1p_unit(e):
    """log(1 + e) for 0 <= e <= 1, as in csrc/core/vec_math.hpp: libdevice's log1p does not run in the interpreter."""
    q = 5.36482455e-3 * e - 3.00657917e-2
    q = q * e + 7.92045370e-2
    q = q * e - 1.37538031e-1
    q = q * e + 1.91536546e-1
    q = q * e - 2.48571634e-1
    q = q * e + 3.33213240e-1
    q = q * e - 4.99996483e-1
    return (q * e + 1.0) * e


@triton.jit
def unit(target):
    """The target, NaN if outside 0 to 1: raising would wait for the device."""
    # Not a global NaN: it differs from itself, so Triton refuses the second kernel that uses it.
    return tl.where(tl.abs(target - 0.5) > 0.51, float("nan"), target)


@triton.jit
def load_plane(
    x, xb, xc, xs, t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, pixels,
    HAS_MASK: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """Logits and target as float32, and which elements are valid. Invalid elements read as (-inf, 0), which adds 0 to
    every sum."""
    inside = offsets < pixels
    x += b * xb + c * xc + offsets * xs
    t += b * tb + c * tc + offsets * ts
    logits = tl.load(x, mask=inside, other=_NEGATIVE_INFINITY, eviction_policy=EVICTION).to(tl.float32)
    target = tl.load(t, mask=inside, other=0, eviction_policy=EVICTION).to(tl.float32)
    if HAS_MASK:
        m += b * mb + c * mc + offsets * ms
        valid = tl.load(m, mask=inside, other=0) != 0
        logits = tl.where(valid, logits, _NEGATIVE_INFINITY)
        target = tl.where(valid, target, 0.0)
    else:
        valid = inside
    return logits, unit(target), valid


@triton.jit
def sum_parts(partials, segment, live, parts, TILE: tl.constexpr, PARTS: tl.constexpr):
    """One of the five sums of TILE segments, float64 [TILE]."""
    total = tl.zeros([TILE], tl.float64)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = live[:, None] & (part < parts)[None, :]
        total += tl.sum(
            tl.load(partials + segment[:, None] * parts + part[None, :], mask=inside, other=0.0).to(tl.float64), 1
        )
    return total


def block_size(pixels: int) -> int:
    """2048: 16 one-byte elements for each of 128 threads, so that uint8 loads are of 16 bytes too."""
    return min(2048, max(128, triton.next_power_of_2(pixels)))


def chunk_size(elements: int, block: int) -> int:
    """Elements that one program sums: about 1024 programs for large inputs are more than the SMs of any GPU and leave
    few partials to add."""
    return block * max(1, triton.cdiv(elements, 1024 * block))


def as_planes(tensor: torch.Tensor | None) -> tuple[torch.Tensor | None, tuple[int, int, int]]:
    """The tensor, bool read as bytes, with its batch, channel and pixel stride."""
    if tensor is None:
        return None, (0, 0, 0)
    spatial = zip(tensor.shape[:1:-1], tensor.stride()[:1:-1], strict=True)
    pixel = next((stride for size, stride in spatial if size > 1), 1)
    bytes_too = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
    return bytes_too, (tensor.stride(0), tensor.stride(1), pixel)
