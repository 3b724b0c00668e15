"""The kernels of the losses: argument types and limits of the code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .compile import SIZE, Kernel


def _dice_bce_planes(logits: str, target: str, mask: str | None) -> dict[str, str | int | None]:
    strides = {"b": "i64", "c": "i64", "s": 1}
    planes: dict[str, str | int | None] = {"x": logits, "t": target, "m": mask}
    for letter in "xt" if mask is None else "xtm":
        planes |= {letter + end: kind for end, kind in strides.items()}
    return planes if mask else planes | {"mb": 0, "mc": 0, "ms": 0}


def _dice_bce(
    label: str, wide_loads: int, logits: str, target: str, mask: str | None = None, counts: bool = False
) -> list[Kernel]:
    """Forward and backward on aligned planes with a multiple of 16 elements; 2048 per program are 16 per thread."""
    planes = _dice_bce_planes(logits, target, mask)
    sizes = dict.fromkeys(("samples", "channels", "pixels", "chunk", "splits", "blocks", "planes"), "i32")
    divisible = ("xb", "xc", "tb", "tc", "mb", "mc", "ob", "oc", "pixels", "chunk")
    flags = {"SQUARED": True, "HAS_MASK": mask is not None, "HAS_POS_WEIGHT": True, "BLOCK": 2048}
    pointers = dict.fromkeys(("pos_weight", "partials", "coefficients", "grad"), "*fp32") | {"out": logits}
    types = planes | sizes | pointers | {"gb": "i64", "gc": "i64", "ob": "i64", "oc": "i64", "os": 1}
    types |= {"counts": "*i64" if counts else None}
    sums = {"OVER_BATCH": True, "COUNTS": counts}
    read = SIZE[logits] + SIZE[target] + (SIZE[mask] if mask else 0)
    module, rest = (
        "dice_bce_triton",
        {"divisible": divisible, "wide_loads": wide_loads, "label": label, "wide_offsets": True},
    )
    return [
        Kernel(module, "dice_bce_sums", types, flags | sums, bytes_per_element=read, **rest),
        Kernel(module, "dice_bce_gradient", types, flags, bytes_per_element=read + SIZE[logits], **rest),
    ]


def _focal(label: str, wide_loads: int, logits: str, target: str, gamma: int) -> list[Kernel]:
    """`gamma` -1: an exponent that is known only at run time."""
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
    read = SIZE[logits] + SIZE[target]
    return [
        Kernel(module, "sigmoid_focal_sums", types, constants, bytes_per_element=read, **rest),
        Kernel(module, "sigmoid_focal_gradient", types, constants, bytes_per_element=read + SIZE[logits], **rest),
    ]


def _registers(logits: str, classes: int) -> tuple[dict[str, Any], int]:
    """The shape of the kernels with one tensor per class, and how many loads of 16 bytes the logits take."""
    vec = 16 // SIZE[logits]
    while vec * classes > 96:
        vec //= 2
    levels = {"LEVELS": (classes - 1).bit_length(), "VEC_LEVELS": vec.bit_length() - 1}
    shape: dict[str, Any] = {"C": classes, "LAST": False, "LAST_OUT": False, "LANES": 128, "VEC": vec, **levels}
    return shape, classes if vec * SIZE[logits] == 16 else 0


def _focal_softmax(label: str, tiled_loads: int, logits: str, target: str, classes: int) -> list[Kernel]:
    """A tile has `classes` rounded up to a power of two; bytes are per pixel, with all its classes."""
    sizes = dict.fromkeys(("channels", "pixels", "chunk", "splits", "blocks", "samples"), "i32")
    pointers = dict.fromkeys(("factors", "partials", "coefficients", "grad"), "*fp32") | {"out": logits}
    strides = dict.fromkeys(("gb", "xb", "xc", "tb", "ob", "oc"), "i64") | {"xs": 1, "ts": 1, "os": 1, "mb": 0, "ms": 0}
    planes = {"x": logits, "t": target, "m": None, "gamma": "fp32", "ignore_index": "i32"}
    padded = 1 << (classes - 1).bit_length()
    tile = {"CLASSES": padded, "BLOCK": 4096 // padded, "HAS_MASK": False}
    shape, wide_loads = _registers(logits, classes) if classes <= 32 else (tile, tiled_loads)
    constants = {"GAMMA": 2, "MASK": 0, "IGNORES": target != "*u8", "HAS_FACTORS": True} | shape
    divisible = ("xb", "xc", "tb", "ob", "oc", "pixels", "chunk")
    rest = {"divisible": divisible, "wide_loads": wide_loads, "label": label, "wide_offsets": True}
    types, read = planes | sizes | pointers | strides, classes * SIZE[logits] + SIZE[target]
    write, tiled = classes * SIZE[logits], "" if classes <= 32 else "_tiled"
    module = f"focal_softmax{tiled and '_tiles'}_triton"
    return [
        Kernel(module, f"softmax_focal_sums{tiled}", types, constants, bytes_per_element=read, **rest),
        Kernel(module, f"softmax_focal_gradient{tiled}", types, constants, bytes_per_element=read + write, **rest),
    ]


def _dice_ce(
    label: str, tiled_loads: tuple[int, int], logits: str, target: str, C: int, mask: str | None = None
) -> list[Kernel]:
    """Above 32 classes, sums over 1024 logits at a time, gradients of 2048; logits are read twice, 32 classes at a
    time."""
    planes = {letter: kind for letter, kind in _dice_bce_planes(logits, target, mask).items() if letter not in ("mc",)}
    sizes = dict.fromkeys(("samples", "channels", "pixels", "chunk", "splits", "blocks", "planes"), "i32")
    flags = {"SQUARED": False, "OVERLAP": True, "SPREAD": False, "SOFT": False, "HAS_MASK": mask is not None}
    flags |= {"COUNTS": False, "OVER_BATCH": False, "MASK": int(mask is not None), "IGNORES": target != "*u8"}
    flags |= {"BY_CLASS": False}
    pointers = {"partials": "*fp32", "coefficients": "*fp32", "grad": "*fp32", "out": logits, "counts": None}
    types = planes | sizes | pointers | {"gb": "i64", "ob": "i64", "oc": "i64", "os": 1, "smoothing": "fp32"}
    types |= {"ignore_index": "i32", "normalisers": "*fp32"}
    divisible = ("xb", "xc", "tb", "tc", "mb", "ob", "oc", "pixels", "chunk")
    own = (SIZE[target] + (SIZE[mask] if mask else 0)) / C  # bytes per pixel besides its logits
    once, tiles = SIZE[logits] + own, -(-C // 32)

    def kernel(module: str, name: str, shape: dict[str, Any], wide_loads: int, size: float) -> Kernel:
        found = Kernel(f"{module}_triton", name, types, flags | shape, divisible, wide_loads, label=label)
        return replace(found, bytes_per_element=round(size, 2))

    if C <= 32:
        shape, wide_loads = _registers(logits, C)
        return [
            kernel("softmax_sums", "softmax_sums", shape, wide_loads, once),
            kernel("softmax_gradient", "softmax_gradient", shape, wide_loads, once + SIZE[logits]),
        ]
    tile, wide = {"TILE": 32, "BLOCK": 32}, {"TILE": 32, "BLOCK": 64}
    twice = SIZE[logits] + tiles * (own + 8 / C)
    return [
        kernel("softmax_tiles", "softmax_normalisers", tile, 1, once + 8 / C),
        kernel("softmax_tiles", "softmax_sums_tiled", tile, tiled_loads[0], twice),
        kernel("softmax_tiles_gradient", "softmax_gradient_tiled", wide, tiled_loads[1], once + 2 * SIZE[logits]),
    ]


def _deep_supervision(
    label: str, wide_loads: int, logits: str, target: str, mask: str | None, how: int
) -> list[Kernel]:
    """Heads with strides 1, 2, 4, 8 and 1 again: all logits use 16-byte loads; at stride 1 the mask does too."""
    scales = ((1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 1, 1))
    planes = (logits, "i64:16", "i64:16", 1)
    sums = (*planes, "i32:16", "i32:16", "i32:16", "i32:16", "i32")
    # The first head's programs begin at 0, which a launch passes as a multiple of 16.
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
    return [*kernels, replace(finish, wide_loads=0)]  # at most a few thousand partial sums


def _nt_xent(label: str, z: str, depth: int) -> list[Kernel]:
    """D = 128, the projection size of SimCLR. Products dominate the time: each row is read once for every 64 others."""
    sizes = dict.fromkeys(("rows", "pairs", "dim", "padded_rows"), "i32")
    types = sizes | {"scaled": z, "out": z, "z": z, "m": "*u8", "padded_dim": 128, "inverse_temperature": "fp32"}
    types |= dict.fromkeys(("norms", "losses", "coefficients", "grad", "loss"), "*fp32")
    constants = {"ROWS": 64, "DEPTH": depth, "WIDTH": 128, "WIDEN": False, "HAS_MASK": True, "TILE": 16, "BLOCK": 128}
    aligned, rest = ("padded_rows", "dim", "columns"), {"num_warps": 8, "label": label}
    types |= dict.fromkeys(("partials", "alongs"), "*fp32") | dict.fromkeys(("columns", "splits"), "i32")
    constants |= {"SPLITS": 8}
    narrower = constants | {"DEPTH": min(64, depth)}
    return [
        # The mask of the loads runs along the rows and may end anywhere.
        Kernel("nt_xent_triton", "nt_xent_prepare", types, constants, aligned, wide_loads=0, **rest),
        Kernel("nt_xent_triton", "nt_xent_rows", types, constants, aligned, wide_loads=3, **rest),
        Kernel("nt_xent_triton", "nt_xent_slopes", types, narrower, aligned, wide_loads=4, **rest),
        Kernel("nt_xent_triton", "nt_xent_gradient", types, constants, aligned, wide_loads=2, **rest),
    ]


def _regression(label: str, wide_loads: int, input: str, target: str, mask: str | None = None) -> list[Kernel]:
    """As `_dice_bce`."""
    planes = _dice_bce_planes(input, target, mask)
    sizes = dict.fromkeys(("channels", "pixels", "chunk", "splits", "blocks", "planes"), "i32")
    divisible = ("xb", "xc", "tb", "tc", "mb", "mc", "ob", "oc", "pixels", "chunk")
    pointers = {"partials": "*fp32", "slopes": "*fp32", "grad": "*fp32", "out": input}
    types = planes | sizes | pointers | {"grad_stride": "i64", "ob": "i64", "oc": "i64", "os": 1, "beta": "fp32"}
    constants = {"ERROR": 2, "HAS_MASK": mask is not None, "BLOCK": 2048}
    read = SIZE[input] + SIZE[target] + (SIZE[mask] if mask else 0)
    rest = {"divisible": divisible, "wide_loads": wide_loads, "label": label}
    module = "regression_triton"
    return [
        Kernel(module, "regression_sums", types, constants, bytes_per_element=read, **rest),
        Kernel(module, "regression_gradient", types, constants, bytes_per_element=read + SIZE[input], **rest),
    ]


LOSSES = [
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
        "dice_ce_segments",
        {"partials": "*fp32", "weight": "*fp32", "coefficients": "*fp32", "terms": "*fp64"}
        | dict.fromkeys(("samples", "rows", "channels", "parts", "planes"), "i32")
        | dict.fromkeys(("smoothing", "smooth_nr", "smooth_dr"), "fp32"),
        {"BACKGROUND": False, "SQUARED": True, "JACCARD": True, "EMPTY": 2, "OVERLAP": True}
        | {"SPREAD": True, "SOFT": False, "HAS_WEIGHT": True, "TILE": 2, "PARTS": 1024},
        wide_loads=0,  # as above
    ),
    Kernel(
        "dice_ce_triton",
        "dice_ce_finish",
        {"terms": "*fp64", "loss": "*fp32", "coefficients": "*fp32", "ce_weight": "fp32", "dice_weight": "fp32"}
        | dict.fromkeys(("rows", "tiles", "planes"), "i32"),
        {"REDUCTION": 1, "BLOCK": 512},
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
        wide_loads=0,  # two numbers per row
        num_warps=8,
    ),
    *_regression("f32-u8", 5, "*fp32", "*u8"),
    *_regression("f32-f32", 8, "*fp32", "*fp32"),
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
]
