"""What a compiled kernel's machine code (SASS) says: registers, stack, and the instructions of its hot loop."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"BRA.*`\((\.L_x_\d+)\)")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")


@dataclass(frozen=True)
class HotLoop:
    """The innermost loop that reads most from global memory, or else the whole kernel. Two loops that read the same
    amount, one after the other, are added.

    Attributes:
        instructions: of one thread.
        barriers, shuffles, special: of them, block barriers, exchanges in a warp, special functions (exp, log, rcp).
        loads: bytes per thread of each load from global memory, widest first.
    """

    instructions: int
    barriers: int
    shuffles: int
    special: int
    loads: tuple[int, ...]


@dataclass(frozen=True)
class Usage:
    """Registers per thread, bytes of local memory per thread (spilled registers, and frames of called routines), shared
    bytes per block."""

    registers: int
    stack_bytes: int
    shared_bytes: int


def usage(kernel: Any) -> Usage:
    """What Triton's compiled kernel occupies."""
    text = _tool("cuobjdump", kernel, "--dump-resource-usage")
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", text)}
    return Usage(numbers["REG"], numbers["STACK"], kernel.metadata.shared)


def hot_loop(kernel: Any) -> HotLoop:
    """Read it from the machine code of Triton's compiled kernel; takes half a second."""
    instructions, loops = _parse(_tool("nvdisasm", kernel, "-c"))

    def loads(part: tuple[int, int]) -> list[int]:
        return sorted((_width(one) for one in instructions[slice(*part)] if _opcode(one) == "LDG"), reverse=True)

    loops = [loop for loop in loops if loads(loop)]
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    most = max((sum(loads(loop)) for loop in innermost), default=0)
    hot = [loop for loop in innermost if sum(loads(loop)) > 0.9 * most] or [(0, len(instructions))]
    counts = sum((Counter(_opcode(one) for one in instructions[slice(*loop)]) for loop in hot), Counter[str]())
    number, special = counts.total() - counts["NOP"], counts["MUFU"] + counts["I2F"]
    return HotLoop(number, counts["BAR"], counts["SHFL"], special, tuple(size for loop in hot for size in loads(loop)))


def _parse(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The instructions in order, and the loops as (first, after last)."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.search(line):
            branch = _BRANCH.search(found[1])
            if branch and branch[1] in labels and labels[branch[1]] < len(instructions):  # backwards: the end of a loop
                loops.append((labels[branch[1]], len(instructions) + 1))
            instructions.append(found[1].strip())
    return instructions, loops


def _tool(name: str, kernel: Any, option: str) -> str:
    """What one of the tools that Triton brings along prints about the kernel."""
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([str(path), option, file.name], capture_output=True, text=True, check=True).stdout


def _opcode(instruction: str) -> str:
    return _PREDICATE.sub("", instruction).split()[0].split(".")[0]


def _width(load: str) -> int:
    """Bytes that a thread loads."""
    modifiers = _PREDICATE.sub("", load).split()[0].split(".")
    for modifier, size in (("128", 16), ("64", 8), ("U8", 1), ("S8", 1), ("U16", 2), ("S16", 2)):
        if modifier in modifiers:
            return size
    return 4
