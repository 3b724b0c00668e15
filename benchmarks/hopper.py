"""The Triton kernels as Hopper (sm_90) gets them, compiled with no GPU: registers, spills, loads, shared memory.

To add a kernel, add lines to `KERNELS`: its module, its arguments' types, and what its code must hold. The tests check
those limits (tests/test_codegen.py), and `fastmtl bench --codegen` prints what was found.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

_LOAD = re.compile(r"ld\.global\S*?\.(?:v(\d)\.)?[bfus](\d+)\s")
_NARROW = re.compile(r"tt\.addptr [^\n]*tensor<[^\n]*tensor<[\dx]*i32>")
_SIZE = {"*u8": 1, "*i64": 8, "*bf16": 2, "*fp16": 2, "*fp32": 4, "*fp64": 8}


@dataclass(frozen=True)
class Kernel:
    """One compilation. `types` names each run-time argument's Triton type, a plain number makes it a constant.

    A tuple of types is a tuple of arguments; there "i32:16" is an integer known to be a multiple of 16.
    """

    module: str
    name: str
    types: Mapping[str, Any]
    constants: Mapping[str, object] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()  # integers known to be multiples of 16; pointers are aligned without being named
    wide_loads: int = 1  # at least so many instructions that load 16 bytes a thread
    num_warps: int = 4
    label: str = ""
    wide_offsets: bool = False  # every tensor of offsets is of 64 bits, though the sizes come as 32
    bytes_per_element: float = 0  # read and written per pixel, or per column of J; 0 where the work is not per element

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


@dataclass(frozen=True)
class Code:
    """What became of a kernel; `error` holds the traceback of one that did not compile."""

    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    loads: tuple[int, ...] = ()  # bytes a thread takes with each load from global memory, widest first
    narrow_offsets: int = 0  # tensors of pointers made from offsets of 32 bits
    error: str = ""

    @property
    def wide_loads(self) -> int:
        return sum(size >= 16 for size in self.loads)


def _dice_bce_planes(logits: str, target: str, mask: str | None) -> dict[str, str | int | None]:
    strides = {"b": "i64", "c": "i64", "s": 1}
    planes: dict[str, str | int | None] = {"x": logits, "t": target, "m": mask}
    for letter in "xt" if mask is None else "xtm":
        planes |= {letter + end: kind for end, kind in strides.items()}
    return planes if mask else planes | {"mb": 0, "mc": 0, "ms": 0}


def _dice_bce(
    label: str, wide_loads: int, logits: str, target: str, mask: str | None = None, counts: bool = False
) -> list[Kernel]:
    """Forward and backward on aligned planes of a multiple of 16 elements; 2048 a program are 16 a thread."""
    planes = _dice_bce_planes(logits, target, mask)
    sizes = dict.fromkeys(("samples", "channels", "pixels", "chunk", "splits", "blocks", "planes"), "i32")
    divisible = ("xb", "xc", "tb", "tc", "mb", "mc", "ob", "oc", "pixels", "chunk")
    flags = {"SQUARED": True, "HAS_MASK": mask is not None, "HAS_POS_WEIGHT": True, "BLOCK": 2048}
    pointers = dict.fromkeys(("pos_weight", "partials", "coefficients", "grad"), "*fp32") | {"out": logits}
    types = planes | sizes | pointers | {"gb": "i64", "gc": "i64", "ob": "i64", "oc": "i64", "os": 1}
    types |= {"counts": "*i64" if counts else None}
    sums = {"OVER_BATCH": True, "COUNTS": counts}
    read = _SIZE[logits] + _SIZE[target] + (_SIZE[mask] if mask else 0)
    module, rest = (
        "dice_bce_triton",
        {"divisible": divisible, "wide_loads": wide_loads, "label": label, "wide_offsets": True},
    )
    return [
        Kernel(module, "dice_bce_sums", types, flags | sums, bytes_per_element=read, **rest),
        Kernel(module, "dice_bce_gradient", types, flags, bytes_per_element=read + _SIZE[logits], **rest),
    ]


def _focal(label: str, wide_loads: int, logits: str, target: str, gamma: int) -> list[Kernel]:
    """`gamma` -1: an exponent known at run time alone."""
    sizes = dict.fromkeys(("channels", "pixels", "chunk", "splits", "blocks", "planes"), "i32")
    numbers = dict.fromkeys(("positive", "negative", "gamma"), "fp32")
    pointers = dict.fromkeys(("factors", "partials", "coefficients", "grad"), "*fp32") | {"out": logits}
    strides = {"gb": "i64", "gc": "i64", "ob": "i64", "oc": "i64", "os": 1}
    types = _dice_bce_planes(logits, target, None) | sizes | numbers | pointers | strides
    constants = {"GAMMA": gamma, "HAS_MASK": False, "HAS_FACTORS": True, "BLOCK": 2048}
    divisible = ("xb", "xc", "tb", "tc", "ob", "oc", "pixels", "chunk")
    module, rest = (
        "focal_triton",
        {"divisible": divisible, "wide_loads": wide_loads, "label": label, "wide_offsets": True},
    )
    read = _SIZE[logits] + _SIZE[target]
    return [
        Kernel(module, "sigmoid_focal_sums", types, constants, bytes_per_element=read, **rest),
        Kernel(module, "sigmoid_focal_gradient", types, constants, bytes_per_element=read + _SIZE[logits], **rest),
    ]


def _focal_softmax(label: str, wide_loads: int, logits: str, target: str, classes: int) -> list[Kernel]:
    """A tile holds `classes` rounded up to a power of two; bytes are those of a pixel with all its classes."""
    sizes = dict.fromkeys(("channels", "pixels", "chunk", "splits", "blocks", "samples"), "i32")
    pointers = dict.fromkeys(("factors", "partials", "coefficients", "grad"), "*fp32") | {"out": logits}
    strides = dict.fromkeys(("gb", "xb", "xc", "tb", "ob", "oc"), "i64") | {"xs": 1, "ts": 1, "os": 1, "mb": 0, "ms": 0}
    planes = {"x": logits, "t": target, "m": None, "gamma": "fp32", "ignore_index": "i32"}
    padded = 1 << (classes - 1).bit_length()
    constants = {"GAMMA": 2, "HAS_MASK": False, "HAS_FACTORS": True, "CLASSES": padded, "BLOCK": 4096 // padded}
    divisible = ("xb", "xc", "tb", "ob", "oc", "pixels", "chunk")
    rest = {"divisible": divisible, "wide_loads": wide_loads, "label": label, "wide_offsets": True}
    types, read = planes | sizes | pointers | strides, classes * _SIZE[logits] + _SIZE[target]
    module, write = "focal_softmax_triton", classes * _SIZE[logits]
    return [
        Kernel(module, "softmax_focal_sums", types, constants, bytes_per_element=read, **rest),
        Kernel(module, "softmax_focal_gradient", types, constants, bytes_per_element=read + write, **rest),
    ]


def _dice_ce(
    label: str, loads: tuple[int, int], logits: str, target: str, C: int, mask: str | None = None
) -> list[Kernel]:
    """Sums of 1024 logits at a time, gradient of 2048; above 32 classes logits are read twice, 32 classes at a time."""
    planes = {letter: kind for letter, kind in _dice_bce_planes(logits, target, mask).items() if letter not in ("mc",)}
    sizes = dict.fromkeys(("samples", "channels", "pixels", "chunk", "splits", "blocks", "planes"), "i32")
    tile = min(32, 1 << (C - 1).bit_length())
    flags = {"SQUARED": False, "OVERLAP": True, "SPREAD": False, "SOFT": False, "HAS_MASK": mask is not None}
    flags |= {"COUNTS": False, "OVER_BATCH": False, "WHOLE": C <= 32, "TILE": tile, "BLOCK": 1024 // tile}
    pointers = {"partials": "*fp32", "coefficients": "*fp32", "grad": "*fp32", "out": logits, "counts": None}
    types = planes | sizes | pointers | {"gb": "i64", "ob": "i64", "oc": "i64", "os": 1, "smoothing": "fp32"}
    types |= {"ignore_index": "i32", "normalisers": None if C <= 32 else "*fp32"}
    divisible = ("xb", "xc", "tb", "tc", "mb", "ob", "oc", "pixels", "chunk")
    own = (_SIZE[target] + (_SIZE[mask] if mask else 0)) / C  # what a pixel has beside its logits
    once, tiles = _SIZE[logits] + own, -(-C // tile)
    backward = "softmax_gradient_triton", "softmax_gradient"
    kernels = [
        replace(
            Kernel("softmax_sums_triton", "softmax_sums", types, flags, divisible, loads[0], label=label),
            bytes_per_element=round(once if C <= 32 else _SIZE[logits] + tiles * (own + 8 / C), 2),
        ),
        replace(
            Kernel(*backward, types, flags | {"BLOCK": 2048 // tile}, divisible, loads[1], label=label),
            bytes_per_element=round(once + _SIZE[logits] * (1 if C <= 32 else 2), 2),
        ),
    ]
    if C > 32:
        first = Kernel("softmax_sums_triton", "softmax_normalisers", types, flags, divisible, 1, label=label)
        kernels.insert(0, replace(first, bytes_per_element=round(once + 8 / C, 2)))
    return kernels


def _deep_supervision(
    label: str, wide_loads: int, logits: str, target: str, mask: str | None, how: int
) -> list[Kernel]:
    """Heads of strides 1, 2, 4, 8 and 1 again: all logits come in 16-byte loads, at stride 1 the mask too."""
    scales = ((1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 1, 1))
    planes = (logits, "i64:16", "i64:16", 1)
    sums = (*planes, "i32:16", "i32:16", "i32:16", "i32:16", "i32")
    # Where the first head's programs begin is 0, which a launch passes as a multiple of 16.
    types: dict[str, Any] = {"t": target, "m": mask, "grad": "*fp32", "gl": "i32", "weights": None}
    for letter in "tm":
        live = letter == "t" or mask is not None
        strides = ("i64:16", "i64:16", 0, "i64:16", 1, 1) if live else (0,) * 6
        types |= {letter + end: kind for end, kind in zip("bcdhws", strides, strict=True)}
    types |= dict.fromkeys(("samples", "channels", "programs"), "i32")
    types |= {"pos_weight": "*fp32", "partials": "*fp32", "coefficients": "*fp32", "loss": "*fp32"}
    types |= dict.fromkeys(("bce_weight", "dice_weight", "smooth_nr", "smooth_dr"), "fp32")
    types |= {"numbers": ("fp32",) * len(scales), "gradients": (planes,) * len(scales)}
    flags = {"SCALES": scales, "FLAT": True, "HOW": how, "SQUARED": True, "HAS_MASK": mask is not None}
    flags |= {"HAS_POS_WEIGHT": True, "WIDE": False, "BLOCK": 2048, "MOVING": False, "OVER_BATCH": True}
    rest = {"divisible": ("tb", "tc", "th", "mb", "mc", "mh"), "wide_loads": wide_loads, "label": label}
    module = "deep_supervision_triton"
    kernels = [
        Kernel(module, "deep_supervision_sums", types | {"heads": ((*sums, "i32"),) * len(scales)}, flags, **rest),
        Kernel(module, "deep_supervision_gradient", types | {"heads": (sums,) * len(scales)}, flags, **rest),
    ]
    if how:
        return kernels
    flags = {"HEADS": 5, "JACCARD": True, "EMPTY": 2, "MEAN": True, "TILE": 16, "PARTS": 64} | flags
    finish = Kernel(module, "deep_supervision_finish", types | {"heads": ((*sums, "i32"),) * 5}, flags, label=label)
    return [*kernels, replace(finish, wide_loads=0)]  # a few thousand partials at most


def _gram(label: str, J: str, T: int, vector: int, triangle: bool) -> list[Kernel]:
    """`triangle` False: two tiles of more rows than one holds."""
    types = {"J": J, "partials": "*fp64"} | dict.fromkeys(("K", "P", "row_stride", "split_columns"), "i32")
    constants = {"T": T, "LANES": 128, "VEC": vector, "RUN": 128, "TRIANGLE": triangle}
    divisible = ("row_stride", "split_columns")  # P need not be: the ragged end comes by itself
    rows = T * (1 if triangle else 2)
    kernel = Kernel("gram_triton", "gram_partials_kernel", types, constants, divisible, rows, label=label)
    return [replace(kernel, bytes_per_element=rows * _SIZE[J])]


def _combine(label: str, J: str, out: str, wide_loads: int) -> list[Kernel]:
    types = {"J": J, "w": "*fp64", "out": out, "P": "i32", "row_stride": "i32"}
    constants, moved = {"K": 3, "BLOCK": 1024}, 3 * _SIZE[J] + _SIZE[out]
    kernel = Kernel("combine_triton", "combine_kernel", types, constants, ("row_stride",), wide_loads, label=label)
    return [replace(kernel, bytes_per_element=moved)]


def _assignment(block: int, num_warps: int, cost: str) -> Kernel:
    """Steps of some hundred costs each, read with a stride: nothing to load in 16 bytes."""
    types = {"cost": cost, "num_targets": "*i64", "matches": "*i64"}
    types |= dict.fromkeys(("cb", "cq", "ct", "queries", "targets", "factor"), "i32")
    constants, label = {"HAS_NUMBER": True, "BLOCK": block}, f"{cost[1:]}-{block}"
    return Kernel("assignment_triton", "assignment_kernel", types, constants, (), 0, num_warps, label)


def _points(maps: str) -> Kernel:
    """Neighbours lie anywhere: single loads, except of the points themselves."""
    types = {"maps": maps, "coordinates": "*fp32", "out": "*fp32", "batch_stride": "i32", "channel_stride": "i32"}
    types |= dict.fromkeys(("channels", "height", "width", "points", "blocks"), "i32")
    return Kernel("points_triton", "sample_points_kernel", types, {"BLOCK": 512}, (), 0, label=maps[1:])


def _nt_xent(label: str, z: str, depth: int) -> list[Kernel]:
    """D = 128, as SimCLR projects to. Its time goes into products: each row is read once for every 64 others."""
    sizes = dict.fromkeys(("rows", "pairs", "dim", "padded_rows"), "i32")
    types = sizes | {"scaled": z, "out": z, "z": z, "m": "*u8", "padded_dim": 128, "inverse_temperature": "fp32"}
    types |= dict.fromkeys(("norms", "losses", "coefficients", "grad", "loss"), "*fp32")
    constants = {"ROWS": 64, "DEPTH": depth, "WIDTH": 128, "WIDEN": False, "HAS_MASK": True, "TILE": 16, "BLOCK": 128}
    aligned, rest = ("padded_rows", "dim"), {"num_warps": 8, "label": label}
    narrower = constants | {"DEPTH": min(64, depth)}
    return [
        # The mask of its loads runs along the rows, and ends anywhere.
        Kernel("nt_xent_triton", "nt_xent_prepare", types, constants, aligned, wide_loads=0, **rest),
        Kernel("nt_xent_triton", "nt_xent_rows", types, constants, aligned, wide_loads=4, **rest),
        Kernel("nt_xent_triton", "nt_xent_gradient", types, narrower, aligned, wide_loads=8, **rest),
    ]


def _regression(label: str, wide_loads: int, input: str, target: str, mask: str | None = None) -> list[Kernel]:
    """As `_dice_bce`."""
    planes = _dice_bce_planes(input, target, mask)
    sizes = dict.fromkeys(("channels", "pixels", "chunk", "splits", "blocks", "planes"), "i32")
    divisible = ("xb", "xc", "tb", "tc", "mb", "mc", "ob", "oc", "pixels", "chunk")
    pointers = {"partials": "*fp32", "slopes": "*fp32", "grad": "*fp32", "out": input}
    types = planes | sizes | pointers | {"grad_stride": "i64", "ob": "i64", "oc": "i64", "os": 1, "beta": "fp32"}
    constants = {"ERROR": 2, "HAS_MASK": mask is not None, "BLOCK": 2048}
    read = _SIZE[input] + _SIZE[target] + (_SIZE[mask] if mask else 0)
    rest = {"divisible": divisible, "wide_loads": wide_loads, "label": label}
    module = "regression_triton"
    return [
        Kernel(module, "regression_sums", types, constants, bytes_per_element=read, **rest),
        Kernel(module, "regression_gradient", types, constants, bytes_per_element=read + _SIZE[input], **rest),
    ]


def _finish() -> list[Kernel]:
    """Pictures lie anywhere, neighbours of a place anywhere in them: single bytes are loaded, and the caches help."""
    places = {"table": "*i64", "matrix": "*fp32", "field": "*fp32", "size": "i32"}
    numbers = dict.fromkeys(("colour", "noise", "scale", "shift"), "*fp32") | {"keys": "*i32"}
    image, mask = {"OUTSIDE": 240, "BLOCK": 256}, {"CHANNELS": 1, "BLOCK": 256, "CELLS": 5}
    image_types, mask_types = places | numbers | {"out": "*fp32"}, places | {"out": "*u8", "threshold": "fp32"}
    straight, bent = image | {"CELLS": 0, "NOISE": False}, image | {"CELLS": 5, "NOISE": True}
    warp_types, noise_types = places | {"out": "*u8", "within": "*u8"}, numbers | {"images": "*fp32", "size": "i32"}
    found = [  # name, label, types, constants, bytes of a pixel
        ("finish_image_kernel", "affine", image_types, straight, 15),
        ("finish_image_kernel", "bent", image_types, bent, 15),
        ("warp_image_kernel", "bent", warp_types, image | {"CELLS": 5}, 7),
        ("finish_mask_kernel", "bent", mask_types, mask | {"NEAREST": False}, 2),
        ("finish_mask_kernel", "nearest", mask_types, mask | {"NEAREST": True}, 2),
        ("add_noise_kernel", "", noise_types, {"BLOCK": 256}, 24),
        ("stitch_kernel", "", {"jobs": "*i64"}, {"ROWS": 8, "BYTES": 512}, 2),
    ]
    return [
        Kernel("finish_triton", name, types, constants, wide_loads=0, label=label, bytes_per_element=moved)
        for name, label, types, constants, moved in found
    ]


KERNELS = [
    *_dice_bce("f32-u8", 5, "*fp32", "*u8"),
    *_dice_bce("f32-f32", 8, "*fp32", "*fp32"),
    *_dice_bce("bf16-u8", 3, "*bf16", "*u8"),
    *_dice_bce("f16-i64", 10, "*fp16", "*i64"),
    *_dice_bce("f32-u8-mask", 6, "*fp32", "*u8", "*u8"),
    _dice_bce("f32-u8-counts", 5, "*fp32", "*u8", counts=True)[0],
    Kernel(
        "dice_bce_triton",
        "overlap_finish",
        {"partials": "*fp32", "sums": "*fp32", "planes": "i32", "parts": "i32"},
        {"TILE": 16, "PARTS": 64},
        wide_loads=0,  # as below
    ),
    Kernel(
        "dice_bce_triton",
        "dice_bce_finish",
        {"partials": "*fp32", "weight": "*fp32", "loss": "*fp32", "coefficients": "*fp32"}
        | dict.fromkeys(("samples", "channels", "number", "parts", "planes"), "i32")
        | dict.fromkeys(("bce_weight", "dice_weight", "smooth_nr", "smooth_dr"), "fp32"),
        {"OVER_BATCH": True, "SQUARED": True, "JACCARD": True, "EMPTY": 2, "REDUCTION": 1, "HAS_WEIGHT": True}
        | {"TILE": 16, "PARTS": 64},
        wide_loads=0,  # a few thousand partials at most
    ),
    *_focal("f32-u8", 5, "*fp32", "*u8", 2),
    *_focal("bf16-u8", 3, "*bf16", "*u8", 2),
    *_focal("f32-f32-any", 8, "*fp32", "*fp32", -1),
    *_focal_softmax("f32-u8-4", 8, "*fp32", "*u8", 4),
    *_focal_softmax("f32-i64-14", 8, "*fp32", "*i64", 14),
    *_focal_softmax("bf16-u8-128", 4, "*bf16", "*u8", 128),
    Kernel(
        "focal_triton",
        "focal_finish",
        {"partials": "*fp32", "loss": "*fp32", "coefficients": "*fp32", "segments": "i32", "parts": "i32"},
        {"REDUCTION": 1, "TILE": 16, "PARTS": 64},
        wide_loads=0,  # as above
    ),
    *_dice_ce("f32-u8-3", (2, 4), "*fp32", "*u8", 3),
    *_dice_ce("f32-i64-3", (2, 4), "*fp32", "*i64", 3),
    *_dice_ce("f32-u8-6", (2, 4), "*fp32", "*u8", 6),
    *_dice_ce("f32-u8-14", (2, 4), "*fp32", "*u8", 14),
    *_dice_ce("bf16-u8-14", (1, 2), "*bf16", "*u8", 14),
    *_dice_ce("f32-u8-6-mask", (2, 4), "*fp32", "*u8", 6, "*u8"),
    *_dice_ce("f32-u8-128", (2, 4), "*fp32", "*u8", 128),
    Kernel(
        "dice_ce_triton",
        "dice_ce_finish",
        {"partials": "*fp32", "weight": "*fp32", "loss": "*fp32", "coefficients": "*fp32"}
        | dict.fromkeys(("samples", "rows", "channels", "parts", "planes"), "i32")
        | dict.fromkeys(("ce_weight", "dice_weight", "smoothing", "smooth_nr", "smooth_dr"), "fp32"),
        {"BACKGROUND": False, "SQUARED": True, "JACCARD": True, "EMPTY": 2, "REDUCTION": 1, "OVERLAP": True}
        | {"SPREAD": True, "SOFT": False, "HAS_WEIGHT": True, "TILE": 32, "PARTS": 32},
        wide_loads=0,  # as above
    ),
    *_nt_xent("f32", "*fp32", 32),
    *_nt_xent("bf16", "*bf16", 128),
    *_nt_xent("f16", "*fp16", 128),
    Kernel(
        "nt_xent_triton",
        "nt_xent_finish",
        dict.fromkeys(("losses", "norms", "loss", "coefficients"), "*fp32") | {"rows": "i32", "padded_rows": "i32"},
        {"BLOCK": 1024},
        ("padded_rows",),
        wide_loads=0,  # two numbers a row
        num_warps=8,
    ),
    *_regression("f32-u8", 5, "*fp32", "*u8"),
    *_regression("f32-f32", 8, "*fp32", "*fp32"),
    *_finish(),
    *_regression("bf16-u8-mask", 3, "*bf16", "*u8", "*u8"),
    Kernel(
        "regression_triton",
        "regression_finish",
        {"partials": "*fp32", "loss": "*fp32", "slopes": "*fp32", "samples": "i32", "parts": "i32"},
        {"REDUCTION": 1, "TILE": 16, "PARTS": 64},
        wide_loads=0,  # a few thousand partials at most
    ),
    *_deep_supervision("f32-u8-nearest", 20, "*fp32", "*u8", None, 0),
    *_deep_supervision("bf16-u8-area", 12, "*bf16", "*u8", None, 1),
    *_deep_supervision("f32-u8-mask-max", 20, "*fp32", "*u8", "*u8", 2),
    *_gram("f32-1", "*fp32", 1, 4, True),
    *_gram("f32-3", "*fp32", 3, 4, True),
    *_gram("f32-8", "*fp32", 8, 4, True),
    *_gram("f32-64", "*fp32", 6, 4, False),
    *_gram("bf16-8", "*bf16", 8, 8, True),
    *_gram("f16-64", "*fp16", 5, 8, False),
    *_gram("f64-5", "*fp64", 5, 2, True),
    *_gram("f64-64", "*fp64", 4, 2, False),
    Kernel(
        "gram_triton",
        "gram_finish_kernel",
        {"partials": "*fp64", "G": "*fp64", "K": "i32", "splits": "i32"},
        {"T": 8, "NORMS": False, "BLOCK": 256},
        wide_loads=0,  # a thousand partials per pair at most
        num_warps=2,
    ),
    *_combine("f32", "*fp32", "*fp32", 6),
    *_combine("bf16", "*bf16", "*fp32", 3),
    *_combine("f64", "*fp64", "*fp64", 12),
    *[
        Kernel(
            "pcgrad_triton",
            "pcgrad_kernel",
            {"G": "*fp64", "order": "*i64", "w": "*fp64", "K": "i32", "M": "i32"},
            {"SIZE": size, "MEAN": True},
            wide_loads=0,  # K x K numbers
            num_warps=1 if size <= 16 else 8,
            label=str(size),
        )
        for size in (1, 4, 16, 64)
    ],
    _assignment(128, 1, "*fp32"),
    _assignment(256, 1, "*fp64"),
    _assignment(1024, 8, "*fp32"),
    *[_points(maps) for maps in ("*fp32", "*bf16", "*u8")],
    # The small problems of the balancing methods: K x K numbers, so no wide loads. More than 32 tasks do not fit the
    # registers of one block, which then spills to the cache: slower, and not held to this list.
    *[
        Kernel(
            "nonnegative_qp_triton",
            "nonnegative_qp_kernel",
            {"H": "*fp64", "q": "*fp64", "out": "*fp64", "K": "i32"},
            {"SIZE": size, "ITERATIONS": 40},
            wide_loads=0,
            num_warps=4 if size == 32 else 1,
            label=str(size),
        )
        for size in (4, 16, 32)
    ],
    *[
        Kernel(
            "equilibrium_triton",
            "equilibrium_kernel",
            {"C": "*fp64", "r": "*fp64", "power": "*fp64", "out": "*fp64", "K": "i32"},
            {"SIZE": size, "ITERATIONS": 150, "HALVINGS": 8},
            wide_loads=0,
            num_warps=4 if size == 32 else 1,
            label=str(size),
        )
        for size in (4, 16, 32)
    ],
    *[
        Kernel(
            "eigh_triton",
            "eigh_kernel",
            {"A": "*fp64", "V": "*fp64", "N": "i32"},
            {"SIZE": size, "SWEEPS": 12},
            wide_loads=0,
            num_warps=4 if size == 32 else 1,
            label=str(size),
        )
        for size in (4, 16, 32)
    ],
]


def compile_kernels(kernels: list[Kernel]) -> dict[str, Code]:
    """str(kernel) -> its code. Another process compiles, for the interpreter, once on, replaces parts of Triton here.

    Raises:
        RuntimeError: that process broke as a whole, for example because Triton is not installed.
    """
    names = [str(kernel) for kernel in kernels]
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "fastmtl.benchmarks.hopper", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"compiling for sm_90 failed: {done.stderr.strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Code(**(found[name] | {"loads": tuple(found[name]["loads"])})) for name in names}


def _compile(kernel: Kernel) -> Code:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"fastmtl.kernels.{kernel.module}"), kernel.name)
    signature, constants, attributes = {}, {}, {}

    def spell(kind: Any, path: tuple[int, ...], divisible: bool) -> Any:
        if isinstance(kind, tuple):
            return tuple(spell(one, (*path, place), False) for place, one in enumerate(kind))
        if not isinstance(kind, str):
            constants[path] = kind
            return "constexpr"
        kind, _, multiple = kind.partition(":")
        if kind.startswith("*") or multiple or divisible:
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    for position, name in enumerate(function.arg_names):
        if name in kernel.constants:
            signature[name], constants[(position,)] = "constexpr", kernel.constants[name]
        else:
            signature[name] = spell(kernel.types.get(name), (position,), name in kernel.divisible)
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": kernel.num_warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    report = _assemble(compiled.asm["ptx"])
    loads = [int(vector or 1) * int(bits) // 8 for vector, bits in _LOAD.findall(compiled.asm["ptx"])]
    return Code(
        registers=_number(r"Used (\d+) registers", report),
        spilled_bytes=sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        shared_bytes=compiled.metadata.shared,
        loads=tuple(sorted(loads, reverse=True)),
        narrow_offsets=len(_NARROW.findall(compiled.asm["ttir"])),
    )


def _assemble(ptx: str) -> str:
    """What ptxas reports of it; Triton runs ptxas too, and drops the report."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"\.target (sm_\w+)", ptx)
    if target is None:
        raise ValueError("the PTX names no target")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [get_ptxas(90).path, "-v", f"--gpu-name={target[1]}", "kernel.ptx", "-o", "kernel.cubin"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr


def _number(pattern: str, report: str) -> int:
    found = re.search(pattern, report)
    if found is None:
        raise ValueError(f"ptxas reported nothing like {pattern!r}: {report}")
    return int(found[1])


def _main(names: list[str]) -> None:
    found = {}
    for kernel in KERNELS:
        if str(kernel) in names:
            try:
                found[str(kernel)] = asdict(_compile(kernel))
            except Exception:  # one that does not compile must not hide the others
                found[str(kernel)] = asdict(Code(error=traceback.format_exc()))
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1:])
