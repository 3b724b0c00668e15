"""Averages of the weights during training (EMA, SWA)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

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
        self._averaged = deepcopy(model).requires_grad_(False)
        self._count = 0  # a number of the host: a step must not wait for the device or copy to it

    @property
    def module(self) -> nn.Module | None:
        """The model with averaged weights; None before averaging starts."""
        return self._averaged if self._count else None

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
        tensors = {f"{_PREFIX}{name}": value for name, value in self._averaged.state_dict().items()}
        return {"n_averaged": torch.tensor(self._count), **tensors}

    def load_state_dict(self, state: StateDict) -> None:
        self._averaged.load_state_dict(_module_state(state))
        self._count = int(state["n_averaged"])

    @torch.no_grad()
    def _update(self, weight: float) -> None:
        """Move the averages by `weight` towards the model. The first update, and integers (BatchNorm's count of
        batches), are copied."""
        for old, new in _by_dtype(self._averaged, self._model):
            if self._count and old[0].is_floating_point():
                torch._foreach_lerp_(old, new, weight)  # pyright: ignore[reportPrivateImportUsage]
            else:
                torch._foreach_copy_(old, new)  # pyright: ignore[reportPrivateImportUsage]
        self._count += 1


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


def _by_dtype(*modules: nn.Module) -> list[list[list[Tensor]]]:
    """The parameters and buffers of modules of one structure: for each dtype, one list per module."""
    found = [[*module.parameters(), *module.buffers()] for module in modules]
    pairs = list(zip(*found, strict=True))
    dtypes = dict.fromkeys(pair[0].dtype for pair in pairs)
    return [[list(part) for part in zip(*(p for p in pairs if p[0].dtype == dtype), strict=True)] for dtype in dtypes]
