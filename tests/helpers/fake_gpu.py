"""A GPU without memory: code takes its path for a GPU on meta tensors, and its launches are counted.

A meta tensor has no data: whatever reads a number on the host raises, and so does a shape that depends on data. The
recorder adds the rest: copies between host and device, and tensors of the host that reach an operation of the device.
"""

from __future__ import annotations

import importlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
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
# They wait too, or allocate memory and launch nothing.
_WAITS = FORBIDDEN | {"aten::_linalg_check_errors"}
_NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_reshape_alias", "detach_"}
_ON_DEVICE = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class Launches(TorchDispatchMode):
    """What a device is given.

    Attributes:
        counts: torch's operations by name, and the project's kernels as "kernel NAME". An operation on a list of
            tensors counts as one.
        faults: what makes the host wait or copies between host and device, with the line that does it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def clear(self) -> None:
        """Forget what was counted, for example the first step's compilations and constants."""
        self.counts.clear()
        self.faults.clear()

    def sees(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`make`, which copies numbers of the host without an operation."""

        def made(*args, **kwargs) -> Tensor:
            tensor = make(*args, **kwargs)
            if tensor.device == DEVICE and not any(arg is tensor for arg in args):
                self.faults[f"{make.__name__}: numbers of the host reach the device, in {_caller()}"] += 1
            return tensor

        return made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        space, _, name = func._schema.name.partition("::")
        if space == "fastmtl":  # the implementation for a GPU, instead of the shapes that meta tensors would get
            with self:
                return func.redispatch(_ON_DEVICE, *args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        devices |= {leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)}
        if len(devices) > 1:
            self.faults[f"{name}: a tensor of the host meets one of the device, in {_caller()}"] += 1
        if DEVICE in devices:
            if f"aten::{name}" in _WAITS:
                raise AssertionError(f"{name}: the host waits for the device, in {_caller()}")
            if name not in _NO_LAUNCH and not func.is_view:
                self.counts[name] += 1
        return func(*args, **kwargs)


def _caller() -> str:
    """The line of the project that called torch."""
    frames = [frame for frame in traceback.extract_stack() if "fastmtl" in Path(frame.filename).parts]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "a test"


def _address(tensor: Tensor) -> int:
    """An address of its own for each storage, with room after it; a meta tensor's is 0."""
    return (tensor.untyped_storage()._cdata << 15) + tensor.storage_offset() * tensor.element_size()


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Inside, meta tensors take the path of a GPU, down to the launchers of the Triton, CUDA and CuPy kernels."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    launches, missing, refuses = Launches(), backends.missing, backends.Implementation.refuses

    def run(kernel, *_arguments, **_options) -> None:
        launches.counts[f"kernel {kernel.fn.__name__}"] += 1

    def takes(self, backend: str, tensor: Tensor) -> str | None:
        if tensor.device != DEVICE:
            return refuses(self, backend, tensor)
        fits = self.device in ("any", "cuda") and tensor.dtype in self.dtypes
        return None if fits else "it is for another device or dtype"

    def counted(name: str = ""):
        def launch(*arguments) -> None:
            launches.counts[f"kernel {name or arguments[0]}"] += 1

        return launch

    passes = GpuPasses()
    passes._launch = counted()
    extension = SimpleNamespace(**{name: counted(name) for name in ("fused_step_cuda", "sum_of_squares_cuda")})
    optimizer = importlib.import_module("torch.optim.optimizer")  # torch.optim removes the name
    with monkeypatch.context() as patch:
        for kind in (JITFunction, InterpretedFunction):
            patch.setattr(kind, "run", run)
        patch.setattr(backends.Implementation, "refuses", takes)
        patch.setattr(backends, "missing", lambda name: None if name in ("triton", "cuda") else missing(name))
        patch.setattr(fused_step, "extension", lambda: extension)
        for module in (stain_normalize, target):
            patch.setattr(module, "passes_of", lambda _images, _backend: passes)
        # What torch and the arena do on a GPU, and not on meta tensors.
        patch.setattr(arena, "_trainable", lambda shared: [p for p in shared if p.requires_grad])
        patch.setattr(Tensor, "data_ptr", _address, raising=False)
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])
        patch.setattr(nn.utils.clip_grad, "_has_foreach_support", lambda *_arguments: True)
        patch.setattr(torch, "autocast", lambda *_arguments, **_options: nullcontext())
        patch.setattr(torch.cuda, "current_stream", lambda _device=None: SimpleNamespace(cuda_stream=0))
        for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
            patch.setattr(owner, name, launches.sees(getattr(owner, name)), raising=False)
        with launches:
            yield launches
