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
INTERPRETED: bool = triton.knobs.runtime.interpret
_PTX = tl.constexpr(not INTERPRETED)  # the interpreter runs no PTX
_LOG2_E = tl.constexpr(1.4426950408889634)
# How a mask varies: not at all, from pixel to pixel, or only from plane to plane.
NO_MASK, BY_PIXEL, BY_PLANE = (tl.constexpr(kind) for kind in range(3))


@triton.jit
def _instruction(x, PTX: tl.constexpr):
    return tl.inline_asm_elementwise(PTX, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def exp2_fast(x):
    """2^x as one instruction, with 0 for results below 1.2e-38: the usual one costs four for those."""
    return _instruction(x, "ex2.approx.ftz.f32 $0, $1;") if _PTX else tl.exp2(x)


@triton.jit
def exp_fast(x):
    return exp2_fast(x * _LOG2_E)


@triton.jit
def log2_fast(x):
    """log2 x as one instruction, for 0 and for x from 1.2e-38."""
    return _instruction(x, "lg2.approx.ftz.f32 $0, $1;") if _PTX else tl.log2(x)


@triton.jit
def reciprocal(x):
    """1 / x within one unit in the last place, as one instruction: a division costs eight. For x from 1e-38 to 1e38."""
    return _instruction(x, "rcp.approx.ftz.f32 $0, $1;") if _PTX else 1.0 / x


@triton.jit
def sigmoid_parts(logits):
    """exp(-|x|), and with it sigmoid(|x|)."""
    e = exp_fast(-tl.abs(logits))
    return e, reciprocal(1.0 + e)


@triton.jit
def place_of(pid, channels, splits):
    """Sample, channel and split of a program. The channel runs fastest: in channels_last tensors, programs that share
    cache lines then run together."""
    rest = pid // channels
    return (rest // splits).to(tl.int64), (pid % channels).to(tl.int64), rest % splits


@triton.jit
def visible_pixels(m, mb, mc, b, c, pixels, MASK: tl.constexpr):
    """Pixels of the plane to read: none if a mask by plane hides it."""
    if MASK == BY_PLANE:
        return tl.where(tl.load(m + b * mb + c * mc) != 0, pixels, 0)
    return pixels


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


def mask_kind(mask: torch.Tensor | None, pixel_stride: int) -> int:
    """The MASK of the kernels. A mask without a pixel stride holds one value per plane."""
    return (NO_MASK if mask is None else BY_PIXEL if pixel_stride else BY_PLANE).value


def finish_tile(segments: int, parts: int) -> dict[str, int]:
    """Segments and partials that one program adds at a time: all of a usual loss in one step, as each further step
    waits for memory again. Few different sizes, because each is compiled."""
    PARTS = next((size for size in (1, 16, 128) if parts <= size), 1024)
    return {"TILE": min(2048 // PARTS, max(16, triton.next_power_of_2(segments))), "PARTS": PARTS, "num_warps": 8}


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
