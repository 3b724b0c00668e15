"""The sums of softmax losses for NVIDIA GPUs.

With up to _MOST classes a program keeps the sums of all classes in registers (class_registers_triton.py) and reads the
logits once; softmax_tiles_triton.py has the plan for more classes.

Sums go to `partials [5, B, C, splits]` (I, P, T, cross-entropy, -sum log p) and then [B, splits] (valid pixels). An
invalid class number makes the cross-entropy NaN.
"""

# ruff: noqa: RUF005  kernels cannot unpack a tuple into another

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .class_registers_triton import (
    above_one,
    again,
    as_logits,
    chosen_class,
    exponentials,
    few_classes,
    lanes,
    largest,
    log1p_positive,
    log1p_product,
    may_ignore,
    read_classes,
    read_labels,
    stack,
    without_own,
)
from .planes_triton import BY_PIXEL, LAUNCH, as_planes, exp_fast, mask_kind, reciprocal, unit, visible_pixels
from .softmax_tiles_triton import tiled_sums


@triton.jit
def _totals(sums, C: tl.constexpr, LEVELS: tl.constexpr):
    return tl.sum(stack(sums, C, LEVELS), 0)


@triton.jit
def softmax_sums(
    x, t, m, partials, counts,
    xb, xc, xs, tb, tc, ts, mb, ms,
    ignore_index, samples, pixels, chunk, splits,
    C: tl.constexpr, LEVELS: tl.constexpr, LAST: tl.constexpr,
    OVER_BATCH: tl.constexpr, SQUARED: tl.constexpr, OVERLAP: tl.constexpr, SPREAD: tl.constexpr,
    BY_CLASS: tl.constexpr, SOFT: tl.constexpr, MASK: tl.constexpr, IGNORES: tl.constexpr, COUNTS: tl.constexpr,
    LANES: tl.constexpr, VEC: tl.constexpr, VEC_LEVELS: tl.constexpr,
):  # fmt: skip
    """One split of one sample; grid [splits * B]. counts [B, 3 C + 1]: zeros, added to. Without BY_CLASS the
    cross-entropy of class 0 is that of all classes, and that of the others 0."""
    pid = tl.program_id(0)
    split = pid % splits
    b = (pid // splits).to(tl.int64)
    visible = visible_pixels(m, mb, 0, b, 0, pixels, MASK)
    x += b * xb
    t += b * tb
    if MASK == BY_PIXEL:
        m += b * mb
    zero = tl.zeros([LANES], tl.float32)
    zeros = ()
    for _ in tl.static_range(C):
        zeros = zeros + (zero,)
    nothing = ()
    truth = zeros
    intersection, prediction = (zeros, zeros) if OVERLAP else (nothing, nothing)
    entropy, spread = zeros if BY_CLASS else nothing, zeros if SPREAD else nothing
    hits, chosen = (zeros, zeros) if COUNTS else (nothing, nothing)
    all_entropy, number, num_non_finite = zero, zero, zero
    places = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    first = split.to(tl.int64) * chunk
    for start in range(0, chunk, LANES * VEC):
        offsets = first + start + places
        index, valid = read_labels(t, ts, m, ms, offsets, visible, ignore_index, C, SOFT, MASK, IGNORES)
        values = read_classes(x, xc, xs, offsets, visible, C, LAST, LEVELS, "evict_last")
        logits = as_logits(values, valid, C, MASK != BY_PIXEL and not IGNORES)
        if SOFT:
            top = largest(logits, C)
            e, total = exponentials(logits, top, C)
            above = tl.where(valid, total - 1.0, 0.0)
        else:
            top, own_logit, others = without_own(logits, index, C)
            e, other = exponentials(others, top, C)
            own = exp_fast(own_logit - top)
            total = own + other
            above = tl.where(valid, above_one(own, other), 0.0)
            gap = tl.where(valid, top - own_logit, 0.0)
        inverse = tl.where(valid, reciprocal(total), 0.0)
        if not SOFT:
            own_p = own * inverse
            index = again(index, own_p)
        if not BY_CLASS:
            all_entropy += log1p_product(above, VEC, VEC_LEVELS) + tl.sum(gap, 1)
        log_total = log1p_positive(above)
        if COUNTS:
            choice, non_finite = chosen_class(logits, C)
            choice = tl.where(valid, choice, -1)
            num_non_finite += tl.sum((non_finite & valid).to(tl.float32), 1)
        before = intersection, prediction, truth, entropy, spread, hits, chosen
        intersection, prediction, truth, entropy, spread, hits, chosen = (), (), (), (), (), (), ()
        for c in tl.static_range(C):
            p = e[c] * inverse  # without the pixel's class, whose share is the intersection
            if SOFT:
                target = tl.load(t + c * tc + offsets * ts, mask=offsets < visible, other=0).to(tl.float32)
                target = tl.where(valid, unit(target), 0.0)
                cost = tl.where(target == 0.0, 0.0, target * (log_total + (top - logits[c])))
                shared = p * target
                target = target * target if SQUARED else target
            else:
                target = (index == c).to(tl.float32)
                cost = tl.where(index == c, log_total + gap, 0.0)
                shared = own_p * target
            truth = truth + (before[2][c] + tl.sum(target, 1),)
            if OVERLAP:
                if SQUARED and not SOFT:
                    p = tl.where(index == c, own_p, p)
                if SQUARED:
                    p = p * p
                intersection = intersection + (before[0][c] + tl.sum(shared, 1),)
                prediction = prediction + (before[1][c] + tl.sum(p, 1),)
            if BY_CLASS:
                entropy = entropy + (before[3][c] + tl.sum(cost, 1),)
            if SPREAD:
                each = tl.where(valid, log_total + (top - logits[c]), 0.0)
                spread = spread + (before[4][c] + tl.sum(each, 1),)
            if COUNTS:
                here = (choice == c).to(tl.float32)
                hits = hits + (before[5][c] + tl.sum(here * target, 1),)
                chosen = chosen + (before[6][c] + tl.sum(here, 1),)
        if SOFT or MASK == BY_PIXEL or IGNORES:
            number += tl.sum(valid.to(tl.float32), 1)
    c = tl.arange(0, 1 << LEVELS)
    live = c < C
    place = (c.to(tl.int64) * samples + b if OVER_BATCH else b * C + c) * splits + split
    size = tl.cast(samples, tl.int64) * splits * C
    truths = tl.where(live, _totals(truth, C, LEVELS), 0.0)
    tl.store(partials + 2 * size + place, truths, mask=live)
    if OVERLAP:
        shared = _totals(intersection, C, LEVELS)
        predicted = _totals(prediction, C, LEVELS)
        tl.store(partials + place, shared, mask=live)
        tl.store(partials + size + place, predicted if SQUARED or SOFT else predicted + shared, mask=live)
    if SOFT or MASK == BY_PIXEL or IGNORES:
        valid_pixels = tl.sum(number)
    else:
        valid_pixels = tl.maximum(tl.minimum(visible - first, chunk), 0).to(tl.float32)
    tl.store(partials + 5 * size + b * splits + split, valid_pixels)
    if BY_CLASS:
        entropies = _totals(entropy, C, LEVELS)
    else:
        entropies = tl.where(c == 0, tl.sum(all_entropy), 0.0)
    if not SOFT:
        invalid_class = tl.where(c == 0, tl.sum(truths), valid_pixels) != valid_pixels
        entropies = tl.where(invalid_class, float("nan"), entropies)
    tl.store(partials + 3 * size + place, entropies, mask=live)
    if SPREAD:
        tl.store(partials + 4 * size + place, _totals(spread, C, LEVELS), mask=live)
    if COUNTS:  # sums of integers do not depend on their order
        row = counts + b * (3 * C + 1)
        both = _totals(hits, C, LEVELS).to(tl.int64)
        tl.atomic_add(row + c, both, mask=live, sem="relaxed")
        tl.atomic_add(row + C + c, _totals(chosen, C, LEVELS).to(tl.int64) - both, mask=live, sem="relaxed")
        tl.atomic_add(row + 2 * C + c, truths.to(tl.int64) - both, mask=live, sem="relaxed")
        tl.atomic_add(row + 3 * C, tl.sum(num_non_finite).to(tl.int64), sem="relaxed")


def sums(
    input: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, counts: torch.Tensor | None,
    ignore_index: int, batch: bool, squared: bool, overlap: bool, spread: bool, by_class: bool,
) -> tuple[torch.Tensor, int]:  # fmt: skip
    """Partials, flat, and splits. Unless by_class only the sum of the classes' cross-entropies is right."""
    (B, C), pixels = input.shape[:2], math.prod(input.shape[2:])
    if not few_classes(C):
        return tiled_sums(input, target, mask, counts, ignore_index, batch, squared, overlap, spread)
    soft = target.shape[1] != 1
    by_class = by_class or soft
    # With 4 pixels a lane and probabilities, LLVM's vectoriser in Triton 3.9 crashes for some counts of classes.
    shape = lanes(input, pixels, 2 if soft or spread or counts is not None else 1, most=2 if soft else 8)
    block = shape["LANES"] * shape["VEC"]
    # Enough programs to have many loads under way, few enough to add more pixels than threads at the end.
    chunk = block * max(1, triton.cdiv(B * pixels, max(512, 2048 // C) * block))
    splits = triton.cdiv(pixels, chunk)
    partials = torch.empty((5 * C + 1) * B * splits, dtype=torch.float32, device=input.device)
    (x, xs), (t, ts), (m, (mb, _, ms)) = as_planes(input), as_planes(target), as_planes(mask)
    softmax_sums[(splits * B,)](
        x, t, m, partials, counts, *xs, *ts, mb, ms, ignore_index, B, pixels, chunk, splits,
        OVER_BATCH=batch, SQUARED=squared, OVERLAP=overlap, SPREAD=spread, BY_CLASS=by_class, SOFT=soft,
        MASK=mask_kind(m, ms), IGNORES=not soft and may_ignore(target, ignore_index), COUNTS=counts is not None,
        **shape, **LAUNCH,
    )  # fmt: skip
    return partials, splits
