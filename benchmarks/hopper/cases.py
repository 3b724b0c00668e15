"""The launches in the tables of benchmarks/README.md: ops as a training step calls them, and the bytes they move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.ops.gradients import matrix_solvers

from .launch_compiler import run_with_gradient
from .machine_code import HotLoop

Settings = Mapping[str, Any]  # a kernel's compile-time constants and the number of its warps


class Work(NamedTuple):
    """What one kernel does for each element (a pixel, a logit, a column of J).

    Attributes:
        bytes: read and written at least, each byte once.
        per_thread: elements that a thread handles in the kernel's hot loop, or in all if there is no loop.
    """

    bytes: float
    per_thread: Callable[[Settings, HotLoop], float]


@dataclass(frozen=True)
class Case:
    """One call, and the work of the kernels whose time depends on it; other kernels only have to compile.

    Attributes:
        label: behind the kernel's name in the table.
        run: makes the launches.
        work: by name of the kernel.
    """

    label: str
    run: Callable[[], object]
    work: Mapping[str, Work] = field(default_factory=dict)


def _block(settings: Settings, loop: HotLoop) -> float:
    return settings["BLOCK"] / (32 * settings["num_warps"])


def _pixels(settings: Settings, loop: HotLoop) -> float:
    return settings["ROWS"] * settings["COLUMNS"] * settings["STEPS"] / (32 * settings["num_warps"])


def _logits(channels: int) -> Callable[[Settings, HotLoop], float]:
    """Logits of a softmax kernel: all classes of its pixels, or the classes of a tile."""

    def per_thread(settings: Settings, loop: HotLoop) -> float:
        if "VEC" in settings:  # a thread has all classes of VEC pixels
            return settings["VEC"] * channels
        classes = settings.get("TILE") or settings["CLASSES"]
        return settings["BLOCK"] * min(classes, channels) / (32 * settings["num_warps"])

    return per_thread


def _columns(K: int, size: int) -> Callable[[Settings, HotLoop], float]:
    """Columns of J that a thread of the Gram kernels handles, counted by its loads, because its loop is unrolled. With
    more than one tile of rows, a column is handled once for each pair of tiles that a block has room for."""

    def per_thread(settings: Settings, loop: HotLoop) -> float:
        if "PAIRS" not in settings:
            return sum(loop.loads) / (K * size)
        tiles = -(-K // settings["T"])
        blocks = -(-(tiles * (tiles + 1) // 2) // settings["PAIRS"])
        return sum(loop.loads) / (2 * settings["T"] * size) / (blocks * settings["PAIRS"])

    return per_thread


def _size(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


_SHORT = {
    torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64",
    torch.uint8: "u8", torch.int64: "i64", torch.bool: "bool",
}  # fmt: skip


def _sigmoid(
    op: Callable[..., Tensor], names: tuple[str, str], dtype: torch.dtype, target: torch.dtype, suffix: str = "",
    shape: tuple[int, ...] = (8, 1, 1024, 1024), **options: Any,
) -> Case:  # fmt: skip
    """A loss of each logit by itself: forward and backward."""
    x, t = torch.empty(shape, dtype=dtype), torch.zeros(shape, dtype=target)
    mask = options.get("mask")
    read = _size(dtype) + _size(target) + (0 if mask is None else mask.numel() / x.numel())
    label = f"{_SHORT[dtype]}-{_SHORT[target]}{suffix}"
    run = partial(run_with_gradient, lambda x: op(x, t, backend="triton", **options), x)
    work = {names[0]: Work(read, _block), names[1]: Work(read + _size(dtype), _block)}
    return Case(label, run, work)


def _softmax(
    op: Callable[..., Tensor], names: tuple[str, str], dtype: torch.dtype, target: torch.dtype, C: int,
    suffix: str = "", shape: tuple[int, ...] = (4, 512, 512), **options: Any,
) -> Case:  # fmt: skip
    """A loss of each pixel's classes."""
    x, t = torch.empty((shape[0], C, *shape[1:]), dtype=dtype), torch.zeros(shape, dtype=target)
    mask = options.get("mask")
    read = _size(dtype) + (_size(target) + (0 if mask is None else mask.numel() / t.numel())) / C
    label = f"{_SHORT[dtype]}-{_SHORT[target]}-{C}{suffix}"
    run = partial(run_with_gradient, lambda x: op(x, t, backend="triton", **options), x)
    work = {names[0]: Work(read, _logits(C)), names[1]: Work(read + _size(dtype), _logits(C))}
    if C > 32:  # more than registers hold: a kernel for tiles of classes
        work = {f"{name}_tiled": one for name, one in work.items()}
        if names[0] == "softmax_sums":  # which reads the logits twice, 32 classes at a time, after their normalisers
            again, tiles = read - _size(dtype) + 8 / C, -(-C // 32)
            work["softmax_normalisers"] = Work(read + 8 / C, _logits(C))
            work["softmax_sums_tiled"] = Work(_size(dtype) + tiles * again, _logits(C))
            work["softmax_gradient_tiled"] = Work(read + 2 * _size(dtype), _logits(C))
    return Case(label, run, work)


def _gram(K: int, dtype: torch.dtype, P: int = 11_000_000) -> Case:
    J = torch.empty(K, P // max(1, K // 8) // 64 * 64, dtype=dtype)
    moved = K * _size(dtype)
    work = Work(moved, _columns(K, _size(dtype)))
    work = {"gram_partials_kernel": work, "gram_tiles_kernel": work}
    return Case(f"{_SHORT[dtype]}-{K}", lambda: ops.gram(J, backend="triton"), work)


def _combine(K: int, dtype: torch.dtype) -> Case:
    J, w = torch.empty(K, 11_000_000, dtype=dtype), torch.empty(K, dtype=torch.float64)
    moved = K * _size(dtype) + max(4, _size(dtype))
    return Case(
        f"{_SHORT[dtype]}-{K}", lambda: ops.combine(J, w if dtype == torch.float64 else w.float(), backend="triton"),
        {"combine_kernel": Work(moved, _block)},
    )  # fmt: skip


def _losses() -> list[Case]:
    f32, bf16, f16, u8, i64 = torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64
    dice_bce = partial(_sigmoid, ops.dice_bce_loss, ("dice_bce_sums", "dice_bce_gradient"))
    focal = partial(_sigmoid, ops.focal_loss, ("sigmoid_focal_sums", "sigmoid_focal_gradient"))
    mse = partial(_sigmoid, ops.mse_loss, ("regression_sums", "regression_gradient"))
    dice_ce = partial(_softmax, ops.dice_ce_loss, ("softmax_sums", "softmax_gradient"))
    softmax_focal = partial(
        _softmax, partial(ops.focal_loss, activation="softmax"), ("softmax_focal_sums", "softmax_focal_gradient")
    )
    return [
        dice_bce(f32, u8),
        dice_bce(f32, f32),
        dice_bce(bf16, u8),
        dice_bce(f16, i64),
        dice_bce(f32, u8, "-mask", mask=torch.ones(8, 1, 1024, 1024, dtype=torch.bool)),
        dice_bce(f32, u8, "-sample-mask", mask=torch.ones(8, dtype=torch.bool)),
        dice_bce(f32, u8, "-channels", shape=(8, 4, 512, 512), pos_weight=torch.ones(4), batch=True),
        Case("counts", partial(_count, torch.empty(2, 1, 512, 512))),
        focal(f32, u8),
        focal(bf16, u8),
        focal(f32, u8, "-1.5", gamma=1.5),
        mse(f32, f32),
        mse(f32, u8),
        mse(bf16, u8, "-mask", mask=torch.ones(8, 1, 1024, 1024, dtype=torch.bool)),
        *(dice_ce(f32, u8, C) for C in (2, 3, 4, 6, 8, 14, 19, 32)),
        *(dice_ce(bf16, u8, C) for C in (2, 3, 6, 14, 32)),
        dice_ce(f32, i64, 6),
        dice_ce(f32, u8, 6, "-sample-mask", mask=torch.ones(4, dtype=torch.bool)),
        dice_ce(f32, u8, 128),
        softmax_focal(f32, u8, 4),
        softmax_focal(bf16, u8, 14),
        softmax_focal(f32, u8, 128),
        Case("f32-u8-nearest", partial(_heads, torch.float32, "nearest", None)),
        Case("bf16-u8-area", partial(_heads, torch.bfloat16, "area", None)),
        Case("f32-u8-max-mask", partial(_heads, torch.float32, "max", torch.ones(2, 1, 512, 512, dtype=torch.bool))),
        *(Case(_SHORT[dtype], partial(_views, dtype)) for dtype in (f32, bf16, f16)),
    ]


def _count(x: Tensor) -> None:
    ops.dice_bce_loss(x, torch.zeros_like(x, dtype=torch.uint8), return_counts=True, backend="triton")


def _heads(dtype: torch.dtype, downsample: str, mask: Tensor | None) -> None:
    heads = [torch.empty(2, 1, 512 >> level, 512 >> level, dtype=dtype) for level in range(5)]
    target = torch.zeros(2, 1, 512, 512, dtype=torch.uint8)

    def loss(*heads: Tensor) -> Tensor:
        return ops.deep_supervision_loss(heads, target, downsample=downsample, mask=mask, backend="triton")

    run_with_gradient(loss, *heads)


def _views(dtype: torch.dtype) -> None:
    z = torch.empty(512, 128, dtype=dtype)
    run_with_gradient(lambda a, b: ops.nt_xent_loss(a, b, backend="triton"), z, z.clone())


def _balancing() -> list[Case]:
    f32, bf16, f16, f64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
    square = {size: torch.eye(size, dtype=f64) for size in (4, 16, 32, 64)}
    return [
        *(_gram(K, f32) for K in (2, 3, 8, 16, 64)),
        *(_gram(K, dtype) for K, dtype in ((8, bf16), (64, f16), (5, f64))),
        *(_combine(3, dtype) for dtype in (f32, bf16, f64)),
        *(
            Case(str(size), lambda size=size: ops.pcgrad_weights(square[size], backend="triton"))
            for size in (4, 16, 64)
        ),
        *(Case(str(size), partial(_solve, square[size])) for size in (4, 16, 32)),
    ]


def _solve(G: Tensor) -> None:
    matrices, ones = G.unsqueeze(0), torch.ones(1, len(G), dtype=torch.float64)
    matrix_solvers.eigh(G, backend="triton")
    matrix_solvers.equilibrium(matrices, ones, 0.5, backend="triton")
    matrix_solvers.nonnegative_qp(matrices, ones, backend="triton")


def _matching() -> list[Case]:
    points = torch.empty(2, 12544, 2)
    return [
        *(
            Case(f"{_SHORT[dtype]}-{queries}", lambda q=queries, d=dtype: _match(q, d))
            for queries, dtype in ((100, torch.float32), (200, torch.float64), (1000, torch.float32))
        ),
        *(
            Case(_SHORT[dtype], lambda d=dtype: _sample(torch.zeros(2, 20, 256, 256, dtype=d), points))
            for dtype in (torch.float32, torch.bfloat16, torch.uint8)
        ),
    ]


def _match(queries: int, dtype: torch.dtype) -> None:
    ops.linear_assignment(torch.empty(2, queries, 20, dtype=dtype), backend="triton")


def _sample(maps: Tensor, points: Tensor) -> None:
    ops.sample_points(maps, points, backend="triton")


def _data() -> list[Case]:
    """The kernels of the data plane are launched by their own functions: no op has them as a backend."""
    images, inside = torch.zeros(16, 3, 512, 512, dtype=torch.uint8), torch.ones(16, 512, 512, dtype=torch.uint8)
    stain = {"stain_apply": Work(0, _block)}

    def work(out: torch.dtype, masked: bool) -> dict[str, Work]:
        return {"stain_apply": stain["stain_apply"]._replace(bytes=3 + 3 * _size(out) + masked)}

    transforms = {  # as many source pixels as output pixels
        "transform_image_kernel": Work(3 + 12, _pixels),
        "warp_image_kernel": Work(3 + 4, _pixels),
        "transform_mask_kernel": Work(1 + 1, _pixels),
    }
    stained = ((torch.float32, False, False), (torch.float16, True, False), (torch.uint8, False, True))
    return [
        *(
            Case(name, partial(_transform, cells, noise), transforms)
            for name, cells, noise in (("affine", 0, 0), ("bent", 5, 1))
        ),
        *(
            Case(
                f"{_SHORT[out]}{'-lasso' if lasso else ''}{'-inside' if masked else ''}",
                partial(_stain, images, inside if masked else None, out, lasso),
                work(out, masked),
            )
            for out, lasso, masked in stained
        ),
    ]


def _stain(images: Tensor, inside: Tensor | None, out: torch.dtype, lasso: bool) -> None:
    from fastmtl.kernels import stain_apply_triton

    table, coefficients = torch.empty(256), torch.empty(len(images), 44)
    stain_apply_triton.apply(images, inside, table, coefficients, torch.empty(images.shape, dtype=out), lasso, False)


def _transform(cells: int, noise: int) -> None:
    from fastmtl.kernels import transform_triton

    count, size = 4, 256
    table, matrix = torch.zeros(count, 5, dtype=torch.int64), torch.zeros(count, 2, 3)
    field = torch.zeros(count, 2, cells + 3 if cells else 0, cells + 3 if cells else 0)
    numbers = torch.zeros(3)
    images, levels = torch.empty(count, 3, size, size), torch.empty(count, 3, size, size, dtype=torch.uint8)
    keys, strength = torch.zeros(count, dtype=torch.int32), torch.ones(count)
    transform_triton.transform_image(
        table, matrix, field, torch.zeros(count, 3, 4), strength if noise else None, keys, numbers, numbers, 240, images
    )
    transform_triton.warp_image(table, matrix, field, 240, levels, levels[:, 0])
    transform_triton.transform_mask(table, matrix, field, 127, not cells, levels[:, :1])
    transform_triton.add_noise(images, strength, keys, numbers, numbers)
    transform_triton.stitch(torch.zeros(2, 6, dtype=torch.int64), 300)


def cases() -> list[Case]:
    """All of them; inputs are made here, without values."""
    return [*_losses(), *_balancing(), *_matching(), *_data()]
