"""The apply pass of stain normalisation for NVIDIA GPUs: table -> stains -> light -> colour, one read and one write.

A program handles BLOCK pixels of one image. The table of 256 densities and the image's coefficients (see stain.hpp)
come from L1. Offsets are 64-bit; with PIXEL 1 a thread loads 16 bytes of each plane at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 2048
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _row(m, x, y, z, at: tl.constexpr, constant: tl.constexpr):
    return tl.load(m + at) * x + tl.load(m + at + 1) * y + tl.load(m + at + 2) * z + tl.load(m + constant)


@triton.jit
def _light(y, shift):
    """2^y - shift within 0..255."""
    return tl.minimum(tl.maximum(tl.exp2(tl.minimum(tl.maximum(y, -30.0), 9.0)) - shift, 0.0), 255.0)


@triton.jit
def _store(out, m, r, g, b, mask, c: tl.constexpr, BYTES: tl.constexpr, HALF_UP: tl.constexpr):
    made = _row(m, r, g, b, 24 + 3 * c, 33 + c)
    made = tl.minimum(tl.maximum(made, tl.load(m + 36 + c)), tl.load(m + 39 + c))
    if BYTES:
        made = (made + (0.5 if HALF_UP else 1e-4)).to(tl.int32)
    tl.store(out, made, mask=mask)


@triton.jit
def stain_apply(
    images, inside, table, coefficients, out,
    ib, ic, ip, ob, oc, op, pixels, blocks,
    LASSO: tl.constexpr, HAS_INSIDE: tl.constexpr, BYTES: tl.constexpr, HALF_UP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """images uint8 [B, 3, pixels] and out with their strides; inside uint8 [B, pixels]; grid [B * blocks]."""
    pid = tl.program_id(0)
    b = (pid // blocks).to(tl.int64)
    offsets = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < pixels
    m = coefficients + b * 44
    images += b * ib + offsets * ip
    r = tl.load(images, mask=mask, other=255)
    g = tl.load(images + ic, mask=mask, other=255)
    bl = tl.load(images + 2 * ic, mask=mask, other=255)
    x = tl.load(table + r.to(tl.int32))
    y = tl.load(table + g.to(tl.int32))
    z = tl.load(table + bl.to(tl.int32))
    first = _row(m, x, y, z, 0, 9)
    second = _row(m, x, y, z, 3, 10)
    third = _row(m, x, y, z, 6, 11)
    if LASSO:
        product = tl.load(m + 12)
        inverse = tl.load(m + 13)
        both0 = (first - product * second) * inverse
        both1 = (second - product * first) * inverse
        only0 = tl.maximum(first, 0.0)
        only1 = tl.maximum(second, 0.0)
        inner = (both0 >= 0) & (both1 >= 0)
        zeroth = only0 >= only1
        c0 = tl.where(inner, both0, tl.where(zeroth, only0, 0.0))
        c1 = tl.where(inner, both1, tl.where(zeroth, 0.0, only1))
        first = tl.load(m + 14) * c0 + tl.load(m + 15) * c1 + tl.load(m + 20)
        second = tl.load(m + 16) * c0 + tl.load(m + 17) * c1 + tl.load(m + 21)
        third = tl.load(m + 18) * c0 + tl.load(m + 19) * c1 + tl.load(m + 22)
    shift = tl.load(m + 23)
    keep = tl.load(m + 42) > 0
    red = tl.where(keep, r.to(tl.float32), _light(first, shift))
    green = tl.where(keep, g.to(tl.float32), _light(second, shift))
    blue = tl.where(keep, bl.to(tl.float32), _light(third, shift))
    if HAS_INSIDE:
        shown = tl.load(inside + b * pixels + offsets, mask=mask, other=0) != 0
        fill = tl.load(m + 43)
        red = tl.where(shown, red, fill)
        green = tl.where(shown, green, fill)
        blue = tl.where(shown, blue, fill)
    out += b * ob + offsets * op
    _store(out, m, red, green, blue, mask, 0, BYTES, HALF_UP)
    _store(out + oc, m, red, green, blue, mask, 1, BYTES, HALF_UP)
    _store(out + 2 * oc, m, red, green, blue, mask, 2, BYTES, HALF_UP)


def apply(
    images: torch.Tensor, inside: torch.Tensor | None, table: torch.Tensor, coefficients: torch.Tensor,
    out: torch.Tensor, lasso: bool, half_up: bool,
) -> None:  # fmt: skip
    """images and out [B, 3, H, W], rows one after the other at one stride; writes `out`."""
    batch, pixels = images.shape[0], images.shape[2] * images.shape[3]
    block = min(_BLOCK, max(128, triton.next_power_of_2(pixels)))
    blocks = triton.cdiv(pixels, block)
    with torch.cuda.device_of(images):
        stain_apply[(batch * blocks,)](
            images, inside, table, coefficients, out,
            images.stride(0), images.stride(1), images.stride(3), out.stride(0), out.stride(1), out.stride(3),
            pixels, blocks,
            LASSO=lasso, HAS_INSIDE=inside is not None, BYTES=out.dtype == torch.uint8, HALF_UP=half_up, BLOCK=block,
            **_LAUNCH,
        )  # fmt: skip
