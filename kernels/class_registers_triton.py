"""Helpers of the softmax losses for few classes: a tuple holds one tensor per class. Everything that belongs to a pixel
is then computed once, and sums over classes need no exchange between threads.

Tensors are [LANES, VEC]: a lane is a thread and has VEC neighbouring pixels, so that loads are of up to 16 bytes. If
classes are neighbours in memory (channels_last), a lane has one pixel: a tile of all classes is read in the order of
memory and its classes are handed on to the lanes through shared memory (LAST). LEVELS and VEC_LEVELS are the logarithms
to base 2 of C and VEC, rounded up.
"""

# ruff: noqa: RUF005  kernels cannot unpack a tuple into another

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .planes_triton import BY_PIXEL, LAUNCH, as_planes, exp_fast

_NO_CLASS = tl.constexpr(127)  # above the classes of every kernel that uses it, and in every integer dtype
_MOST = 32  # classes
_LANES = 32 * LAUNCH["num_warps"]
_REGISTERS = 96  # of a thread, for what it keeps for each class and pixel; sums of each class come on top


@triton.jit
def _join_halves(parts, HALF: tl.constexpr):
    pairs = ()
    for i in tl.static_range(HALF):
        pairs = pairs + (tl.join(parts[i], parts[i + HALF]),)
    return pairs


@triton.jit
def stack(parts, C: tl.constexpr, LEVELS: tl.constexpr):
    """C tensors [LANES] as [LANES, 2^LEVELS]; the first again in the columns from C on."""
    for _ in tl.static_range(C, 1 << LEVELS):
        parts = parts + (parts[0],)
    for level in tl.static_range(LEVELS):
        parts = _join_halves(parts, 1 << (LEVELS - level - 1))
    return tl.reshape(parts[0], [parts[0].shape[0], 1 << LEVELS])


@triton.jit
def _split_columns(parts, HALF: tl.constexpr):
    even = ()
    odd = ()
    for i in tl.static_range(len(parts)):
        first, second = tl.split(tl.reshape(parts[i], [parts[i].shape[0], HALF, 2]))
        even = even + (first,)
        odd = odd + (second,)
    return even + odd


@triton.jit
def unstack(tile, LEVELS: tl.constexpr):
    """The columns of [LANES, 2^LEVELS], each [LANES, 1]."""
    parts = (tile,)
    for level in tl.static_range(LEVELS):
        parts = _split_columns(parts, 1 << (LEVELS - level - 1))
    return parts


@triton.jit
def read_labels(
    t, ts, m, ms, offsets, visible, ignore_index,
    C: tl.constexpr, SOFT: tl.constexpr, MASK: tl.constexpr, IGNORES: tl.constexpr,
):  # fmt: skip
    """Class numbers, _NO_CLASS for invalid pixels and SOFT targets, and which pixels are valid; t and m point to a
    sample."""
    inside = offsets < visible
    valid = inside
    if MASK == BY_PIXEL:
        valid = valid & (tl.load(m + offsets * ms, mask=inside, other=0) != 0)
    if SOFT:
        index = tl.where(inside, _NO_CLASS, _NO_CLASS)
    else:
        label = tl.load(t + offsets * ts, mask=inside, other=_NO_CLASS)
        if label.dtype == tl.int64:
            index = tl.where((label >= 0) & (label < C), label, -1).to(tl.int32)
        else:
            label = label.to(tl.int32)  # in uint8 a comparison would wrap -100 to 156
            index = label
        if IGNORES:
            valid = valid & (label != ignore_index)
        index = tl.where(valid, index, _NO_CLASS)
    return index, valid


@triton.jit
def read_classes(
    x, xc, xs, offsets, visible, C: tl.constexpr, LAST: tl.constexpr, LEVELS: tl.constexpr, EVICTION: tl.constexpr
):
    """C tensors [LANES, VEC], 0 beyond the visible pixels; x points to a sample."""
    inside = offsets < visible
    values = ()
    if LAST:
        c = tl.arange(0, 1 << LEVELS)[None, :]
        columns = unstack(
            tl.load(x + offsets * C + c, mask=inside & (c < C), other=0.0, eviction_policy=EVICTION), LEVELS
        )
        for i in tl.static_range(C):
            values = values + (columns[i],)
    else:
        for i in tl.static_range(C):
            at = x + i * xc + offsets * xs
            values = values + (tl.load(at, mask=inside, other=0.0, eviction_policy=EVICTION),)
    return values


@triton.jit
def as_logits(values, valid, C: tl.constexpr, CLEAN: tl.constexpr):
    """float32, 0 for invalid pixels; CLEAN: `read_classes` has done that."""
    logits = ()
    for c in tl.static_range(C):
        value = values[c].to(tl.float32)
        logits = logits + (value if CLEAN else tl.where(valid, value, 0.0),)
    return logits


@triton.jit
def write_classes(
    out, oc, os, offsets, pixels, values, valid,
    C: tl.constexpr, LAST: tl.constexpr, LEVELS: tl.constexpr, CLEAN: tl.constexpr,
):  # fmt: skip
    """C tensors [LANES, VEC], 0 for invalid pixels; out points to a sample. CLEAN: all pixels are valid."""
    inside = offsets < pixels
    results = ()
    for c in tl.static_range(C):
        results = results + (values[c] if CLEAN else tl.where(valid, values[c], 0.0),)
    if LAST:
        c = tl.arange(0, 1 << LEVELS)[None, :]
        tl.store(out + offsets * C + c, stack(results, C, LEVELS), mask=inside & (c < C))
    else:
        for c in tl.static_range(C):
            tl.store(out + c * oc + offsets * os, results[c], mask=inside)


