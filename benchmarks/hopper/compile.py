"""Compiles the Triton kernels for Hopper (sm_90) without a GPU: registers, spills, loads, shared memory.

A kernel is declared in losses.py, balancing.py or data.py: its module, its argument types, and the limits of its code.
The tests check these limits (tests/benchmarks/test_codegen.py), and `fastmtl bench --codegen` prints the findings.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_LOAD = re.compile(r"ld\.global\S*?\.(?:v(\d)\.)?[bfus](\d+)\s")
_NARROW = re.compile(r"tt\.addptr [^\n]*tensor<[^\n]*tensor<[\dx]*i32>")
SIZE = {"*u8": 1, "*i64": 8, "*bf16": 2, "*fp16": 2, "*fp32": 4, "*fp64": 8}


@dataclass(frozen=True)
class Kernel:
    """One compilation. `types` gives the Triton type of each run-time argument; a plain number makes it a constant.

    A tuple of types is a tuple of arguments; there "i32:16" is an integer known to be a multiple of 16.
    """

    module: str
    name: str
    types: Mapping[str, Any]
    constants: Mapping[str, object] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()  # integers known to be multiples of 16; pointers are always aligned
    wide_loads: int = 1  # least number of instructions that load 16 bytes per thread
    num_warps: int = 4
    label: str = ""
    wide_offsets: bool = False  # every tensor of offsets has 64 bits, although sizes have 32
    bytes_per_element: float = 0  # read and written per pixel, or per column of J; 0 if the work is not per element

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


@dataclass(frozen=True)
class Code:
    """The code of a kernel; `error` is the traceback if it did not compile."""

    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    loads: tuple[int, ...] = ()  # bytes per thread of each load from global memory, widest first
    narrow_offsets: int = 0  # number of pointer tensors made from 32-bit offsets
    error: str = ""

    @property
    def wide_loads(self) -> int:
        return sum(size >= 16 for size in self.loads)


def compile_kernels(kernels: list[Kernel]) -> dict[str, Code]:
    """str(kernel) -> its code. A separate process compiles, because Triton's interpreter may have replaced parts of
    Triton in this one.

    Raises:
        RuntimeError: the process failed as a whole, for example because Triton is not installed.
    """
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "fastmtl.benchmarks.hopper"]
    done = subprocess.run(command, env=environment, capture_output=True, input=pickle.dumps(kernels))
    if done.returncode:
        raise RuntimeError(f"compiling for sm_90 failed: {done.stderr.decode().strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Code(**(code | {"loads": tuple(code["loads"])})) for name, code in found.items()}


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
    """The report of ptxas; Triton also runs ptxas but discards the report."""
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


def main() -> None:
    """The separate process: pickled kernels on standard input, their codes as JSON on standard output."""
    found = {}
    for kernel in pickle.load(sys.stdin.buffer):
        try:
            found[str(kernel)] = asdict(_compile(kernel))
        except Exception:  # one kernel that does not compile must not hide the others
            found[str(kernel)] = asdict(Code(error=traceback.format_exc()))
    print(json.dumps(found))
