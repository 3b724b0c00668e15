"""A full-resolution mask down-sampled to the stride of a head on the fly: sampled, averaged or maximised over windows,
as in csrc/losses/windows.hpp."""

from __future__ import annotations

import triton
import triton.language as tl

from .planes_triton import load_plane, unit

_NEGATIVE_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def _window(
    t, td, th, tw, m, md, mh, mw, offsets, inside, height, width,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, HOW: tl.constexpr, HAS_MASK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The down-sampled target of the head's pixels at `offsets` as float32, and which pixels are valid."""
    pixel = offsets if WIDE else offsets.to(tl.int32)  # 64-bit divisions are slow
    line = pixel // width
    x = (pixel % width * SW).to(tl.int64)
    y = (line % height * SH).to(tl.int64)
    z = (line // height * SD).to(tl.int64)
    t += z * td + y * th + x * tw
    if HAS_MASK:
        m += z * md + y * mh + x * mw
    if HOW == 0:
        target = unit(tl.load(t, mask=inside, other=0).to(tl.float32))
        valid = inside
        if HAS_MASK:
            valid = inside & (tl.load(m, mask=inside, other=0) != 0)
        return tl.where(valid, target, 0.0), valid
    total = tl.zeros(offsets.shape, tl.float32)
    number = tl.zeros(offsets.shape, tl.float32)
    for row in range(SD * SH):
        place_t = (row // SH) * td + (row % SH) * th
        place_m = (row // SH) * md + (row % SH) * mh
        for column in range(SW):
            value = unit(tl.load(t + place_t + column * tw, mask=inside, other=0).to(tl.float32))
            if HAS_MASK:
                counts = tl.load(m + place_m + column * mw, mask=inside, other=0) != 0
                value = tl.where(counts, value, 0.0)
                number += counts.to(tl.float32)
            if HOW == 2:
                total = tl.maximum(total, value, propagate_nan=tl.PropagateNan.ALL)
            else:
                total += value
    valid = inside
    if HAS_MASK:
        valid = number > 0
    else:
        number += SD * SH * SW
    if HOW == 1:
        # A quotient may round to less than 1, and then a correct infinite logit would not cost 0.
        total = tl.where(total == number, 1.0, total / number)
    return tl.where(valid, total, 0.0), valid


@triton.jit
def load_head(
    head, t, tb, tc, td, th, tw, ts, m, mb, mc, md, mh, mw, ms, b, c, offsets, pixels,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, FLAT: tl.constexpr, HOW: tl.constexpr,
    HAS_MASK: tl.constexpr, WIDE: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """Logits and target as float32, and which elements are valid. Invalid elements read as (-inf, 0), which adds 0 to
    every sum."""
    if FLAT and SD * SH * SW == 1:
        logits, target, valid = load_plane(
            head[0], head[1], head[2], head[3], t, tb, tc, ts, m, mb, mc, ms, b, c, offsets, pixels, HAS_MASK, EVICTION
        )
    else:
        inside = offsets < pixels
        at = head[0] + b * head[1] + c * head[2] + offsets * head[3]
        logits = tl.load(at, mask=inside, other=_NEGATIVE_INFINITY, eviction_policy=EVICTION).to(tl.float32)
        t += b * tb + c * tc
        if HAS_MASK:
            m += b * mb + c * mc
        target, valid = _window(
            t, td, th, tw, m, md, mh, mw, offsets, inside, head[4], head[5], SD, SH, SW, HOW, HAS_MASK, WIDE
        )
        if HAS_MASK:
            logits = tl.where(valid, logits, _NEGATIVE_INFINITY)
    return logits, target, valid
