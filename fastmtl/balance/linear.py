"""Linear scalarisation: constant weights, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .base import values
from .gramian import given_weights
from .loss_base import LossBalancer


class Linear(LossBalancer):
    """One backward of sum_k w_k L_k with constant weights.

    Args:
        weights: task -> weight, or one weight per task in the order of the losses; 1 each if None.
        normalise: divide each loss by its mean over the first epoch. During that epoch the divisor is the mean over the
            steps so far; in the first step it is the loss itself. Call `on_epoch()` at the end of every epoch;
            fastmtl's trainer does.

    Raises:
        ValueError: at `backward`, the weights do not match the tasks of the losses.

    >>> parameter = torch.nn.Parameter(torch.ones(2))
    >>> losses = {"a": parameter.sum(), "b": parameter.square().sum()}
    >>> Linear({"a": 1.0, "b": 0.5}).backward(losses)
    {'weights': tensor([1.0000, 0.5000], dtype=torch.float64)}
    >>> parameter.grad
    tensor([2., 2.])
    """

    def __init__(
        self, weights: Mapping[str, float] | Sequence[float] | None = None, *, normalise: bool = False
    ) -> None:
        super().__init__()
        self._given = weights if weights is None or isinstance(weights, Mapping) else list(weights)
        self.normalise = normalise
        self.state_names = ("sums", "epochs") if normalise else ()
        self._sums: Tensor | None = None  # [2, K]: sum of the first epoch's losses; steps in which the task was active
        self._epochs = torch.zeros((), dtype=torch.float64)  # so far

    def __repr__(self) -> str:
        return f"Linear(weights={self._given!r}{', normalise=True' * self.normalise})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """The given weights [K] float64 on the losses' device, divided by the first epoch's means if `normalise`.

        G is not used.
        """
        found = values(losses)
        w = given_weights(self._given, losses, found)
        if not self.normalise:
            return w
        total, count = self._hold("sums", torch.zeros_like(torch.stack([found, found])))
        mean = torch.where(count > 0, total / count, found)
        return torch.where((mean > 0) & mean.isfinite(), w / mean, w)

    def constant_weights(self, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64: the weights that are the same in every step of an epoch; `training.monitor = "loss"` uses them.

        Balancers without this method, whose weights are learned, drawn or measured, have weights of 1 there.
        """
        return self.weights(None, losses)

    def _ended(
        self, total: Mapping[str, Tensor], active: Tensor | None, shared: Iterable[Tensor], scale: Tensor | float | None
    ) -> None:
        if self.normalise:
            found = values(total)
            first = self._hold("epochs", found.new_zeros(())) == 0
            counts = (found != 0 if active is None else active) & found.isfinite() & first
            fresh = torch.stack([torch.where(counts, found, 0.0), counts.double()])
            self._hold("sums", torch.zeros_like(fresh)).add_(fresh)

    def on_epoch(self) -> None:
        """End an epoch; after the first one the means no longer change."""
        self._epochs.add_(1)
