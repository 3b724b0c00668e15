"""Balancers by name, as recipes write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..names import check_options, nearest
from .base import GradientBalancer, LossBalancer
from .linear import Linear
from .pcgrad import PCGrad

_BALANCERS: dict[str, Callable[..., GradientBalancer | LossBalancer]] = {"linear": Linear, "pcgrad": PCGrad}


def list_balancers() -> list[str]:
    """The names `create_balancer` takes.

    >>> list_balancers()
    ['linear', 'pcgrad']
    """
    return sorted(_BALANCERS)


def create_balancer(name: str, **options: Any) -> GradientBalancer | LossBalancer:
    """The balancer of that name, made with `options`.

    Raises:
        ValueError: unknown name or option; the message lists the nearest.

    >>> type(create_balancer("pcgrad", reduction="mean")).__name__
    'PCGrad'
    """
    if name not in _BALANCERS:
        raise ValueError(f"unknown balancer {name!r}; {nearest(name, list_balancers())}")
    check_options(_BALANCERS[name], options, f"balancer {name!r}")
    return _BALANCERS[name](**options)