@triton.jit
def largest(logits, C: tl.constexpr):
    top = logits[0]
    for c in tl.static_range(1, C):
        top = tl.maximum(top, logits[c])
    return top


@triton.jit
def without_own(logits, index, C: tl.constexpr):
    """The largest logit, that of the pixel's class (-infinity if it has none), and all with -infinity for that."""
    own = tl.where(index == 0, logits[0], float("-inf"))
    others = (tl.where(index == 0, float("-inf"), logits[0]),)
    for c in tl.static_range(1, C):
        own = tl.where(index == c, logits[c], own)
        others = others + (tl.where(index == c, float("-inf"), logits[c]),)
    return largest(logits, C), own, others


@triton.jit
def exponentials(logits, top, C: tl.constexpr):
    """exp(logit - top) of each class, and their sum."""
    e = (exp_fast(logits[0] - top),)
    total = e[0]
    for c in tl.static_range(1, C):
        e = e + (exp_fast(logits[c] - top),)
        total += e[c]
    return e, total


@triton.jit
def again(index, p):
    """The same class numbers, for p >= 0 or NaN, in a way that compilers do not see: they would keep one bit per class
    and pixel of an earlier comparison, which costs three times as much as to compare again."""
    return tl.where(p < 0.0, -1, index)


@triton.jit
def chosen_class(logits, C: tl.constexpr):
    """The first class of the largest logit (NaN is never the largest), and whether any logit is not finite."""
    best = tl.where(logits[0] == logits[0], logits[0], float("-inf"))
    choice = tl.zeros(best.shape, tl.int32)
    non_finite = (tl.abs(logits[0]) < float("inf")) == 0
    for c in tl.static_range(1, C):
        larger = logits[c] > best
        choice = tl.where(larger, c, choice)
        best = tl.where(larger, logits[c], best)
        non_finite = non_finite | ((tl.abs(logits[c]) < float("inf")) == 0)
    return choice, non_finite


@triton.jit
def log1p_positive(z):
    """log(1 + z) for z >= 0, NaN for NaN: 1 + z = 2^k (1 + r) with r in -1/4 to 1/2, then a polynomial in r."""
    power = ((z + 1.0).to(tl.int32, bitcast=True) - 0x3F400000) & -0x800000  # k, at the place of an exponent
    scale = (0x3F800000 - power).to(tl.float32, bitcast=True)
    r = z * scale + (scale - 1.0)
    q = 5.41307479e-2 * r - 1.20672271e-1
    q = q * r + 1.49839163e-1
    q = q * r - 1.68228298e-1
    q = q * r + 1.99770778e-1
    q = q * r - 2.49934420e-1
    q = q * r + 3.33335489e-1
    q = q * r - 5.00000596e-1
    return power.to(tl.float32) * (8.262958e-8) + ((q * r) * r + r)


@triton.jit
def above_one(own, other):
    """own + other - 1. The largest exponential is 1: if it belongs to the pixel's class, own - 1 is 0, so that the
    loss of a sure network keeps its digits."""
    return other + (own - 1.0)


@triton.jit
def log1p_product(z, VEC: tl.constexpr, LEVELS: tl.constexpr):
    """The sum over the pixels of a lane of log1p(z), [LANES], from one logarithm: of the product of all 1 + z."""
    parts = unstack(z, LEVELS)
    product = parts[0]
    for i in tl.static_range(1, VEC):
        product = product * parts[i] + (product + parts[i])
    return tl.sum(log1p_positive(product), 1)


def few_classes(classes: int) -> bool:
    """Whether the registers of a thread hold all classes of a pixel."""
    return classes <= _MOST


def lanes(input: torch.Tensor, pixels: int, per_class: int, most: int = 8) -> dict[str, int]:
    """The shape of a program's tensors; per_class: numbers that a lane keeps for each class and pixel.

    A lane has as many pixels as a load of 16 bytes, or fewer so that all fit into its registers; at most `most`.
    """
    C, strides = input.shape[1], as_planes(input)[1]
    last = channels_last(strides, C)
    most = min(most, 16 // input.element_size(), triton.next_power_of_2(pixels), max(1, _REGISTERS // (C * per_class)))
    vec = 1 if last else 1 << (most.bit_length() - 1)
    levels = {"LEVELS": (C - 1).bit_length(), "VEC_LEVELS": vec.bit_length() - 1}
    return {"C": C, "LAST": last, "LANES": _LANES, "VEC": vec, **levels}


def channels_last(strides: tuple[int, int, int], classes: int) -> bool:
    """Whether the classes of a pixel are neighbours, and so are pixels."""
    return strides[1:] == (1, classes)


def may_ignore(target: torch.Tensor, ignore_index: int) -> bool:
    """Whether class numbers of the target's dtype may be `ignore_index`."""
    if target.dtype.is_floating_point or target.dtype == torch.bool:
        return target.dtype == torch.bool and ignore_index in (0, 1)
    limits = torch.iinfo(target.dtype)
    return limits.min <= ignore_index <= limits.max
