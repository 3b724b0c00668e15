"""A CUDA graph on the CPU: what a step does to memory is written down once, and done again on command."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait for the device, or shapes depend on what is in memory.
FORBIDDEN = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::repeat_interleave",
}


class GraphCapture(TorchDispatchMode):
    """Inside, every operation runs and is kept with the tensors it read and wrote.

    As under a CUDA graph, `replay` runs the kernels alone: no line of Python, on the same memory. Whatever the step
    left in an attribute of Python, drew on the host or decided from a number is as it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kernels: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in FORBIDDEN:
            raise AssertionError(f"{name}: the host waits for the device")
        if name.startswith("aten::index") and any(_is_mask(index) for index in tree_leaves(args[1:2])):
            raise AssertionError("a shape depends on a mask")
        if func is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            raise AssertionError("a copy between host and device")
        done = func(*args, **(kwargs or {}))
        self._kernels.append((func, args, kwargs or {}, done))
        return done

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, done in self._kernels:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(done), tree_leaves(again), strict=True):
                # Views and what is written in place lie in their memory already.
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr() and old.numel():
                    old.copy_(new.view(old.shape))  # some are squeezed in place afterwards


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool
