"""A second look at a batch: the same random state, and no BatchNorm statistics moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

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
