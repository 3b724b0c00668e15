"""Steps whose loss is many times its running median: their losses become NaN, so that the step changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..distributed import World

WINDOW = 100  # losses of a running median
FEWEST = 20  # losses of a task before it is judged


class LossSpikes:
    """The recent losses of each task, on the device and the same on all ranks.

    A loss of 0 or below, as of a batch without labels, neither counts nor is judged. Neither do the losses of a
    step with a spike, so that the medians stay those of the other steps.

    Args:
        factor: a loss above this many times its median is a spike.
        tasks: their names.
        device: of the losses.
        world: the ranks, over which a loss is averaged.
    """

    def __init__(self, factor: float, tasks: Sequence[str], device: torch.device, world: World) -> None:
        self._factor, self._tasks, self._world = factor, list(tasks), world
        self._recent = torch.full((WINDOW, len(self._tasks)), torch.nan, dtype=torch.float64, device=device)
        self._counted = torch.zeros(len(self._tasks), dtype=torch.int64, device=device)

    def screen(self, losses: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a step, and bool [K]: the tasks whose loss is a spike, which is NaN then. No wait for the
        device."""
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        values = self._world.sum(values) / self._world.size
        finite = values.isfinite()
        spikes = finite & (self._counted >= FEWEST) & (values > self._factor * self._recent.nanmedian(0).values)
        counts = finite & (values > 0) & ~spikes.any()
        row = (self._counted % WINDOW)[None]
        self._recent.scatter_(0, row, torch.where(counts, values, self._recent.gather(0, row)))
        self._counted += counts
        screened = {
            name: torch.where(spike, torch.nan, 1.0).to(loss.dtype) * loss
            for (name, loss), spike in zip(losses.items(), spikes.unbind(), strict=True)
        }
        return screened, spikes

    def state_dict(self) -> dict[str, Tensor]:
        """The recent losses [WINDOW, K], and how many of each task have counted until now [K]."""
        return {"recent": self._recent, "counted": self._counted}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict`; {} of a run without spikes until now begins with no losses."""
        self._recent.copy_(state.get("recent", torch.tensor(torch.nan)))
        self._counted.copy_(state.get("counted", torch.tensor(0)))
