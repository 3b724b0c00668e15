"""Compiles the Triton launches of every op in the registry for an NVIDIA GPU, over settings, sizes, dtypes, layouts.

A process of its own, because it replaces Triton's driver: `python -m helpers.launch_sweep 90 [quick]` (compute
capability; "quick": only as far as a launch can fail to specialise). Prints a line for each failure, and then the
number of launches and of different kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.benchmarks.hopper.launch_compiler import LaunchCompiler, run_with_gradient
from fastmtl.ops.gradients import matrix_solvers
from helpers.inputs import layout, mask
from helpers.op_inputs import Call
from helpers.op_spec import PIXELS, OpSpec
from helpers.op_specs import SPECS

MAPS = ((1, 2, 1, 1), (1, 3, 16, 16), (3, 1, 16, 16), (1, 1, 1, 64), (2, 40, 8, 8), (1, 1000, 4, 1))
ROWS = ((1, 1), (1, 16), (2, 1), (3, 1000), (8, 4096), (20, 4096), (64, 16))
SHAPES = {  # by stem: what a shape means differs
    "deep_supervision": ((2, 2), (16, 2), (64, 64)),
    "nt_xent": ((1, 1), (1, 16), (3, 64), (40, 128)),
    "gram": ROWS,
    "combine": ROWS,
    "pcgrad": ((1, 16), (2, 16), (5, 16)),
    "assignment": ((1, 1, 1), (1, 5, 1), (1, 1, 5), (2, 100, 20), (1, 700, 3)),
    "points": ((1, 1, 1, 1), (1, 1, 8, 8), (2, 3, 16, 16)),
}
DTYPES = {"gram": (torch.float32, torch.bfloat16, torch.float64), "combine": (torch.float32, torch.float64)}
METHODS = (
    ("macenko", "torchstain"), ("macenko", "staintools"), ("macenko", "tiatoolbox"), ("macenko", "cucim"),
    ("macenko", "histomicstk"), ("ruifrok", "torchstain"), ("vahadane", "staintools"),
)  # fmt: skip


def calls(spec: OpSpec) -> Iterator[tuple[str, Call]]:
    """Each setting of the op, then each size and dtype, then each layout and kind of mask."""
    usual = spec.make(spec.small, torch.float32, 0)
    first = usual.inputs[0] if usual.inputs else next(iter(usual.rest.values()))
    for case in spec.cases:
        options = dict(case(first.shape[1]))
        if options.get("mask") is PIXELS:
            options["mask"] = torch.ones(usual.rest["target"].shape, dtype=torch.bool)
        yield f"{sorted(options)}", usual._replace(rest=usual.rest | options)
    rows = "rows" in spec.name
    for shape in ((1, 10), (2, 16), (3, 1000)) if rows else SHAPES.get(spec.stem, MAPS):
        half = (torch.bfloat16,) if shape[0] * shape[-1] > 1 else ()
        for dtype in DTYPES.get(spec.stem, (torch.float32, *half)):
            call = spec.make(shape, dtype, 0)
            if not (of_classes(call) and shape[1] == 1):
                yield f"{shape} {dtype}", call
    if spec.maps and spec.stem != "deep_supervision":
        call = spec.make((2, 3, 16, 16), torch.float32, 0)
        for name in ("channels_last", "cropped", "expanded", "transposed", "misaligned"):
            yield name, call._replace(inputs=tuple(layout(x, name) for x in call.inputs))
        for kind in ("sample", "segment", "row") if "target" in call.rest else ():
            if not (of_classes(call) and kind == "segment"):
                yield f"{kind} mask", call._replace(rest=call.rest | {"mask": mask(kind, call.inputs[0].shape)})


def of_classes(call: Call) -> bool:
    """Whether the target is of class numbers, which have no channels."""
    return "target" in call.rest and call.rest["target"].dim() < call.inputs[0].dim()


def run(spec: OpSpec, call: Call) -> None:
    """Forward and backward."""

    def total(*inputs: Tensor) -> Tensor:
        found = spec.function(*inputs, **call.rest, backend="triton")
        parts = (found,) if isinstance(found, Tensor) else tuple(found)
        return torch.cat([part.flatten().float() for part in parts]).sum()

    run_with_gradient(total, *call.inputs)


def elsewhere() -> Iterator[tuple[str, Any]]:
    """Kernels that no op of the registry launches."""
    from fastmtl.kernels import cagrad_triton, draws_triton, graddrop_triton, sdmgrad_triton, stain_apply_triton

    for K in (1, 2, 5, 16):
        G, ones = torch.eye(K, dtype=torch.float64), torch.ones(K, dtype=torch.float64)
        yield f"eigh {K}", partial(matrix_solvers.eigh, G, backend="triton")
        yield f"qp {K}", partial(matrix_solvers.nonnegative_qp, G[None], ones[None], backend="triton")
        yield f"equilibrium {K}", partial(matrix_solvers.equilibrium, G[None], ones[None], 0.5, backend="triton")
        yield f"sdmgrad {K}", partial(sdmgrad_triton.descend, G, ones, ones.bool(), ones, 10.0, 0.5, 20)
        yield f"cagrad {K}", partial(cagrad_triton.cagrad, G, ones[:1].expand(3).contiguous(), 20)
    for count, start in ((1, 0), (16, 16), (1000, 1)):
        step = torch.zeros((), dtype=torch.int64)
        yield f"draws {count}", partial(draws_triton.uniform, step, 1, count, start)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for K in (1, 2, 16):
                J, ones = torch.zeros(K, count, dtype=dtype), torch.ones(K, dtype=torch.float64)
                yield f"graddrop {K} {dtype}", partial(graddrop_triton.graddrop, J, ones, ones, step, 1, start)
    yield "counts", partial(_counts, torch.zeros(1, 1, 16, 16))
    yield "class counts", partial(_counts, torch.zeros(1, 3, 16, 16))
    for size, batch in ((1, 1), (16, 1), (33, 3)):
        images = torch.zeros(batch, 3, size, size, dtype=torch.uint8)
        for out in (torch.float32, torch.float16, torch.uint8):
            for lasso in (False, True):
                arguments = torch.zeros(256), torch.zeros(batch, 44), torch.empty(images.shape, dtype=out)
                yield f"stain {size} {out}", partial(stain_apply_triton.apply, images, None, *arguments, lasso, False)
        for method, convention in METHODS:
            options = {"method": method, "convention": convention, "dtype": torch.float32, "backend": "triton"}
            yield f"{method} {convention} {size}", partial(_with_zeros, ops.stain_normalize, images, **options)
        for cells in (0, 5):
            yield f"transform {size} {cells}", partial(_transform, images, cells)


def _with_zeros(function: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Unwritten memory reads as 0, because torch indexes with it between the kernels."""
    with mock.patch.object(torch, "empty", torch.zeros):
        function(*arguments, **options)


