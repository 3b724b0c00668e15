"""Linear scalarisation: given weights, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ._gramian import given_weights
from .base import LossBalancer, values


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

    def __repr__(self) -> str:
        return f"Linear(weights={self._given!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """The given weights as [K] float64 on the losses' device; G is not read."""
        return given_weights(self._given, losses, values(losses))
