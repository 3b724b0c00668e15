"""Averages of the weights during training (EMA, SWA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..balance.arena import local
from .sharding import is_sharded, like
from .state_checks import StateDict

_PREFIX = "module."  # of the averaged tensors in a checkpoint


class WeightAverage:
    """EMA: w' <- decay w' + (1 - decay) w after every step. SWA: the mean of the weights after every epoch.

    Running statistics of normalisation layers are averaged like the weights: unlike in the SWA paper, this needs no
    second pass over the training images, and frozen layers stay bit-equal.

    Args:
        model: the model that is trained.
        kind: "ema" or "swa".
        decay: of the EMA, in (0, 1).
        start: epochs before averaging starts.

    >>> import torch
    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(model, "swa")
    >>> for epoch, value in enumerate((1.0, 2.0, 6.0)):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     average.on_epoch(epoch)
    >>> average.module.weight.item()
    3.0
    """

    def __init__(self, model: nn.Module, kind: Literal["ema", "swa"], *, decay: float = 0.999, start: int = 0) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"`decay` must be from 0 to 1; got {decay!r}.")
        self._model, self._kind, self._decay, self._start = model, kind, decay, start
        self._averaged: nn.Module | None = None
        self._shards: dict[str, Tensor] = {}  # instead of it: a model divided by FSDP2 cannot be copied
        if is_sharded(model):
            self._shards = {name: value.detach().clone() for name, value in model.state_dict().items()}
        else:
            self._averaged = deepcopy(model).requires_grad_(False)
        self._count = 0  # a number of the host: a step must not wait for the device or copy to it

    @property
    def module(self) -> nn.Module | None:
        """The model with averaged weights; None before averaging starts, and with FSDP2: see `applied`."""
        return self._averaged if self._count else None

    @contextmanager
    def applied(self) -> Iterator[nn.Module | None]:
        """The model with averaged weights, which with FSDP2 is the model itself until the end; None before averaging
        starts."""
        if not self._shards or not self._count:
            yield self.module
            return
        pairs = self._pairs()
        _swap(pairs)
        try:
            yield self._model
        finally:
            _swap(reversed(pairs))  # a tensor that has two names was swapped twice

    def on_step(self, epoch: int) -> None:
        """Call after each step; `epoch` counts from 0."""
        if self._kind == "ema" and epoch >= self._start:
            self._update(1 - self._decay)

    def on_epoch(self, epoch: int) -> None:
        """Call after each epoch; `epoch` counts from 0."""
        if self._kind == "swa" and epoch >= self._start:
            self._update(1 / (self._count + 1))

    def state_dict(self) -> StateDict:
        """As torch.optim.swa_utils.AveragedModel: "n_averaged" and the model's tensors under "module."."""
        own = self._shards if self._averaged is None else self._averaged.state_dict()
        tensors = {f"{_PREFIX}{name}": value for name, value in own.items()}
        return {"n_averaged": torch.tensor(self._count), **tensors}

    def load_state_dict(self, state: StateDict) -> None:
        if self._averaged is not None:
            self._averaged.load_state_dict(_module_state(state))
        for name, value in self._shards.items():
            value.copy_(like(value, state[f"{_PREFIX}{name}"]))
        self._count = int(state["n_averaged"])

    @torch.no_grad()
    def _update(self, weight: float) -> None:
        """Move the averages by `weight` towards the model. The first update, and integers (BatchNorm's count of
        batches), are copied."""
        for old, new in _by_dtype(self._pairs()):
            if self._count and old[0].is_floating_point():
                torch._foreach_lerp_(old, new, weight)  # pyright: ignore[reportPrivateImportUsage]
            else:
                torch._foreach_copy_(old, new)  # pyright: ignore[reportPrivateImportUsage]
        self._count += 1

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each average, and the model's tensor."""
        if self._averaged is None:
            now = self._model.state_dict()
            return [(local(value), local(now[name])) for name, value in self._shards.items()]
        modules = ([*module.parameters(), *module.buffers()] for module in (self._averaged, self._model))
        return list(zip(*modules, strict=True))


def averaged_weights(state: Mapping[str, Any] | None) -> dict[str, Tensor] | None:
    """The model's weights from `WeightAverage.state_dict()`; None if there is no average yet.

    >>> average = WeightAverage(nn.Linear(1, 1), "ema")
    >>> averaged_weights(average.state_dict()) is None
    True
    >>> average.on_step(0)
    >>> sorted(averaged_weights(average.state_dict()))
    ['bias', 'weight']
    """
    if state is None or not state["n_averaged"]:
        return None
    return _module_state(state)


def _module_state(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}


@torch.no_grad()
def _swap(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for old, new in pairs:
        kept = new.clone()
        new.copy_(old)
        old.copy_(kept)


def _by_dtype(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[list[list[Tensor]]]:
    """For each dtype, the first and the second ones of the pairs."""
    dtypes = dict.fromkeys(pair[0].dtype for pair in pairs)
    return [[list(part) for part in zip(*(p for p in pairs if p[0].dtype == dtype), strict=True)] for dtype in dtypes]
