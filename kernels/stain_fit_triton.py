"""The small problems between the passes of stain normalisation on a GPU: one launch each, and no wait for the host."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# As in reference/stain_conventions.py, which kernels do not import.
LASSO_PENALTY = 0.01
_HEMATOXYLIN = {"R": 0.65, "G": 0.70, "U": 0.29}
IMAGES = 32  # per program; each is one lane
_SWEEPS = 8  # of Jacobi rotations: 5 reach rounding for 3 x 3
LAUNCH = {"num_warps": 1, "enable_fp_fusion": True}


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
    length = tl.maximum(tl.sqrt(x * x + y * y), 1e-12)
    return x / length, y / length


@triton.jit
def _length(x, y, z):
    return tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-12)


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
    la, lb = _length(ra, ga, ua), _length(rb, gb, ub)
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


@triton.jit
def _vectors(v, there):
    """Two stains, with two others where there is no image."""
    a0 = tl.load(v, mask=there, other=1.0)
    b0 = tl.load(v + 1, mask=there, other=0.0)
    a1 = tl.load(v + 2, mask=there, other=0.0)
    b1 = tl.load(v + 3, mask=there, other=1.0)
    a2 = tl.load(v + 4, mask=there, other=0.0)
    b2 = tl.load(v + 5, mask=there, other=0.0)
    return a0, a1, a2, b0, b1, b2


@triton.jit
def _inverse(a0, a1, a2, b0, b1, b2):
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
    a0, a1, a2, b0, b1, b2 = _vectors(vectors + b * 6, there)
    if lasso is not None:
        product = a0 * b0 + a1 * b1 + a2 * b2
        tl.store(lasso + 2 * b, product.to(tl.float32), mask=there)
        inverse = 1.0 / tl.maximum(1.0 - product * product, 1e-9)
        tl.store(lasso + 2 * b + 1, inverse.to(tl.float32), mask=there)
        rest = a0 * 0.0 - penalty
    else:
        a0, a1, a2, b0, b1, b2 = _inverse(a0, a1, a2, b0, b1, b2)
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
    a0, a1, a2, b0, b1, b2 = _vectors(vectors + b * 6, there)
    la, lb = _length(a0, a1, a2), _length(b0, b1, b2)
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


def principal_plane(moments: Tensor, centred: bool) -> Tensor:
    """See `small_problems.principal_plane`."""
    planes = torch.empty(len(moments), 2, 3, dtype=torch.float64, device=moments.device)
    with torch.cuda.device_of(moments):
        principal_plane_kernel[_grid(planes)](
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
        directions_kernel[_grid(places)](
            places.contiguous(), planes, vectors, len(places),
            **_HEMATOXYLIN,
            NEAREST_FIRST=convention.solver == "complement", UNIT=convention.unit, BINS=bins, LANES=IMAGES, **LAUNCH,
        )  # fmt: skip
    return vectors


def solver(
    vectors: Tensor, densities: Tensor, convention: Any, bins: int
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """See `small_problems.solver`."""
    batch, device = len(vectors), vectors.device
    matrix = torch.empty(batch, 2, 4, device=device)
    lasso = torch.empty(batch, 2, device=device) if convention.solver == "lasso" else None
    reach, scale = (torch.empty(batch, 2, device=device) for _ in range(2))
    with torch.cuda.device_of(vectors):
        solver_kernel[_grid(vectors)](
            vectors.contiguous(), densities, matrix, lasso, reach, scale, batch, LASSO_PENALTY,
            BINS=bins, LANES=IMAGES, **LAUNCH,
        )  # fmt: skip
    return matrix, lasso, reach, scale


def valid(moments: Tensor | None, vectors: Tensor, maxima: Tensor, limits: tuple[float, float, float]) -> Tensor:
    """See `small_problems.valid`."""
    found = torch.empty(len(vectors), dtype=torch.bool, device=vectors.device)
    with torch.cuda.device_of(vectors):
        valid_kernel[_grid(vectors)](
            moments, vectors.contiguous(), maxima.contiguous(), found, len(vectors), *limits,
            SPREAD=moments is not None, LANES=IMAGES, **LAUNCH,
        )  # fmt: skip
    return found


def _grid(images: Tensor) -> tuple[int]:
    return (triton.cdiv(len(images), IMAGES),)
