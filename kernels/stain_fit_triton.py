"""The small problems between the passes of stain normalisation on a GPU: one launch each, and no wait for the host."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .stain_solver_triton import IMAGES, LAUNCH, grid, length
from .stain_solver_triton import solver as solver
from .stain_solver_triton import valid as valid

# As in reference/stain_conventions.py, which kernels do not import.
_HEMATOXYLIN = {"R": 0.65, "G": 0.70, "U": 0.29}
_SWEEPS = 8  # of Jacobi rotations: 5 reach rounding for 3 x 3


@triton.jit
def _rotation(app, aqq, apq):
    """Tangent, cosine and sine of the rotation that makes the entry (p, q) zero."""
    difference = (aqq - app) / 2
    sign = tl.where(difference < 0.0, -1.0, 1.0)
    t = sign * apq / (tl.abs(difference) + tl.sqrt(difference * difference + apq * apq) + 1e-300)
    c = 1.0 / tl.sqrt(1.0 + t * t)
    return t, c, c * t


@triton.jit
def _swap(swap, x, y):
    return tl.where(swap, y, x), tl.where(swap, x, y)


@triton.jit
def _sorted(a, b, xa, ya, za, xb, yb, zb):
    """Two eigenvalues in rising order, with their vectors."""
    swap = a > b
    a, b = _swap(swap, a, b)
    xa, xb = _swap(swap, xa, xb)
    ya, yb = _swap(swap, ya, yb)
    za, zb = _swap(swap, za, zb)
    return a, b, xa, ya, za, xb, yb, zb


@triton.jit
def principal_plane_kernel(
    moments,  # [B, 10] float64: number, sums r g b, sums of products rr rg rb gg gb bb
    planes,  # [B, 2, 3] float64: the second and the leading eigenvector
    images,
    CENTRED: tl.constexpr,
    SWEEPS: tl.constexpr,
    LANES: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = b < images
    m = moments + b * 10
    number = tl.maximum(tl.load(m, mask=there, other=1.0), 1.0)
    r = tl.load(m + 1, mask=there, other=0.0) / number
    g = tl.load(m + 2, mask=there, other=0.0) / number
    u = tl.load(m + 3, mask=there, other=0.0) / number
    a00 = tl.load(m + 4, mask=there, other=0.0) / number
    a01 = tl.load(m + 5, mask=there, other=0.0) / number
    a02 = tl.load(m + 6, mask=there, other=0.0) / number
    a11 = tl.load(m + 7, mask=there, other=0.0) / number
    a12 = tl.load(m + 8, mask=there, other=0.0) / number
    a22 = tl.load(m + 9, mask=there, other=0.0) / number
    if CENTRED:
        a00 -= r * r
        a01 -= r * g
        a02 -= r * u
        a11 -= g * g
        a12 -= g * u
        a22 -= u * u
    zero = r * 0.0
    x0, y0, z0 = zero + 1.0, zero, zero
    x1, y1, z1 = zero, zero + 1.0, zero
    x2, y2, z2 = zero, zero, zero + 1.0
    for _ in range(SWEEPS):
        t, c, s = _rotation(a00, a11, a01)
        a00, a11, a01 = a00 - t * a01, a11 + t * a01, zero
        a02, a12 = c * a02 - s * a12, s * a02 + c * a12
        x0, x1 = c * x0 - s * x1, s * x0 + c * x1
        y0, y1 = c * y0 - s * y1, s * y0 + c * y1
        z0, z1 = c * z0 - s * z1, s * z0 + c * z1
        t, c, s = _rotation(a00, a22, a02)
        a00, a22, a02 = a00 - t * a02, a22 + t * a02, zero
        a01, a12 = c * a01 - s * a12, s * a01 + c * a12
        x0, x2 = c * x0 - s * x2, s * x0 + c * x2
        y0, y2 = c * y0 - s * y2, s * y0 + c * y2
        z0, z2 = c * z0 - s * z2, s * z0 + c * z2
        t, c, s = _rotation(a11, a22, a12)
        a11, a22, a12 = a11 - t * a12, a22 + t * a12, zero
        a01, a02 = c * a01 - s * a02, s * a01 + c * a02
        x1, x2 = c * x1 - s * x2, s * x1 + c * x2
        y1, y2 = c * y1 - s * y2, s * y1 + c * y2
        z1, z2 = c * z1 - s * z2, s * z1 + c * z2
    a00, a11, x0, y0, z0, x1, y1, z1 = _sorted(a00, a11, x0, y0, z0, x1, y1, z1)
    a11, a22, x1, y1, z1, x2, y2, z2 = _sorted(a11, a22, x1, y1, z1, x2, y2, z2)
    a00, a11, x0, y0, z0, x1, y1, z1 = _sorted(a00, a11, x0, y0, z0, x1, y1, z1)
    towards = tl.where(x2 * r + y2 * g + z2 * u < 0.0, -1.0, 1.0)
    to_blue = tl.where(z1 < 0.0, -1.0, 1.0)
    out = planes + b * 6
    tl.store(out, to_blue * x1, mask=there)
    tl.store(out + 1, to_blue * y1, mask=there)
    tl.store(out + 2, to_blue * z1, mask=there)
    tl.store(out + 3, towards * x2, mask=there)
    tl.store(out + 4, towards * y2, mask=there)
    tl.store(out + 5, towards * z2, mask=there)


@triton.jit
def quantiles_kernel(
    counts,  # [rows, BINS] integers
    ranks,  # [Q] float64 in 0..1
    reach,  # float32 [rows]: the value after the last bin; None: values in bins
    found,  # [rows, Q] float64
    Q: tl.constexpr,
    NEAREST: tl.constexpr,
    BINS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, BINS)
    own = tl.load(counts + row * BINS + bins).to(tl.int64)
    below = tl.cumsum(own, 0)
    last = tl.maximum(tl.sum(own, 0) - 1, 0).to(tl.float64)
    for q in tl.static_range(Q):
        rank = tl.load(ranks + q) * last
        if NEAREST:  # halves to even
            low = tl.floor(rank)
            rest = rank - low
            odd = low - 2.0 * tl.floor(low / 2.0)
            rank = low + tl.where(rest > 0.5, 1.0, tl.where(rest == 0.5, odd, 0.0))
        at = tl.sum((below <= tl.floor(rank).to(tl.int64)).to(tl.int32), 0)
        at = tl.minimum(at, BINS - 1)
        here = tl.maximum(tl.sum(tl.where(bins == at, own, 0), 0), 1)
        under = tl.sum(tl.where(bins == at, below, 0), 0) - here
        value = at.to(tl.float64) + (rank + 0.5 - under.to(tl.float64)) / here.to(tl.float64)
        if reach is not None:
            value = value * tl.load(reach + row).to(tl.float64) / BINS
        tl.store(found + row * Q + q, value)


@triton.jit
def _on_diamond(at, BINS: tl.constexpr):
    """The unit vector at a position in the histogram of diamond angles."""
    angle = at * (4.0 / BINS) - 2.0
    x = tl.where(angle < 0.0, angle + 1.0, 1.0 - angle)
    y = tl.where(angle < 0.0, tl.abs(x) - 1.0, 1.0 - tl.abs(x))
    size = tl.maximum(tl.sqrt(x * x + y * y), 1e-12)
    return x / size, y / size


@triton.jit
def directions_kernel(
    places,  # [B, 2] float64: positions in the histogram of angles
    planes,  # [B, 2, 3] float64
    vectors,  # [B, 3, 2] float64
    images,
    R: tl.constexpr, G: tl.constexpr, U: tl.constexpr,  # hematoxylin
    NEAREST_FIRST: tl.constexpr,  # the first vector is the nearer to hematoxylin; else the one with more red
    UNIT: tl.constexpr,
    BINS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = b < images
    p = planes + b * 6
    x0 = tl.load(p, mask=there, other=1.0)
    y0 = tl.load(p + 1, mask=there, other=0.0)
    z0 = tl.load(p + 2, mask=there, other=0.0)
    x1 = tl.load(p + 3, mask=there, other=0.0)
    y1 = tl.load(p + 4, mask=there, other=1.0)
    z1 = tl.load(p + 5, mask=there, other=0.0)
    c, s = _on_diamond(tl.load(places + 2 * b, mask=there, other=0.0), BINS)
    ra, ga, ua = c * x0 + s * x1, c * y0 + s * y1, c * z0 + s * z1
    c, s = _on_diamond(tl.load(places + 2 * b + 1, mask=there, other=0.0), BINS)
    rb, gb, ub = c * x0 + s * x1, c * y0 + s * y1, c * z0 + s * z1
    la, lb = length(ra, ga, ua), length(rb, gb, ub)
    if NEAREST_FIRST:
        first = tl.abs(ra * R + ga * G + ua * U) / la > tl.abs(rb * R + gb * G + ub * U) / lb
    else:
        first = ra > rb
    if UNIT:
        ra, ga, ua = ra / la, ga / la, ua / la
        rb, gb, ub = rb / lb, gb / lb, ub / lb
    v = vectors + b * 6
    tl.store(v, tl.where(first, ra, rb), mask=there)
    tl.store(v + 1, tl.where(first, rb, ra), mask=there)
    tl.store(v + 2, tl.where(first, ga, gb), mask=there)
    tl.store(v + 3, tl.where(first, gb, ga), mask=there)
    tl.store(v + 4, tl.where(first, ua, ub), mask=there)
    tl.store(v + 5, tl.where(first, ub, ua), mask=there)


def principal_plane(moments: Tensor, centred: bool) -> Tensor:
    """See `small_problems.principal_plane`."""
    planes = torch.empty(len(moments), 2, 3, dtype=torch.float64, device=moments.device)
    with torch.cuda.device_of(moments):
        principal_plane_kernel[grid(planes)](
            moments.contiguous(), planes, len(planes), CENTRED=centred, SWEEPS=_SWEEPS, LANES=IMAGES, **LAUNCH
        )
    return planes


def quantiles(counts: Tensor, ranks: Tensor, nearest: bool, reach: Tensor | None = None) -> Tensor:
    """See `small_problems.quantiles`; the number of bins is a power of two."""
    found = torch.empty(*counts.shape[:-1], len(ranks), dtype=torch.float64, device=counts.device)
    rows, bins = found.numel() // len(ranks), counts.shape[-1]
    with torch.cuda.device_of(counts):
        quantiles_kernel[(rows,)](
            counts.contiguous(), ranks, reach, found,
            Q=len(ranks), NEAREST=nearest, BINS=bins, **LAUNCH | {"num_warps": 16},
        )  # fmt: skip
    return found


def directions(places: Tensor, planes: Tensor, convention: Any, bins: int) -> Tensor:
    """See `small_problems.directions`."""
    vectors = torch.empty(len(places), 3, 2, dtype=torch.float64, device=places.device)
    with torch.cuda.device_of(places):
        directions_kernel[grid(places)](
            places.contiguous(), planes, vectors, len(places),
            **_HEMATOXYLIN,
            NEAREST_FIRST=convention.solver == "complement", UNIT=convention.unit, BINS=bins, LANES=IMAGES, **LAUNCH,
        )  # fmt: skip
    return vectors
