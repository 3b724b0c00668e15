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

_LOAD = re.compile(r"ld\.global\S*?\.(?:v(\d)\.)?[bfus](\d+)\s")
_SIZE = {"*u8": 1, "*i64": 8, "*bf16": 2, "*fp16": 2, "*fp32": 4, "*fp64": 8}


@dataclass(frozen=True)
class Kernel:
    """One compilation. `types` names each run-time argument's Triton type, a plain number makes it a constant."""

    module: str
    name: str
    types: Mapping[str, str | int | float | None]
    constants: Mapping[str, object] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()  # integers known to be multiples of 16; pointers are aligned without being named
    wide_loads: int = 1  # at least so many instructions that load 16 bytes a thread
    num_warps: int = 4
    label: str = ""
    bytes_per_element: int = 0  # read and written per pixel, or per column of J; 0 where the work is not per element

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


@dataclass(frozen=True)
class Code:
    """What became of a kernel; `error` holds the traceback of one that did not compile."""

    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    loads: tuple[int, ...] = ()  # bytes a thread takes with each load from global memory, widest first
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


def _dice_bce(label: str, wide_loads: int, logits: str, target: str, mask: str | None = None) -> list[Kernel]:
    """Forward and backward on aligned planes of a multiple of 16 elements; 2048 a program are 16 a thread."""
    planes = _dice_bce_planes(logits, target, mask)
    sizes = dict.fromkeys(("samples", "channels", "pixels", "chunk", "splits", "blocks", "planes"), "i32")
    divisible = ("xb", "xc", "tb", "tc", "mb", "mc", "ob", "oc", "pixels", "chunk")
    flags = {"SQUARED": True, "HAS_MASK": mask is not None, "HAS_POS_WEIGHT": True, "BLOCK": 2048}
    pointers = {"pos_weight": "*fp32", "partials": "*fp32", "coefficients": "*fp32", "grad": "*fp32", "out": logits}
    types = planes | sizes | pointers | {"gb": "i64", "gc": "i64", "ob": "i64", "oc": "i64", "os": 1}
    read = _SIZE[logits] + _SIZE[target] + (_SIZE[mask] if mask else 0)
    module, rest = "dice_bce_triton", {"divisible": divisible, "wide_loads": wide_loads, "label": label}
    return [
        Kernel(module, "dice_bce_sums", types, flags | {"OVER_BATCH": True}, bytes_per_element=read, **rest),
        Kernel(module, "dice_bce_gradient", types, flags, bytes_per_element=read + _SIZE[logits], **rest),
    ]


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


KERNELS = [
    *_dice_bce("f32-u8", 5, "*fp32", "*u8"),
    *_dice_bce("f32-f32", 8, "*fp32", "*fp32"),
    *_dice_bce("bf16-u8", 3, "*bf16", "*u8"),
    *_dice_bce("f16-i64", 10, "*fp16", "*i64"),
    *_dice_bce("f32-u8-mask", 6, "*fp32", "*u8", "*u8"),
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
    for position, name in enumerate(function.arg_names):
        kind = kernel.constants.get(name, kernel.types.get(name))
        if name in kernel.constants or not isinstance(kind, str):
            signature[name], constants[(position,)] = "constexpr", kind
            continue
        signature[name] = kind
        if kind.startswith("*") or name in kernel.divisible:
            attributes[(position,)] = [["tt.divisibility", 16]]
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
