"""Conversion of tensors to addresses and dtype codes for `fastmtl._C`, and its thread count."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

# Mirrors `enum class Element` in csrc/core/element.hpp.
_ELEMENTS = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float64: 3,
    torch.uint8: 4,
    torch.bool: 5,
    torch.int16: 6,
    torch.int32: 7,
    torch.int64: 8,
}
_forked = False
_here = threading.local()


def _after_fork() -> None:
    global _forked
    _forked = True


# libgomp's threads do not survive a fork: a parallel region in the child would wait for them forever.
os.register_at_fork(after_in_child=_after_fork)


def element(tensor: Tensor) -> int:
    """The code of the tensor's dtype in csrc."""
    return _ELEMENTS[tensor.dtype]


def address(tensor: Tensor | None) -> int:
    """The address of the first element; 0 for None, which csrc reads as "absent"."""
    return 0 if tensor is None else tensor.data_ptr()


def num_threads() -> int:
    """The number of threads of a CPU kernel: torch's setting; 1 in a forked child and in `on_one_thread`."""
    return 1 if _forked or getattr(_here, "alone", False) else torch.get_num_threads()


@contextmanager
def on_one_thread() -> Generator[None]:
    """CPU kernels called by this thread run on it alone.

    When other work occupies the cores, a parallel region would wait for threads that get no core.
    """
    before = getattr(_here, "alone", False)
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = before
