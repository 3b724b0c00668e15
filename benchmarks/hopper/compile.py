"""Runs the compilation of all cases in a process of its own and reads what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from .machine_code import HotLoop, Usage
from .prediction import Prediction, predict, warps_per_multiprocessor


@dataclass(frozen=True)
class Compiled:
    """One kernel of one case; `error` is why it did not compile. The rest is None where the time of a case does not
    depend on the kernel."""

    usage: Usage | None = None
    warps: int = 0  # that a multiprocessor holds at a time
    loop: HotLoop | None = None
    bytes_per_element: float = 0
    instructions_per_element: float = 0
    prediction: Prediction | None = None
    launches: tuple[str, ...] = ()  # of its case, forward and then backward
    error: str = ""


def compile_cases() -> dict[str, Compiled]:
    """ "kernel-label" -> what it compiles to. A separate process compiles, because it replaces Triton's driver.

    Raises:
        RuntimeError: the process failed as a whole, for example because Triton is not installed.
    """
    environment = os.environ | {"TRITON_DISABLE_LINE_INFO": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)  # Triton reads it when it is imported
    command = [sys.executable, "-m", "fastmtl.benchmarks.hopper"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"compiling for sm_90 failed: {done.stderr.strip()}")
    return {name: _read(row) for name, row in json.loads(done.stdout).items()}


def _read(row: dict[str, Any]) -> Compiled:
    if "error" in row:
        return Compiled(error=row["error"])
    usage = Usage(**row["usage"])
    warps = warps_per_multiprocessor(usage, row["num_warps"])
    if "loop" not in row:
        return Compiled(usage, warps)
    loop = HotLoop(**(row["loop"] | {"loads": tuple(row["loop"]["loads"])}))
    moved, per_thread = row["bytes_per_element"], row["per_thread"]
    prediction = predict(loop, warps / row["num_warps"], row["grid"], moved, per_thread)
    launches = tuple(row["launches"])
    return Compiled(usage, warps, loop, moved, loop.instructions / per_thread, prediction, launches)
