"""The one place where a tensor becomes an address, a dtype code and a thread count for `fastmtl._C`."""

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


# libgomp's threads do not survive a fork, and a parallel region in the child would wait for them for ever.
os.register_at_fork(after_in_child=_after_fork)


def element(tensor: Tensor) -> int:
    """The code of the tensor's dtype in csrc."""
    return _ELEMENTS[tensor.dtype]


def address(tensor: Tensor | None) -> int:
    """The address of the first element; 0 for None, which csrc reads as "absent"."""
    return 0 if tensor is None else tensor.data_ptr()


def num_threads() -> int:
    """How many threads a CPU kernel may use: torch's own setting; one in a forked child and in `on_one_thread`."""
    return 1 if _forked or getattr(_here, "alone", False) else torch.get_num_threads()


@contextmanager
def on_one_thread() -> Generator[None]:
    """CPU kernels that this thread calls meanwhile wake no others.

    Where other work holds the cores, a parallel region waits for threads that do not get one.
    """
    before = getattr(_here, "alone", False)
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = before
