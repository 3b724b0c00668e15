"""Unmixing of each image's two stains, and whether its estimate is usable, in one launch each; with what the other
small problems of stains share."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LASSO_PENALTY = 0.01
IMAGES = 32  # per program; each is one lane
LAUNCH = {"num_warps": 1, "enable_fp_fusion": True}


@triton.jit
def length(x, y, z):
    return tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-12)


@triton.jit
def read_vectors(v, there):
    """Two stains, with two others where there is no image."""
    a0 = tl.load(v, mask=there, other=1.0)
    b0 = tl.load(v + 1, mask=there, other=0.0)
    a1 = tl.load(v + 2, mask=there, other=0.0)
    b1 = tl.load(v + 3, mask=there, other=1.0)
    a2 = tl.load(v + 4, mask=there, other=0.0)
    b2 = tl.load(v + 5, mask=there, other=0.0)
    return a0, a1, a2, b0, b1, b2


@triton.jit
def pseudo_inverse(a0, a1, a2, b0, b1, b2):
    """The least-squares inverse [2, 3] of two stains."""
    a, b, c = a0 * a0 + a1 * a1 + a2 * a2, a0 * b0 + a1 * b1 + a2 * b2, b0 * b0 + b1 * b1 + b2 * b2
    d = tl.maximum(a * c - b * b, 1e-9)
    x0, x1, x2 = (c * a0 - b * b0) / d, (c * a1 - b * b1) / d, (c * a2 - b * b2) / d
    y0, y1, y2 = (a * b0 - b * a0) / d, (a * b1 - b * a1) / d, (a * b2 - b * a2) / d
    return x0, x1, x2, y0, y1, y2


@triton.jit
def _farthest(x, y, z, low, high):
    """The largest concentration of a density between `low` and `high` in each channel; float32."""
    return tl.maximum(x * low, x * high) + tl.maximum(y * low, y * high) + tl.maximum(z * low, z * high)


@triton.jit
def _store_reach(reach, scale, at, value, there, BINS: tl.constexpr):
    value = tl.minimum(tl.maximum(tl.where(value != value, 16.0, value), 1e-3), 16.0)
    tl.store(reach + at, value, mask=there)
    tl.store(scale + at, BINS / value, mask=there)


@triton.jit
def solver_kernel(
    vectors,  # [B, 3, 2] float64
    table,  # [256] float32: densities of the grey levels
    matrix,  # [B, 2, 4] float32
    lasso,  # [B, 2] float32; None: least squares
    reach, scale,  # [B, 2] float32
    images,
    penalty,
    BINS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = b < images
    a0, a1, a2, b0, b1, b2 = read_vectors(vectors + b * 6, there)
    if lasso is not None:
        product = a0 * b0 + a1 * b1 + a2 * b2
        tl.store(lasso + 2 * b, product.to(tl.float32), mask=there)
        inverse = 1.0 / tl.maximum(1.0 - product * product, 1e-9)
        tl.store(lasso + 2 * b + 1, inverse.to(tl.float32), mask=there)
        rest = a0 * 0.0 - penalty
    else:
        a0, a1, a2, b0, b1, b2 = pseudo_inverse(a0, a1, a2, b0, b1, b2)
        rest = a0 * 0.0
    x0, x1, x2 = a0.to(tl.float32), a1.to(tl.float32), a2.to(tl.float32)
    y0, y1, y2 = b0.to(tl.float32), b1.to(tl.float32), b2.to(tl.float32)
    m = matrix + b * 8
    tl.store(m, x0, mask=there)
    tl.store(m + 1, x1, mask=there)
    tl.store(m + 2, x2, mask=there)
    tl.store(m + 3, rest.to(tl.float32), mask=there)
    tl.store(m + 4, y0, mask=there)
    tl.store(m + 5, y1, mask=there)
    tl.store(m + 6, y2, mask=there)
    tl.store(m + 7, rest.to(tl.float32), mask=there)
    if lasso is not None:
        _store_reach(reach, scale, 2 * b, x0 * 0.0 + 10.0, there, BINS)
        _store_reach(reach, scale, 2 * b + 1, x0 * 0.0 + 10.0, there, BINS)
    else:
        low, high = tl.load(table + 255), tl.load(table)
        _store_reach(reach, scale, 2 * b, _farthest(x0, x1, x2, low, high), there, BINS)
        _store_reach(reach, scale, 2 * b + 1, _farthest(y0, y1, y2, low, high), there, BINS)


@triton.jit
def valid_kernel(
    moments,  # [B, 10] float64
    vectors,  # [B, 3, 2] float64
    maxima,  # [B, 2] float64
    valid,  # [B] bool
    images, least_spread, least_concentration, least_sine_square,
    SPREAD: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Whether tissue and stains allow an estimate; the number of tissue pixels is the caller's."""
    b = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = b < images
    a0, a1, a2, b0, b1, b2 = read_vectors(vectors + b * 6, there)
    la, lb = length(a0, a1, a2), length(b0, b1, b2)
    a0, a1, a2, b0, b1, b2 = a0 / la, a1 / la, a2 / la, b0 / lb, b1 / lb, b2 / lb
    own = (a0 * a0 + a1 * a1 + a2 * a2) * (b0 * b0 + b1 * b1 + b2 * b2)
    product = a0 * b0 + a1 * b1 + a2 * b2
    good = own - product * product > least_sine_square  # not true for NaN, which vectors that are not finite give
    good = good & (tl.load(maxima + 2 * b, mask=there, other=0.0) > least_concentration)
    good = good & (tl.load(maxima + 2 * b + 1, mask=there, other=0.0) > least_concentration)
    if SPREAD:
        m = moments + b * 10
        number = tl.maximum(tl.load(m, mask=there, other=1.0), 1.0)
        r = tl.load(m + 1, mask=there, other=0.0) / number
        g = tl.load(m + 2, mask=there, other=0.0) / number
        u = tl.load(m + 3, mask=there, other=0.0) / number
        rr = tl.load(m + 4, mask=there, other=0.0) / number - r * r
        gg = tl.load(m + 7, mask=there, other=0.0) / number - g * g
        uu = tl.load(m + 9, mask=there, other=0.0) / number - u * u
        good = good & (rr + gg + uu > least_spread)
    tl.store(valid + b, good, mask=there)


