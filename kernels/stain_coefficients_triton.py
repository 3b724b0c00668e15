"""The coefficients of each image's apply pass (csrc/stain/stain.hpp has their layout), in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .stain_solver_triton import IMAGES, LASSO_PENALTY, LAUNCH, length, pseudo_inverse, read_vectors

_SOLVERS = {"least squares": 0, "lasso": 1, "complement": 2}


@triton.jit
def _put(out, at: tl.constexpr, value, there):
    tl.store(out + at, tl.where(tl.abs(value) < float("inf"), value, 0.0).to(tl.float32), mask=there)


@triton.jit
def _across(a0, a1, a2, b0, b1, b2):
    """The unit vector across two stains."""
    x, y, z = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
    size = length(x, y, z)
    return x / size, y / size, z / size


@triton.jit
def stain_coefficients(
    vectors, maxima,  # [B, 3, 2] and [B, 2] float64 with a stride, 0 or dense
    target_vectors, target_maxima,  # likewise
    constants,  # [9] float64: scale [3], shift [3], log2 of the light, what is subtracted from it, -1 / ln 2
    colour,  # float32 [B, 3, 4] or None
    alpha, beta,  # float64 [B, 2] or None
    as_is,  # bool [B] or None
    out,  # [B, 44] float32
    images, by_vectors, by_maxima, by_target_vectors, by_target_maxima, penalty, outside,
    SOLVER: tl.constexpr, SCALED: tl.constexpr, ONLY: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = b < images
    out += b * 44
    a0, a1, a2, b0, b1, b2 = read_vectors(vectors + b * by_vectors, there)
    p0, p1, p2, q0, q1, q2 = read_vectors(target_vectors + b * by_target_vectors, there)
    zero = (b * 0).to(tl.float64)
    f, g = zero + 1.0, zero + 1.0
    if SCALED:
        f = tl.load(target_maxima + b * by_target_maxima, mask=there, other=1.0)
        g = tl.load(target_maxima + b * by_target_maxima + 1, mask=there, other=1.0)
        f /= tl.load(maxima + b * by_maxima, mask=there, other=1.0)
        g /= tl.load(maxima + b * by_maxima + 1, mask=there, other=1.0)
    if alpha is not None:
        f *= tl.load(alpha + 2 * b, mask=there, other=1.0)
        g *= tl.load(alpha + 2 * b + 1, mask=there, other=1.0)
    if ONLY == 0:
        g = g * 0.0
    if ONLY == 1:
        f = f * 0.0
    per_octave = tl.load(constants + 8)
    r0, r1, r2 = _across(p0, p1, p2, q0, q1, q2)
    # From concentrations to base-2 logarithms of light.
    p0, p1, p2 = per_octave * p0, per_octave * p1, per_octave * p2
    q0, q1, q2 = per_octave * q0, per_octave * q1, per_octave * q2
    light = tl.load(constants + 6)
    s0, s1, s2 = light + zero, light + zero, light + zero
    if beta is not None:
        x = tl.load(beta + 2 * b, mask=there, other=0.0)
        y = tl.load(beta + 2 * b + 1, mask=there, other=0.0)
        s0, s1, s2 = s0 + p0 * x + q0 * y, s1 + p1 * x + q1 * y, s2 + p2 * x + q2 * y
    p0, p1, p2, q0, q1, q2 = p0 * f, p1 * f, p2 * f, q0 * g, q1 * g, q2 * g
    if SOLVER == 1:
        _put(out, 0, a0, there)
        _put(out, 1, a1, there)
        _put(out, 2, a2, there)
        _put(out, 3, b0, there)
        _put(out, 4, b1, there)
        _put(out, 5, b2, there)
        for at in tl.static_range(3):
            _put(out, 6 + at, zero, there)
        _put(out, 9, zero - penalty, there)
        _put(out, 10, zero - penalty, there)
        _put(out, 11, zero, there)
        product = a0 * b0 + a1 * b1 + a2 * b2
        _put(out, 12, product, there)
        _put(out, 13, 1.0 / tl.maximum(1.0 - product * product, 1e-9), there)
        _put(out, 14, p0, there)
        _put(out, 15, q0, there)
        _put(out, 16, p1, there)
        _put(out, 17, q1, there)
        _put(out, 18, p2, there)
        _put(out, 19, q2, there)
        _put(out, 20, s0, there)
        _put(out, 21, s1, there)
        _put(out, 22, s2, there)
    else:
        z0, z1, z2 = zero, zero, zero
        if SOLVER == 2:
            c0, c1, c2 = _across(a0, a1, a2, b0, b1, b2)
            x0, x1, x2 = b1 * c2 - b2 * c1, b2 * c0 - b0 * c2, b0 * c1 - b1 * c0
            determinant = a0 * x0 + a1 * x1 + a2 * x2
            x0, x1, x2 = x0 / determinant, x1 / determinant, x2 / determinant
            y0, y1, y2 = c1 * a2 - c2 * a1, c2 * a0 - c0 * a2, c0 * a1 - c1 * a0
            y0, y1, y2 = y0 / determinant, y1 / determinant, y2 / determinant
            z0, z1, z2 = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
            z0, z1, z2 = z0 / determinant, z1 / determinant, z2 / determinant
            if ONLY >= 0:
                r0, r1, r2 = zero, zero, zero
        else:
            x0, x1, x2, y0, y1, y2 = pseudo_inverse(a0, a1, a2, b0, b1, b2)
        r0, r1, r2 = per_octave * r0, per_octave * r1, per_octave * r2
        _put(out, 0, p0 * x0 + q0 * y0 + r0 * z0, there)
        _put(out, 1, p0 * x1 + q0 * y1 + r0 * z1, there)
        _put(out, 2, p0 * x2 + q0 * y2 + r0 * z2, there)
        _put(out, 3, p1 * x0 + q1 * y0 + r1 * z0, there)
        _put(out, 4, p1 * x1 + q1 * y1 + r1 * z1, there)
        _put(out, 5, p1 * x2 + q1 * y2 + r1 * z2, there)
        _put(out, 6, p2 * x0 + q2 * y0 + r2 * z0, there)
        _put(out, 7, p2 * x1 + q2 * y1 + r2 * z1, there)
        _put(out, 8, p2 * x2 + q2 * y2 + r2 * z2, there)
        _put(out, 9, s0, there)
        _put(out, 10, s1, there)
        _put(out, 11, s2, there)
        for at in tl.static_range(11):
            _put(out, 12 + at, zero, there)
    _put(out, 23, zero + tl.load(constants + 7), there)
    for c in tl.static_range(3):
        scale, shift = tl.load(constants + c), tl.load(constants + 3 + c)
        for k in tl.static_range(3):
            if colour is not None:
                row = tl.load(colour + b * 12 + 4 * c + k, mask=there, other=0.0).to(tl.float64)
                _put(out, 24 + 3 * c + k, row * scale, there)
            else:
                _put(out, 24 + 3 * c + k, zero + (scale if k == c else 0.0), there)
        if colour is not None:
            row = tl.load(colour + b * 12 + 4 * c + 3, mask=there, other=0.0).to(tl.float64)
            _put(out, 33 + c, row * scale + shift, there)
        else:
            _put(out, 33 + c, zero + shift, there)
        _put(out, 36 + c, zero + shift, there)
        _put(out, 39 + c, zero + (255.0 * scale + shift), there)
    if as_is is not None:
        _put(out, 42, tl.load(as_is + b, mask=there, other=0).to(tl.float64), there)
    else:
        _put(out, 42, zero, there)
    _put(out, 43, zero + outside, there)


def coefficients(
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    convention: Any,
    constants: Tensor,
    colour: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    as_is: Tensor | None,
    only: int | None,
    outside: float,
) -> Tensor:
    """See `small_problems.coefficients`; the vectors and maxima of `source` and `target` are [B, ...] or [1, ...]."""
    batch, device = len(source[0]), source[0].device
    out = torch.empty(batch, 44, device=device)
    parts = [part if part[0].is_contiguous() else part.contiguous() for part in (*source, *target)]
    strides = [0 if len(part) == 1 else part.stride(0) for part in parts]
    dense = [None if part is None else part.contiguous() for part in (colour, alpha, beta, as_is)]
    with torch.cuda.device_of(out):
        stain_coefficients[(triton.cdiv(batch, IMAGES),)](
            *parts, constants, *dense, out, batch, *strides, LASSO_PENALTY, outside,
            SOLVER=_SOLVERS[convention.solver], SCALED=convention.scaled, ONLY=-1 if only is None else only,
            LANES=IMAGES, **LAUNCH,
        )  # fmt: skip
    return out
