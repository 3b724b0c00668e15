"""Learning-rate finder: steps with increasing rates; the result is the rate at which the loss fell fastest.

After Smith, "Cyclical learning rates for training neural networks", WACV 2017, and fastai's smoothing and stopping.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch

from ..errors import UserError
from ..protocols import Loader
from .trainer import Trainer

_ROUNDING = 1e-9  # relative rounding error of a running mean of equal losses: not a decrease
_SMOOTHING, _DIVERGED = (
    0.9,
    4.0,
)  # factor of the running mean of the losses; the sweep ends at this multiple of the lowest


class NoRateFound(UserError, RuntimeError):
    """The loss did not fall at any rate of the sweep."""


def find_lr(
    trainer: Trainer, loader: Loader, *, low: float = 1e-6, high: float = 1.0, num_steps: int = 60, num_batches: int = 4
) -> float:
    """The rate at which the tasks' losses fall most steeply over log(rate).

    The sweep cycles through a few batches, and each loss is divided by the first loss of its batch: this removes the
    differences between batches, which are larger than the change by one step.

    Weights, moments, balancer, loader and random state are restored. Every step synchronises with the device. All ranks
    must call it; they get the same rate.

    Args:
        trainer: executes the steps, without its schedule.
        loader: of the training batches.
        low, high: the first and last rate; the sweep ends earlier if the losses exceed four times their minimum.
        num_steps: number of rates, evenly spaced in log(rate).
        num_batches: number of batches in the cycle.

    Raises:
        NoRateFound: the losses never fall, or are not finite from the start.
    """
    saved = copy.deepcopy(trainer.state_dict(loader, everywhere=True))
    schedule, trainer.scheduler = trainer.scheduler, None
    trainer.world.distribute(trainer.balancer, trainer.model)
    training = trainer.model.training
    trainer.model.train()
    batches = [batch.to(trainer.device) for batch in itertools.islice(loader, num_batches)]
    first: list[torch.Tensor] = []
    rates, smooth, mean = [], [], 0.0
    try:
        for number in range(num_steps):
            rate = low * (high / low) ** (number / (num_steps - 1))
            for group in trainer.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_factor", 1.0)
            losses, _ = trainer.step(batches[number % len(batches)])
            seen = torch.stack([loss.detach().double() for loss in losses.values()])
            seen = trainer.world.sum(seen) / trainer.world.size
            if number < len(batches):
                first.append(seen)
            start = first[number % len(batches)]
            loss = torch.where(start == 0, 1.0, seen / start).mean().item()
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            value = mean / (1 - _SMOOTHING ** (number + 1))
            if not math.isfinite(value) or (smooth and value > _DIVERGED * min(smooth)):
                break
            rates.append(rate)
            smooth.append(value)
    finally:
        trainer.scheduler = schedule
        trainer.load_state_dict(saved, loader)
        trainer.skipped.clear()
        trainer.model.train(training)
    return steepest(rates, smooth)


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which `losses` fall fastest over log(rate), by central differences; rates beyond the minimum are
    ignored.

    Raises:
        NoRateFound: they never fall.

    >>> steepest([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [1.0, 0.98, 0.7, 0.5, 3.0])
    0.01
    """
    slopes = [
        0.0
        if abs(losses[i + 1] - losses[i - 1]) <= _ROUNDING * abs(losses[i])
        else (losses[i + 1] - losses[i - 1]) / (math.log(rates[i + 1]) - math.log(rates[i - 1]))
        for i in range(1, len(losses) - 1)
    ]
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    falling = [(slope, i) for i, slope in enumerate(slopes, 1) if slope < 0 and i <= lowest]
    if not falling:
        raise NoRateFound(
            "optimizer.find_lr: the losses fell at no learning rate of the sweep. Give optimizer.lr instead, or look "
            "at the targets."
        )
    return rates[min(falling)[1]]
