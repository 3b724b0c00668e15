"""Kernels of the data plane: argument types and limits of the code."""

from __future__ import annotations

from .compile import SIZE, Kernel


def _transform() -> list[Kernel]:
    """Images and neighbouring pixels can be anywhere in memory: single bytes are loaded, mostly from the cache."""
    places = {"table": "*i64", "matrix": "*fp32", "field": "*fp32", "size": "i32"}
    numbers = dict.fromkeys(("colour", "noise", "scale", "shift"), "*fp32") | {"keys": "*i32"}
    image, mask = {"OUTSIDE": 240, "BLOCK": 256}, {"CHANNELS": 1, "BLOCK": 256, "CELLS": 5}
    image_types, mask_types = places | numbers | {"out": "*fp32"}, places | {"out": "*u8", "threshold": "fp32"}
    straight, bent = image | {"CELLS": 0, "NOISE": False}, image | {"CELLS": 5, "NOISE": True}
    warp_types, noise_types = places | {"out": "*u8", "within": "*u8"}, numbers | {"images": "*fp32", "size": "i32"}
    found = [  # name, label, types, constants, bytes per pixel
        ("transform_image_kernel", "affine", image_types, straight, 15),
        ("transform_image_kernel", "bent", image_types, bent, 15),
        ("warp_image_kernel", "bent", warp_types, image | {"CELLS": 5}, 7),
        ("transform_mask_kernel", "bent", mask_types, mask | {"NEAREST": False}, 2),
        ("transform_mask_kernel", "nearest", mask_types, mask | {"NEAREST": True}, 2),
        ("add_noise_kernel", "", noise_types, {"BLOCK": 256}, 24),
        ("stitch_kernel", "", {"jobs": "*i64"}, {"ROWS": 8, "BYTES": 512}, 2),
    ]
    return [
        Kernel("transform_triton", name, types, constants, wide_loads=0, label=label, bytes_per_element=moved)
        for name, label, types, constants, moved in found
    ]


def _stain(label: str, out: str, lasso: bool, inside: bool) -> Kernel:
    """Planes with a multiple of 16 pixels; 2048 per program are 16 bytes per thread and plane."""
    pointers = {"images": "*u8", "inside": "*u8" if inside else None, "table": "*fp32", "recipes": "*fp32", "out": out}
    strides = {"ib": "i64", "ic": "i64", "ip": 1, "ob": "i64", "oc": "i64", "op": 1, "pixels": "i32", "blocks": "i32"}
    flags = {"LASSO": lasso, "HAS_INSIDE": inside, "BYTES": out == "*u8", "HALF_UP": False, "BLOCK": 2048}
    divisible = ("ib", "ic", "ob", "oc", "pixels")
    # The 32-bit offsets are pixel values used as indices into the table of densities.
    rest = {"wide_loads": 3 + inside, "label": label, "bytes_per_element": 3 + 3 * SIZE[out] + inside}
    return Kernel("stain_apply_triton", "stain_apply", pointers | strides, flags, divisible, **rest)


DATA = [
    *_transform(),
    _stain("f32", "*fp32", False, False),
    _stain("f16-lasso", "*fp16", True, False),
    _stain("u8-inside", "*u8", False, True),
]
