"""Compiles every Triton launch of a piece of code for an NVIDIA GPU, without one, exactly as the GPU would get it.

A stand-in driver names the target, and a launch stops after compiling. So `ops.*(..., backend="triton")` on CPU tensors
compiles under its real specialisation: integers that are 1 become constants, multiples of 16 are known, globals are
compared. The interpreter does none of this. Outputs stay uninitialised. Use it in a process of its own: it replaces
Triton's driver for good.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class LaunchCompiler:
    """The launches of the code that ran since `start`, compiled, and those that failed.

    Attributes:
        compute_capability: 90 for Hopper, 80 for Ampere.
        whole: compile to machine code. False stops at Triton's first form, where a launch that cannot be specialised
            fails already, in a fifth of the time.
        launches: (kernel name, grid, Triton's compiled kernel), in order.
        failures: (kernel name, the error's last lines).
    """

    compute_capability: int = 90
    whole: bool = True
    launches: list[tuple[str, tuple[int, ...], Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def start(self) -> LaunchCompiler:
        """Replace the driver and the launch."""
        os.environ.pop("TRITON_INTERPRET", None)
        from triton.runtime.driver import driver
        from triton.runtime.jit import JITFunction

        from fastmtl.ops.core import backends

        driver.set_active(_stand_in(self.compute_capability))
        if not self.whole:
            _stop_early()
        launch: Any = JITFunction.run

        def compile_only(function: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            try:
                kernel = launch(function, *arguments, grid=grid, warmup=True, **options)
            except Exception as error:  # the launches after it must be compiled too
                lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
                self.failures.append((function.__name__, " | ".join(lines[-3:]) or type(error).__name__))
                return None
            self.launches.append((function.__name__, grid, kernel))
            return kernel

        setattr(JITFunction, "run", compile_only)  # noqa: B010 (Triton types it as a method of a generic class)
        backends.interpreting = lambda: True  # Triton's kernels may be given CPU tensors
        backends.missing.cache_clear()
        return self


def run_with_gradient(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """Forward and backward: all launches of both."""
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in inputs)
    out = function(*inputs)
    if out.requires_grad:
        torch.autograd.grad(out, inputs, torch.ones_like(out))


def _stop_early() -> None:
    from triton.backends.nvidia.compiler import CUDABackend

    add: Any = CUDABackend.add_stages

    def first_stage(backend: Any, stages: dict[str, Any], options: Any, language: Any) -> None:
        every: dict[str, Any] = {}
        add(backend, every, options, language)

        def nothing(module: object, metadata: dict[str, Any]) -> bytes:
            metadata |= {"name": "", "shared": 0}
            return b""

        stages |= {"ttir": every["ttir"], "cubin": nothing}

    setattr(CUDABackend, "add_stages", first_stage)  # noqa: B010 (as above)


def _stand_in(compute_capability: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    base: Any = DriverBase  # its methods have no types

    class StandIn(base):
        def __init__(self) -> None:
            pass

        @staticmethod
        def is_active() -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", compute_capability, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return 0

        def get_benchmarker(self) -> Any:
            return None

        def get_device_interface(self) -> Any:
            return torch.cuda

        def get_empty_cache_for_benchmark(self) -> Any:
            return None

        def clear_cache(self, cache: Any) -> None:
            pass

    return StandIn()
