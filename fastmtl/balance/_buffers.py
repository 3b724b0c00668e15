"""Activation checkpoints run the forward pass again inside a backward; what it leaves in buffers is not left there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def still_buffers() -> Iterator[None]:
    """Inside, a module that a backward runs again works on copies of its buffers: running statistics move once a step,
    in the forward pass, however many backwards a checkpoint serves. Also a decorator.

    The copies are of the same number, shape and dtype: a checkpoint compares what both passes save. Modules that are
    called outside of a backward, in another thread for one, and those in evaluation mode keep their own.
    """
    kept: dict[nn.Module, dict[str, Tensor]] = {}

    @torch.compiler.disable
    def lend(module: nn.Module, _arguments: Any) -> None:
        if module in kept or torch._C._current_graph_task_id() == -1:
            return
        for part in module.modules():  # compiled ones call no hooks of what is in them
            if part not in kept:
                buffers = part._buffers.items() if part.training else ()
                own = kept[part] = {name: buffer for name, buffer in buffers if buffer is not None}
                part._buffers.update({name: buffer.detach().clone() for name, buffer in own.items()})

    handle = register_module_forward_pre_hook(lend)
    try:
        yield
    finally:
        handle.remove()
        for module, own in kept.items():
            module._buffers.update(own)
