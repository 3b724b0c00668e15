"""Weights that no gradient decides: an auxiliary weight, constant or falling, DWA's from the epochs' losses, and
random ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._gramian import to_device
from .base import LossBalancer, values
from .du_gate import place_of


class Constant(LossBalancer):
    """L_main + c L_auxiliary: the main tasks weigh 1, all others c.

    Args:
        weight: c.
        main: the main task, or several: names, or places in the losses.

    Raises:
        ValueError: c is negative; at `backward`, there is no such task.

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
        tasks = list(losses)
        several = isinstance(self.main, Sequence) and not isinstance(self.main, str)
        mains = {place_of(task, tasks) for task in (self.main if several else [self.main])}  # type: ignore[union-attr]
        numbers = [1.0 if place in mains else self._auxiliary() for place in range(len(tasks))]
        return to_device(numbers, next(iter(losses.values())).device)

    def _auxiliary(self) -> float:
        return self.weight


class Decay(Constant):
    """As `Constant` with c / t in epoch t, counted from 1: auxiliary tasks that help at first.

    Call `on_epoch()` at the end of every epoch; fastmtl's trainer does.

    >>> balancer, parameter = Decay(0.5), torch.nn.Parameter(torch.ones(2))
    >>> balancer.on_epoch()
    >>> balancer.backward({"a": parameter.sum(), "b": parameter.sum()})["weights"]
    tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    def __init__(self, weight: float = 1.0, *, main: str | int | Sequence[str | int] = 0) -> None:
        super().__init__(weight, main=main)
        self._epochs = 0

    def _auxiliary(self) -> float:
        return self.weight / (1 + self._epochs)

    def on_epoch(self) -> None:
        """An epoch is over."""
        self._epochs += 1

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names and the epochs so far."""
        return super().state_dict() | {"epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._epochs = state["epochs"]


class DWA(LossBalancer):
    """Dynamic weight average of Liu et al., CVPR 2019, equation 7: w = K softmax(r / T), r_k = L_k(t-1) / L_k(t-2).

    L_k(t) is the mean loss of epoch t over the steps in which the task was active, and K counts the tasks that have two
    such means; the others weigh 1, as all do in the first two epochs. A task without a label in a whole epoch keeps its
    last means. Call `on_epoch()` at the end of every epoch; fastmtl's trainer does.

    Args:
        temperature: T.

    Raises:
        ValueError: T is not positive.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive; got {temperature}.")
        super().__init__()
        self.temperature = temperature
        self._sums: Tensor | None = None  # [2, K]: of this epoch's losses, and in how many steps the task was active
        self._means: Tensor | None = None  # [2, K]: of the epoch before the last one, and of the last; NaN: none yet

    def __repr__(self) -> str:
        return f"DWA(temperature={self.temperature})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64 on the losses' device from the epochs' means: the same all epoch long; G is not read."""
        device = next(iter(losses.values())).device
        if self._means is None:
            return torch.ones(len(losses), dtype=torch.float64, device=device)
        older, newer = self._means.to(device)
        known = older.isfinite()
        share = torch.where(known, newer / older / self.temperature, -torch.inf).softmax(0)
        return torch.where(known, known.sum() * share, 1.0)

    def _weigh(
        self,
        losses: Mapping[str, Tensor],
        total: Mapping[str, Tensor],
        active: Tensor | None,
        shared: Iterable[Tensor],
        scale: Tensor | float | None,
        last: bool,
    ) -> dict[str, Tensor]:
        done = super()._weigh(losses, total, active, shared, scale, last)
        if last:
            found = values(total)
            counts = (found != 0 if active is None else active) & found.isfinite()
            fresh = torch.stack([torch.where(counts, found, 0.0), counts.double()])
            self._sums = fresh if self._sums is None else self._sums.to(fresh.device) + fresh
        return done

    def on_epoch(self) -> None:
        """An epoch is over: its means become the last ones."""
        if self._sums is None:
            return
        total, count = self._sums
        mean = torch.where(count > 0, total / count, torch.nan)
        before = torch.full_like(self._sums, torch.nan) if self._means is None else self._means.to(mean.device)
        self._means = torch.where(mean.isfinite(), torch.stack([before[1], mean]), before)
        self._sums = None

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names, this epoch's sums and the last two epochs' means."""
        return super().state_dict() | {"sums": self._sums, "means": self._means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sums, self._means = state["sums"], state["means"]


class RLW(LossBalancer):
    """Random loss weighting of Lin et al., TMLR 2022: w = softmax of K standard normal numbers, drawn at every step.

    All micro-batches of a step have the same numbers.

    Args:
        seed: of the numbers, drawn on the CPU; `state_dict` holds the generator's state.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self._seed, self._generator = seed, torch.Generator().manual_seed(seed)
        self._drawn: Tensor | None = None

    def __repr__(self) -> str:
        return f"RLW(seed={self._seed})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64, 1 in sum; the same until the step is over. G is not read."""
        if self._drawn is None:
            drawn = torch.randn(len(losses), dtype=torch.float64, generator=self._generator).softmax(0)
            self._drawn = to_device(drawn.tolist(), next(iter(losses.values())).device)
        return self._drawn

    def _weigh(
        self,
        losses: Mapping[str, Tensor],
        total: Mapping[str, Tensor],
        active: Tensor | None,
        shared: Iterable[Tensor],
        scale: Tensor | float | None,
        last: bool,
    ) -> dict[str, Tensor]:
        done = super()._weigh(losses, total, active, shared, scale, last)
        if last:
            self._drawn = None
        return done

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names and the generator's state."""
        return super().state_dict() | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._generator.set_state(state["generator"].cpu())
        self._drawn = None
