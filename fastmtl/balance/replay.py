"""Forward passes without side effects: evaluating a batch again, and recomputation by checkpoints in a backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

T = TypeVar("T")


class Replay:
    """Saves the random state when created, before the first forward pass; later calls run with that state.

    Balancers that evaluate a batch twice (FAMO's `after_step`) compare losses before and after the optimizer step:
    dropout must drop the same elements, and the running statistics of normalisation layers must not be updated twice.
    The layers stay in training mode and normalise with the batch, as in the first pass.

    Args:
        model: its normalisation layers keep their running statistics during a call.
        device: the random state of this device is saved and restored, besides the CPU's.

    >>> model = torch.nn.Dropout(0.5)
    >>> again = Replay(model, "cpu")
    >>> first = model(torch.ones(100))
    >>> torch.equal(again(lambda: model(torch.ones(100))), first)
    True
    """

    def __init__(self, model: nn.Module, device: torch.device | str) -> None:
        self._model, self._device = model, torch.device(device)
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, look: Callable[[], T]) -> T:
        """Return `look()`, computed without a graph; afterwards the random state is as before the call."""
        devices = [] if self._cuda is None else [self._device]
        with torch.random.fork_rng(devices=devices), _held_statistics(self._model):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            return look()


@contextmanager
def _held_statistics(model: nn.Module) -> Iterator[None]:
    held = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training and module.track_running_stats
    ]
    for module in held:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in held:
            module.track_running_stats = True


@contextmanager
def still_buffers() -> Iterator[None]:
    """Inside, a module that a backward runs again uses copies of its buffers. Running statistics are thus updated once
    per step, in the forward pass, regardless of how many backwards recompute a checkpoint. Also a decorator.

    The copies have the same number, shapes and dtypes, because a checkpoint compares what both passes save. Modules
    that are called outside of a backward (for example in another thread) or in evaluation mode use their own buffers.
    """
    kept: dict[nn.Module, dict[str, Tensor]] = {}

    @torch.compiler.disable
    def lend(module: nn.Module, _arguments: object) -> None:
        if module in kept or torch._C._current_graph_task_id() == -1:
            return
        for part in module.modules():  # compiled modules do not call the hooks of their submodules
            if part not in kept:
                buffers = part._buffers.items() if part.training else ()
                own = kept[part] = {name: buffer for name, buffer in buffers if buffer is not None}
                part._buffers.update({name: buffer.detach().clone() for name, buffer in own.items()})

    handle = register_module_forward_pre_hook(lend)  # type: ignore[arg-type]  # torch.compiler.disable is typed loosely
    try:
        yield
    finally:
        handle.remove()
        for module, own in kept.items():
            module._buffers.update(own)
