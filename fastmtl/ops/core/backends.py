"""The backends that exist on this machine, why others do not, and the choice of one for given inputs.

An op registers one implementation per backend. `auto` uses the first that can run, in the order of registration
(fastest first); an explicit choice that cannot run raises with the reason. The choice happens inside the
`torch.library` op, so `torch.compile` does not see it; it costs one dictionary look-up.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...errors import UserError

BACKENDS = ("auto", "reference", "triton", "cuda", "cpp", "numba", "cupy")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALF_AND_SINGLE = FLOATING[:3]


class BackendError(UserError, RuntimeError):
    """The requested backend cannot run these inputs here."""


_PACKAGE = Path(__file__).parents[2]


@cache
def _load_extension() -> ModuleType | str:
    """The compiled extension, or why it is missing."""
    try:
        module = importlib.import_module("fastmtl._C")
    except ModuleNotFoundError:
        return _not_built(_PACKAGE)
    except ImportError as error:  # built, but a dependency is missing; the error names it
        return f"fastmtl._C does not load: {error}"
    # An editable install of another clone offers its own, built from other code. The file itself may be a link: package
    # managers link installed files to their cache.
    return module if Path(str(module.__file__)).parent.resolve() == _PACKAGE.resolve() else _not_built(_PACKAGE)


def _not_built(package: Path) -> str:
    """Why there is no extension: Python that starts in a clone imports its code, built or not."""
    clone = package.parent
    if not (clone / "setup.py").is_file():
        return "fastmtl._C is not built: reinstall fastmtl on a machine with a C++17 compiler"
    build = f"`python setup.py build_ext --inplace` in {clone} builds it"
    if any(any(Path(folder).glob("fastmtl/_C*.so")) for folder in sys.path):
        build = f"start Python in another folder to use the installed fastmtl, or {build}"
    return f"fastmtl._C is not built in {clone}, whose code is imported: {build}"


def extension() -> ModuleType:
    """The compiled extension.

    Raises:
        BackendError: it is missing, with the reason.
    """
    loaded = _load_extension()
    if isinstance(loaded, str):
        raise BackendError(loaded)
    return loaded


def interpreting() -> bool:
    """Whether Triton kernels run in the interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def missing(backend: str) -> str | None:
    """Why `backend` cannot run anything on this machine; None if it can."""
    if backend == "cpp":
        loaded = _load_extension()
        return loaded if isinstance(loaded, str) else None
    if backend in ("triton", "numba", "cupy") and importlib.util.find_spec(backend) is None:
        return f"{backend} is not installed"
    if backend == "triton":
        if interpreting() or torch.cuda.is_available():
            return None
        return "no GPU here"
    if backend in ("cuda", "cupy") and not torch.cuda.is_available():
        return "no GPU here"
    if backend == "cuda":
        loaded = _load_extension()
        if isinstance(loaded, str):
            return loaded
        return None if loaded.cuda else "fastmtl._C was built without nvcc: reinstall fastmtl on a machine with nvcc"
    return None


Kernels = Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]  # forward and backward by name of backend


@dataclass(frozen=True)
class Implementation:
    """One backend's implementation of an op, with the device and the dtypes of the first tensor that it accepts."""

    run: Callable[..., Any]
    device: str  # "cpu", "cuda" or "any"
    dtypes: tuple[torch.dtype, ...] = FLOATING

    def refuses(self, backend: str, tensor: torch.Tensor) -> str | None:
        """Why this implementation cannot take `tensor`; None if it can."""
        if reason := missing(backend):
            return reason
        on_interpreter = backend == "triton" and interpreting() and tensor.device.type == "cpu"
        if self.device not in ("any", tensor.device.type) and not on_interpreter:
            return f"it runs on {self.device} tensors; got one on {tensor.device.type}"
        if tensor.dtype not in self.dtypes:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            return f"it takes {names}; got {str(tensor.dtype).removeprefix('torch.')}"
        return None


_OPS: dict[str, dict[str, Implementation]] = {}
_warned: set[tuple[str, str]] = set()


def register(op: str, implementations: dict[str, Implementation]) -> None:
    """Make `implementations` (fastest first) the backends of `op`."""
    _OPS[op] = implementations


def register_kernels(op: str, pairs: Kernels) -> None:
    """Make `pairs` of forward and backward the backends of `op` and `op_backward`: "cpp" for the CPU and "triton" for
    NVIDIA, both in half and single precision, "reference" for all tensors."""
    devices = {"cpp": "cpu", "triton": "cuda"}
    for name, direction in ((op, 0), (f"{op}_backward", 1)):
        register(
            name,
            {
                backend: Implementation(pair[direction], devices[backend], HALF_AND_SINGLE)
                if backend in devices
                else Implementation(pair[direction], "any")
                for backend, pair in pairs.items()
            },
        )


def choose(op: str, backend: str, tensor: torch.Tensor) -> Callable[..., Any]:
    """The function that runs `op` on inputs like `tensor`.

    Raises:
        BackendError: the requested `backend` cannot run here, with the reason.
    """
    implementations = _OPS[op]
    if backend != "auto":
        if backend not in implementations:
            raise BackendError(f"`{op}` has no backend {backend!r}; it has {', '.join(implementations)} and auto.")
        if reason := implementations[backend].refuses(backend, tensor):
            raise BackendError(f"backend {backend!r} cannot run `{op}`: {reason}. Use backend='auto'.")
        return implementations[backend].run
    for name, implementation in implementations.items():
        # The interpreter is slow and for tests: it runs only if requested by name.
        if name == "triton" and tensor.device.type == "cpu":
            continue
        if implementation.refuses(name, tensor) is None:
            if name == "reference":
                _warn_if_slow(op, tensor)
            return implementation.run
    raise BackendError(f"`{op}` has no backend for {tensor.device.type} {tensor.dtype}.")


def _warn_if_slow(op: str, tensor: torch.Tensor) -> None:
    """Warn once if a faster backend for this input is missing here."""
    for name, implementation in _OPS[op].items():
        made_for_it = implementation.device == tensor.device.type and tensor.dtype in implementation.dtypes
        reason = missing(name)
        if made_for_it and reason and (op, name) not in _warned:
            _warned.add((op, name))
            warnings.warn(
                f"`{op}` falls back to the reference, which is slow: backend {name!r} is missing because {reason}. "
                "`fastmtl doctor` shows all backends.",
                stacklevel=2,
            )


def check_backend(backend: object) -> None:
    """Raise ValueError unless `backend` is a known name."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}; got {backend!r}.")


def table() -> dict[str, dict[str, str]]:
    """op -> backend -> "ready" or why not, for `fastmtl doctor`."""
    return {
        op: {name: missing(name) or _ready(name) for name in implementations} for op, implementations in _OPS.items()
    }


def gpu_fallbacks() -> dict[str, str]:
    """Missing backend -> what this machine's GPU does without it; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    losses = {
        "cuda": "optimizer steps on the GPU are not fused",
        "cupy": "stain statistics on the GPU are counted by torch, in more passes",
    }
    return {name: f"{loss}: {reason}" for name, loss in losses.items() if (reason := missing(name))}


def _ready(backend: str) -> str:
    if backend == "cpp":
        return f"ready ({extension().isa()}, {platform.machine()})"
    if backend == "triton" and not torch.cuda.is_available():
        return "ready (interpreter only)"
    return "ready"
