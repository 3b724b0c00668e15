"""Reuse of the memory of large outputs after their last reference is gone.

On a CPU, glibc gives blocks over 32 MB back to the kernel at every free, and fresh pages are zeroed one fault at a
time: for the gradient of a large map of logits, or a combined gradient, that takes longer than computing it. Each
`Recycled` keeps the last block it gave out, and no more; `release_memory` frees them all.
"""

from __future__ import annotations

import sys
import threading
from weakref import WeakSet

import torch
from torch import Tensor

WORTHWHILE = 2**22  # bytes; smaller blocks stay in glibc's own lists
_ALL: WeakSet[Recycled] = WeakSet()


class Recycled:
    """Makes uninitialised tensors as `torch.empty_strided` does, in the memory of the last one if that is free."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._idle_holders = 0  # references to the storage of `_last` if no other object has one
        self._lock = threading.Lock()
        _ALL.add(self)

    def empty_strided(
        self, size: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """An uninitialised tensor; its memory is not reused while the tensor, a view or a graph refers to it."""
        with self._lock:
            last, wanted = self._last, (size, stride, dtype, device)
            if last is not None and (last.size(), last.stride(), last.dtype, last.device) == wanted:
                # A tensor made under inference_mode stays an inference tensor, which autograd refuses.
                same_mode = last.is_inference() == torch.is_inference_mode_enabled()
                # FSDP frees memory by resizing a storage to 0 while tensors still refer to it.
                whole = last.untyped_storage().nbytes() >= last.numel() * last.element_size()
                # The counts here do not include other processes that use shared memory.
                own = not last.is_shared()
                if same_mode and whole and own and _holders(last) <= self._idle_holders:
                    return last.detach()
            made = torch.empty_strided(size, stride, dtype=dtype, device=device)
            if made.numel() * made.element_size() >= WORTHWHILE and _can_count():
                self._last, self._idle_holders = made, _holders(made)
                return made.detach()
            return made

    def release(self) -> None:
        """Drop the kept memory; memory still in use elsewhere is not affected."""
        with self._lock:
            self._last = None


def release_memory() -> None:
    """Free the memory that ops on a CPU keep for their next large output (the last gradient of each loss, the last
    combined gradient), as `torch.cuda.empty_cache` does on a GPU.

    Tensors still in use are not touched, and the next output takes new memory.

    >>> release_memory()
    """
    for recycled in list(_ALL):
        recycled.release()


def _can_count() -> bool:
    return hasattr(torch._C, "_storage_Use_Count")  # private; without it memory is never reused


def _holders(tensor: Tensor) -> int:
    """The number of tensors, arrays, graph nodes and Python storages that refer to the tensor's memory."""
    storage = tensor.untyped_storage()  # one Python object per storage; its reference count shows other users
    return torch._C._storage_Use_Count(storage._cdata) + sys.getrefcount(storage)