def solver(
    vectors: Tensor, densities: Tensor, convention: Any, bins: int
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """See `small_problems.solver`."""
    batch, device = len(vectors), vectors.device
    matrix = torch.empty(batch, 2, 4, device=device)
    lasso = torch.empty(batch, 2, device=device) if convention.solver == "lasso" else None
    reach, scale = (torch.empty(batch, 2, device=device) for _ in range(2))
    with torch.cuda.device_of(vectors):
        solver_kernel[grid(vectors)](
            vectors.contiguous(), densities, matrix, lasso, reach, scale, batch, LASSO_PENALTY,
            BINS=bins, LANES=IMAGES, **LAUNCH,
        )  # fmt: skip
    return matrix, lasso, reach, scale


def valid(moments: Tensor | None, vectors: Tensor, maxima: Tensor, limits: tuple[float, float, float]) -> Tensor:
    """See `small_problems.valid`."""
    found = torch.empty(len(vectors), dtype=torch.bool, device=vectors.device)
    with torch.cuda.device_of(vectors):
        valid_kernel[grid(vectors)](
            moments, vectors.contiguous(), maxima.contiguous(), found, len(vectors), *limits,
            SPREAD=moments is not None, LANES=IMAGES, **LAUNCH,
        )  # fmt: skip
    return found


def grid(images: Tensor) -> tuple[int]:
    return (triton.cdiv(len(images), IMAGES),)
