"""The tasks of a step: all, or those that the data set of its batch has labels for."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..balance.set_balancers import SetBalancers
from ..distributed import World
from ..protocols import Balancer, Batch, Model, Task


class StepTasks:
    """The part of `Trainer` that knows the tasks of a step; `Trainer.__init__` sets the attributes."""

    model: nn.Module
    tasks: list[Task]
    balancer: Balancer
    device: torch.device
    world: World
    columns: Tensor  # of the tasks in `Batch.has_label`
    sums: Tensor  # [K] of the losses of this epoch's steps that were not skipped
    places: dict[tuple[str, ...] | None, tuple[Tensor, Tensor]]  # see `_places`
    counts: Tensor | None  # [K] number of these steps that computed each task; None if all do

    def tasks_of(self, batch: Batch) -> list[Task]:
        """The trainer's tasks that the batch can have labels for."""
        return [task for task in self.tasks if batch.concerns(task.name)]

    def balancer_of(self, batch: Batch) -> Any:
        """The balancer of the batch's tasks."""
        if isinstance(self.balancer, SetBalancers):
            return self.balancer.for_tasks(task.name for task in self.tasks_of(batch))
        return self.balancer

    def shared(self) -> list[Parameter]:
        """The parameters that the tasks share."""
        return list(cast(Model, self.model).shared_parameters())

    def plain_loss(self, batch: Batch) -> Tensor:
        """The sum of the losses of this rank's samples, in full precision and not compiled."""
        outputs = cast(Model, self.model)(batch)
        return torch.stack([task.loss(outputs[task.name], batch) for task in self.tasks_of(batch)]).sum()

    def labels_of(self, batch: Batch) -> Tensor:
        """bool [B, k], of the batch's tasks."""
        return batch.has_label.index_select(1, self.columns if batch.tasks is None else self._places(batch)[0])

    def with_others(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of all tasks; 0 for those that the batch cannot have labels for."""
        if len(losses) == len(self.tasks):
            return losses
        return {task.name: losses.get(task.name, torch.zeros((), device=self.device)) for task in self.tasks}

    def add_losses(self, batch: Batch, values: Tensor, not_counted: Tensor) -> None:
        """Add the losses [K] of a step to those of the epoch, unless it was skipped."""
        self.sums += torch.where(not_counted, 0.0, values)
        if self.counts is not None:
            self.counts += self._places(batch)[1] & ~not_counted

    def mean_losses(self, num_steps: int) -> dict[str, float]:
        """Task -> mean loss of an epoch of `num_steps` steps over those that computed the task, if any; begins the next
        epoch. Waits for the device."""
        sums = self.world.sum(self.sums) / self.world.size
        steps = torch.full_like(sums, num_steps) if self.counts is None else self.counts
        found = zip(self.tasks, (sums / steps.clamp(min=1)).tolist(), steps.tolist(), strict=True)
        means = {task.name: loss for task, loss, number in found if number or self.counts is None}
        self.sums.zero_()
        if self.counts is not None:
            self.counts.zero_()
        return means

    def _places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The columns [k] of the batch's tasks, and bool [K] which of the trainer's tasks they are; kept on the device
        for the next batch of the same tasks, so that the host does not wait."""
        if batch.tasks not in self.places:
            own = self.tasks_of(batch)
            columns = torch.tensor([task.column for task in own], device=self.device)
            self.places[batch.tasks] = columns, torch.tensor([task in own for task in self.tasks], device=self.device)
        return self.places[batch.tasks]
