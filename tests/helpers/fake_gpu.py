"""A GPU without memory: the device path of a piece of code runs on meta tensors, and its launches are counted.

A meta tensor has no data, so whatever reads a number on the host raises, as does a shape that depends on data. The
recorder adds the rest: tensors made on the host that reach the device, and copies between both.
"""

from __future__ import annotations

import importlib
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmtl.balance import arena
from fastmtl.ops.core import backends
from fastmtl.ops.gradients import fused_step
from fastmtl.ops.stain import stain_normalize, target
from fastmtl.ops.stain.backends import GpuPasses
from helpers.capture import FORBIDDEN

DEVICE = torch.device("meta")
# They allocate or describe memory and launch nothing.
_NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_reshape_alias", "detach_"}
_ON_DEVICE = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class Launches(TorchDispatchMode):
    """Counts what a device would be given: torch's operations by name, and kernels of the project as `kernel NAME`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        space, _, name = func._schema.name.partition("::")
        if space == "fastmtl":
            with self:
                return func.redispatch(_ON_DEVICE, *args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        devices |= {kwargs["device"].type} if isinstance(kwargs.get("device"), torch.device) else set()
        if len(devices) > 1:
            self.faults[f"{name}: a tensor of the host meets one of the device, at {_caller()}"] += 1
        if DEVICE.type in devices and f"aten::{name}" in FORBIDDEN:
            raise AssertionError(f"{name}: the host waits for the device")
        if DEVICE.type in devices and name not in _NO_LAUNCH and not func.is_view:
            self.counts[name] += 1
        return func(*args, **kwargs)


def _caller() -> str:
    """The line of the project that called torch."""
    frames = [frame for frame in traceback.extract_stack() if "/fastmtl/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "a test"


def _address(tensor: Tensor) -> int:
    """An address of its own for each storage, with room after it; a meta tensor's is 0."""
    return (tensor.untyped_storage()._cdata << 15) + tensor.storage_offset() * tensor.element_size()


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Inside, meta tensors take the path of a GPU, down to the launchers of the Triton and CUDA kernels."""
    optimizer = importlib.import_module("torch.optim.optimizer")  # torch.optim removes the name
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    launches, missing = Launches(), backends.missing
    implementation, refuses = backends.Implementation, backends.Implementation.refuses

    def run(kernel, *_arguments, **_options) -> None:
        function = getattr(kernel, "fn", kernel)
        launches.counts[f"kernel {function.__name__}"] += 1

    def takes(self, backend: str, tensor: Tensor) -> str | None:
        if tensor.device != DEVICE:
            return refuses(self, backend, tensor)
        fits = self.device in ("any", "cuda") and tensor.dtype in self.dtypes
        return None if fits else "it is for another device or dtype"

    def launched(name: str):
        def launch(*arguments) -> None:
            launches.counts[f"kernel {name or arguments[0]}"] += 1

        return launch

    passes = GpuPasses()
    passes._launch = launched("")
    names = ("fused_step_cuda", "sum_of_squares_cuda")
    with monkeypatch.context() as patch:
        for kind in (JITFunction, InterpretedFunction):
            patch.setattr(kind, "run", run)
        patch.setattr(implementation, "refuses", takes)
        patch.setattr(backends, "missing", lambda name: None if name in ("triton", "cuda") else missing(name))
        patch.setattr(fused_step, "extension", lambda: SimpleNamespace(**{name: launched(name) for name in names}))
        patch.setattr(Tensor, "data_ptr", _address, raising=False)
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])
        patch.setattr(nn.utils.clip_grad, "_has_foreach_support", lambda *_arguments: True)
        patch.setattr(torch, "autocast", lambda *_a, **_k: nullcontext())
        patch.setattr(arena, "_trainable", lambda shared: [p for p in shared if p.requires_grad])
        for module in (stain_normalize, target):
            patch.setattr(module, "passes_of", lambda _images, _backend: passes)
        patch.setattr(torch.cuda, "current_stream", lambda _device=None: SimpleNamespace(cuda_stream=0))
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # else `torch.tensor(..., device=device)` copies unseen
        try:
            with launches:
                yield launches
        finally:
            torch._C._set_only_lift_cpu_tensors(before)
