"""Averages of the weights during training (EMA, SWA), with torch.optim.swa_utils."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from .state_checks import StateDict


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
        average = _counts_copied(get_ema_multi_avg_fn(decay) if kind == "ema" else get_swa_multi_avg_fn())
        self._model, self._kind, self._start = model, kind, start
        self._averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)

    @property
    def module(self) -> nn.Module | None:
        """The model with averaged weights; None before averaging starts."""
        return self._averaged.module if self._averaged.n_averaged else None

    def on_step(self, epoch: int) -> None:
        """Call after each step; `epoch` counts from 0."""
        if self._kind == "ema" and epoch >= self._start:
            self._averaged.update_parameters(self._model)

    def on_epoch(self, epoch: int) -> None:
        """Call after each epoch; `epoch` counts from 0."""
        if self._kind == "swa" and epoch >= self._start:
            self._averaged.update_parameters(self._model)

    def state_dict(self) -> StateDict:
        return dict(self._averaged.state_dict())

    def load_state_dict(self, state: StateDict) -> None:
        self._averaged.load_state_dict(state)


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
    prefix = "module."  # AveragedModel's name for the copy
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _counts_copied(average: Callable[..., None]) -> Callable[..., None]:
    """`average` for floating-point values; BatchNorm's integer counts of batches are copied."""

    def apply(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        if averaged[0].is_floating_point():
            average(averaged, current, count)
        else:
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return apply