def _counts(x: Tensor) -> None:
    if x.shape[1] == 1:
        ops.dice_bce_loss(x, torch.zeros_like(x, dtype=torch.uint8), return_counts=True, backend="triton")
    else:
        ops.dice_ce_loss(x, torch.zeros_like(x[:, 0], dtype=torch.int64), return_counts=True, backend="triton")


def _transform(images: Tensor, cells: int) -> None:
    from fastmtl.kernels import transform_triton

    count, field = len(images), torch.zeros(len(images), 2, *(cells + 3 if cells else 0,) * 2)
    places = torch.zeros(count, 5, dtype=torch.int64), torch.zeros(count, 2, 3), field
    numbers, keys, strength = torch.zeros(3), torch.zeros(count, dtype=torch.int32), torch.ones(count)
    out, colour = torch.empty(images.shape), torch.zeros(count, 3, 4)
    for noise in (None, strength):
        transform_triton.transform_image(*places, colour, noise, keys, numbers, numbers, 240, out)
    transform_triton.warp_image(*places, 240, images, images[:, 0])
    for nearest in (False, True):
        transform_triton.transform_mask(*places, 127, nearest, images[:, :1])
    transform_triton.add_noise(out, strength, keys, numbers, numbers)
    transform_triton.stitch(torch.zeros(count, 6, dtype=torch.int64), 1)


def main(capability: str, quick: str = "") -> int:
    """Exit status 1 if a launch does not compile."""
    import triton

    compiler, failed = LaunchCompiler(int(capability), whole=not quick).start(), set()
    jobs = [
        (f"{spec.name}: {name}", partial(run, spec, call))
        for spec in SPECS
        if "triton" in spec.kernels
        for name, call in calls(spec)
    ]
    for name, job in jobs + list(elsewhere()):
        compiler.failures.clear()
        job()
        for kernel, error in compiler.failures:
            if (kernel, error) not in failed:
                failed.add((kernel, error))
                print(f"{name}: {kernel} does not compile: {error}")
    kernels = {id(kernel) for _, _, kernel in compiler.launches}
    counts = f"{len(compiler.launches)} launches, {len(kernels)} different kernels, {len(failed)} failures"
    print(f"{counts}, Triton {triton.__version__}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
