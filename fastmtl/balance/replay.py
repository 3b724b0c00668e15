"""Forward passes without side effects: evaluating a batch again, and what a checkpoint recomputes in a backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

T = TypeVar("T")


class Replay:
    """Remembers the random state now, before the first forward pass; later calls run under it.

    Balancers that look twice (FAMO's `after_step`) compare losses before and after the optimizer's step: dropout must
    drop the same elements, and the running statistics of normalisation layers must not see the batch a second time.
    The layers stay in training mode and normalise with the batch, as they did.

    Args:
        model: whose normalisation layers are held.
        device: whose generator is replayed besides the CPU's.

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
        """What `look` returns, without a graph; the random state goes on from where it was."""
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
    """Inside, a module that a backward runs again works on copies of its buffers: running statistics move once a step,
    in the forward pass, however many backwards a checkpoint serves. Also a decorator.

    The copies are of the same number, shape and dtype: a checkpoint compares what both passes save. Modules that are
    called outside of a backward, in another thread for one, and those in evaluation mode keep their own.
    """
    kept: dict[nn.Module, dict[str, Tensor]] = {}

    @torch.compiler.disable
    def lend(module: nn.Module, _arguments: object) -> None:
        if module in kept or torch._C._current_graph_task_id() == -1:
            return
        for part in module.modules():  # compiled ones call no hooks of what is in them
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
