"""Learning-rate schedules: a linear warm-up, then constant, a cosine to 0, or a step down whenever the validation score
(or loss) stops improving."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from ..config import OptimizerConfig
from .state_checks import StateDict


class Schedule:
    """Sets the learning rate of all parameter groups; the trainer steps it.

    Args:
        optimizer: its rates are the maximum of the schedule; a group's "lr_factor" is its rate relative to the others'.
        config: schedule, warmup and plateau options.
        num_steps: length of the whole schedule.
        better: whether `on_epoch` is given scores, where larger is better ("max"), or losses ("min").

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    >>> schedule = Schedule(optimizer, OptimizerConfig(schedule="plateau", warmup=0.0, plateau_patience=0), 10)
    >>> for score in (0.5, 0.6, 0.6):
    ...     schedule.on_epoch(score)
    >>> optimizer.param_groups[0]["lr"]
    0.1
    """

    def __init__(
        self, optimizer: Optimizer, config: OptimizerConfig, num_steps: int, better: Literal["max", "min"] = "max"
    ) -> None:
        warmup = round(config.warmup * num_steps)
        self.warmup, self.optimizer = warmup, optimizer
        falls = config.schedule == "cosine"

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            if not falls:
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, num_steps - warmup))))

        self._factor, self._by_step = factor, LambdaLR(optimizer, factor)
        self._by_score: ReduceLROnPlateau | None = None
        if config.schedule == "plateau":
            self._by_score = ReduceLROnPlateau(
                optimizer, better, factor=config.plateau_factor, patience=config.plateau_patience
            )

    def step(self) -> None:
        """After each step of the optimizer."""
        # LambdaLR sets the rate at every step and would undo the plateau's reduction.
        if self._by_score is None or self._by_step.last_epoch < self.warmup:
            self._by_step.step()

    def on_epoch(self, score: float | None) -> None:
        """After each epoch, with its validation score or loss if there is one."""
        if self._by_score is not None and score is not None and self._by_step.last_epoch >= self.warmup:
            self._by_score.step(score)

    def rescale(self, factor: float) -> None:
        """Go to `factor` times the current step, for example 2 where steps take half as many images from here on."""
        self._by_step.last_epoch = round(self._by_step.last_epoch * factor)

    def state_dict(self) -> StateDict:
        by_score = None if self._by_score is None else self._by_score.state_dict()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        factors = [_factor(group) for group in self.optimizer.param_groups]
        return {"by_step": self._by_step.state_dict(), "by_score": by_score, "rates": rates, "factors": factors}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from `state`, also on an optimizer with other groups: their rates differ by their factors only."""
        groups, by_step, by_score = self.optimizer.param_groups, dict(state["by_step"]), state["by_score"]
        before = state.get("factors", [1.0] * len(state["rates"]))  # states of earlier versions have none

        def spread(rates: Sequence[float]) -> list[float]:
            return [_ratio(_factor(group), before, rates) for group in groups]

        by_step |= {name: spread(by_step[name]) for name in ("base_lrs", "_last_lr")}
        self._by_step.load_state_dict(by_step | {"lr_lambdas": by_step["lr_lambdas"][:1] * len(groups)})
        if self._by_score is not None and by_score is not None:
            self._by_score.load_state_dict(by_score | {"min_lrs": by_score["min_lrs"][:1] * len(groups)})
        for group, rate in zip(groups, spread(state["rates"]), strict=True):
            group["lr"] = rate

    def rebase(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Continue with the highest rates, weight decay and momentum of `groups`, and with this schedule's own length.

        What a plateau has reduced the rates by stays.
        """
        now = self._factor(self._by_step.last_epoch)
        for number, (group, new) in enumerate(zip(self.optimizer.param_groups, groups, strict=True)):
            before = self._by_step.base_lrs[number]
            share = group["lr"] / before if self._by_score is not None and before else now
            rate = self._by_step.base_lrs[number] = new["initial_lr"]
            group |= {name: new[name] for name in ("weight_decay", "momentum") if name in new}
            group |= {"initial_lr": rate, "lr": rate * share}


def rate_of(optimizer: Optimizer) -> float:
    """The current learning rate of the groups with factor 1."""
    group = optimizer.param_groups[0]
    return group["lr"] / _factor(group)


def _factor(group: dict[str, Any]) -> float:
    return group.get("lr_factor", 1.0)


def _ratio(factor: float, factors: Sequence[float], rates: Sequence[float]) -> float:
    """The rate of a group with `factor`, given those of groups with `factors`; unchanged, to the bit, if it is one."""
    return rates[factors.index(factor)] if factor in factors else rates[0] * (factor / factors[0])
