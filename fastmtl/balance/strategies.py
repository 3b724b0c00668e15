"""Strategies by name, and which method keeps its meaning under which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastmtl.utils.suggestions import nearest

from .approximate_strategies import Features, LastLayer
from .exact_strategies import Batched, Sequential, Strategy

if TYPE_CHECKING:
    from .gradient_balancer import GradientBalancer

_STRATEGIES = {strategy.name: strategy for strategy in (Sequential, Batched, Features, LastLayer)}


def create_strategy(balancer: GradientBalancer, name: str, reuse: int, layer: Tensor | None) -> Strategy:
    """The strategy of that name, if `balancer` can work with it.

    Raises:
        ValueError: no such name, an option out of range, or the method loses its meaning.
    """
    if name not in _STRATEGIES:
        raise ValueError(f"unknown `strategy` {name!r}; {nearest(name, list(_STRATEGIES))}")
    method = type(balancer).__name__
    if name not in balancer.strategies:
        raise ValueError(
            f"`strategy` of {method} must be one of {', '.join(balancer.strategies)}; got {name!r}: the method works "
            "on the gradients themselves, and under this strategy there are none of the shared parameters."
        )
    if not isinstance(reuse, int) or reuse < 1:
        raise ValueError(f"`reuse` must be a number of steps, at least 1; got {reuse!r}.")
    if reuse > 1 and not balancer.reusable:
        raise ValueError(f"`reuse` must be 1 for {method}: its update is no weighted sum of the step's gradients.")
    if layer is not None and name != "last_layer":
        raise ValueError(f"`layer` belongs to the strategy 'last_layer'; got {name!r}.")
    if balancer._ranks.shards_parameters and (name != "sequential" or reuse > 1):
        raise ValueError(f"`strategy` must be 'sequential' and `reuse` 1 under FSDP2; got {name!r} and {reuse}.")
    return LastLayer(reuse, layer) if name == "last_layer" else _STRATEGIES[name](reuse)
