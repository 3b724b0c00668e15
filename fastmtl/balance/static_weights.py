"""Weights that do not depend on gradients: constant and decaying weights, DWA (from past losses), RLW (random)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmtl.ops.core.constants import to_device

from .base import values
from .draws import Draws
from .du_gate import place_of
from .loss_base import LossBalancer


class Constant(LossBalancer):
    """L_main + c L_auxiliary: the main tasks have weight 1, all others c.

    Args:
        weight: c, >= 0.
        main: the main task or tasks, by name or by index in the losses.

    Raises:
        ValueError: `weight` is negative; at `backward`, there is no such task.

    >>> parameter = torch.nn.Parameter(torch.ones(2))
    >>> Constant(0.5).backward({"a": parameter.sum(), "b": parameter.sum()})["weights"]
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, weight: float = 0.1, *, main: str | int | Sequence[str | int] = 0) -> None:
        if not weight >= 0:
            raise ValueError(f"`weight` must not be negative; got {weight}.")
        super().__init__()
        self.weight, self.main = weight, main

    def __repr__(self) -> str:
        return f"{type(self).__name__}(weight={self.weight}, main={self.main!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64 on the losses' device; G is not read."""
        main = self._mains(losses)
        return main + (1 - main) * self.weight

    def constant_weights(self, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64, as `Linear.constant_weights`."""
        return self.weights(None, losses)

    def _mains(self, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64: 1 for main tasks, 0 for the others."""
        tasks = list(losses)
        given = self.main if isinstance(self.main, Sequence) and not isinstance(self.main, str) else [self.main]
        mains = {place_of(task, tasks) for task in given}
        flags = [float(place in mains) for place in range(len(tasks))]
        return to_device(flags, next(iter(losses.values())).device)


class Decay(Constant):
    """`Constant` with weight c / t in epoch t, counted from 1: auxiliary tasks count less and less.

    Call `on_epoch()` at the end of every epoch; fastmtl's trainer does.

    >>> balancer, parameter = Decay(0.5), torch.nn.Parameter(torch.ones(2))
    >>> balancer.on_epoch()
    >>> balancer.backward({"a": parameter.sum(), "b": parameter.sum()})["weights"]
    tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    state_names = ("epochs",)

    def __init__(self, weight: float = 1.0, *, main: str | int | Sequence[str | int] = 0) -> None:
        super().__init__(weight, main=main)
        self._epochs = torch.zeros((), dtype=torch.float64)  # so far

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64 on the losses' device; G is not read."""
        main = self._mains(losses)
        return main + (1 - main) * self.weight / (1 + self._hold("epochs", main.new_zeros(())))

    def on_epoch(self) -> None:
        """End an epoch: the auxiliary weight decreases."""
        self._epochs.add_(1)


class DWA(LossBalancer):
    """Dynamic weight average of Liu et al., CVPR 2019, equation 7: w = K softmax(r / T), r_k = L_k(t-1) / L_k(t-2).

    L_k(t) is the mean loss of epoch t over the steps in which the task was active. K counts the tasks with two such
    means; the other tasks have weight 1, so all weights are 1 in the first two epochs. A task without labels in a whole
    epoch keeps its last means. Call `on_epoch()` at the end of every epoch; fastmtl's trainer does.

    Args:
        temperature: T, > 0.

    Raises:
        ValueError: `temperature` is not positive.
    """

    state_names = ("sums", "means")

    def __init__(self, temperature: float = 2.0) -> None:
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive; got {temperature}.")
        super().__init__()
        self.temperature = temperature
        self._sums: Tensor | None = None  # [2, K]: sum of this epoch's losses; steps in which the task was active
        self._means: Tensor | None = None  # [2, K]: means of the last but one and of the last epoch; NaN: none yet

    def __repr__(self) -> str:
        return f"DWA(temperature={self.temperature})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64 on the losses' device, constant within an epoch; G is not used."""
        device = next(iter(losses.values())).device
        none = torch.full((2, len(losses)), torch.nan, dtype=torch.float64, device=device)
        older, newer = self._hold("means", none)
        known = older.isfinite()
        share = torch.where(known, newer / older / self.temperature, -torch.inf).softmax(0)
        return torch.where(known, known.sum() * share, 1.0)

    def _ended(
        self, total: Mapping[str, Tensor], active: Tensor | None, shared: Iterable[Tensor], scale: Tensor | float | None
    ) -> None:
        found = values(total)
        counts = (found != 0 if active is None else active) & found.isfinite()
        fresh = torch.stack([torch.where(counts, found, 0.0), counts.double()])
        self._hold("sums", torch.zeros_like(fresh)).add_(fresh)

    def on_epoch(self) -> None:
        """End an epoch: its mean losses enter the next weights."""
        if self._sums is None:
            return
        total, count = self._sums
        mean = torch.where(count > 0, total / count, torch.nan)
        means = self._hold("means", torch.full_like(self._sums, torch.nan))
        means.copy_(torch.where(mean.isfinite(), torch.stack([means[1], mean]), means))
        self._sums.zero_()


class RLW(LossBalancer):
    """Random loss weighting of Lin et al., TMLR 2022: w = softmax of K standard normal numbers, drawn at every step.

    All micro-batches of a step use the same weights.

    Args:
        seed: of the random numbers, which are a hash of seed, step and position as in `PCGrad`.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self._seed, self._draws = seed, Draws(seed)
        self._drawn: Tensor | None = None

    def __repr__(self) -> str:
        return f"RLW(seed={self._seed})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64 with sum 1, constant within a step; G is not used."""
        if self._drawn is None:
            self._drawn = self._draws.normal(len(losses), next(iter(losses.values())).device).softmax(0)
            self._draws.advance()
        return self._drawn

    def _ended(
        self, total: Mapping[str, Tensor], active: Tensor | None, shared: Iterable[Tensor], scale: Tensor | float | None
    ) -> None:
        self._drawn = None

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names, and the seed and step of the numbers."""
        return super().state_dict() | {"draws": self._draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._draws.load_state_dict(state["draws"])
        self._drawn = None
