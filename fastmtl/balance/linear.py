"""Linear scalarisation: given weights, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import LossBalancer


class Linear(LossBalancer):
    """One backward of sum_k w_k L_k with constant weights.

    Args:
        weights: task -> weight, or one weight per task in the order of the losses; 1 each if None.

    Raises:
        ValueError: at `backward`, the weights are not those of the losses' tasks.

    >>> parameter = torch.nn.Parameter(torch.ones(2))
    >>> losses = {"a": parameter.sum(), "b": parameter.square().sum()}
    >>> Linear({"a": 1.0, "b": 0.5}).backward(losses)
    {'weights': tensor([1.0000, 0.5000], dtype=torch.float64)}
    >>> parameter.grad
    tensor([2., 2.])
    """

    def __init__(self, weights: Mapping[str, float] | Sequence[float] | None = None) -> None:
        super().__init__()
        self._given = weights if weights is None or isinstance(weights, Mapping) else list(weights)
        self._cached: Tensor | None = None  # on the losses' device: a copy to it is made once, not at every step
        self._cached_for: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"Linear(weights={self._given!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """The given weights as [K] float64 on the losses' device; G is not read."""
        device = next(iter(losses.values())).device
        key = (device, *losses)
        if self._cached is None or self._cached_for != key:
            self._cached = torch.tensor(self._values(list(losses)), dtype=torch.float64, device=device)
            self._cached_for = key
        return self._cached

    def _values(self, tasks: list[str]) -> list[float]:
        if self._given is None:
            return [1.0] * len(tasks)
        if isinstance(self._given, Mapping):
            if set(self._given) != set(tasks):
                raise ValueError(f"`weights` must name the tasks {tasks}; got {list(self._given)}.")
            return [float(self._given[task]) for task in tasks]
        if len(self._given) != len(tasks):
            raise ValueError(f"`weights` must hold one weight per task, {len(tasks)}; got {len(self._given)}.")
        return [float(weight) for weight in self._given]
