"""Learning-rate schedules: a linear warm-up, then constant, a cosine to 0, or a step down whenever the validation score
(or loss) stops improving."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from ..config import OptimizerConfig
from .state_checks import StateDict


class Schedule:
    """Sets the learning rate of all parameter groups; the trainer steps it.

    Args:
        optimizer: its rates are the maximum of the schedule.
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

        self._by_step = LambdaLR(optimizer, factor)
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

    def state_dict(self) -> StateDict:
        by_score = None if self._by_score is None else self._by_score.state_dict()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return {"by_step": self._by_step.state_dict(), "by_score": by_score, "rates": rates}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from `state`, also on an optimizer with other groups: all groups have one rate."""
        count = len(self.optimizer.param_groups)
        by_step = dict(state["by_step"])
        self._by_step.load_state_dict(by_step | {name: by_step[name][:1] * count for name in _PER_GROUP})
        if self._by_score is not None and state["by_score"] is not None:
            self._by_score.load_state_dict(state["by_score"] | {"min_lrs": state["by_score"]["min_lrs"][:1] * count})
        for group in self.optimizer.param_groups:
            group["lr"] = state["rates"][0]


_PER_GROUP = ("base_lrs", "lr_lambdas", "_last_lr")
