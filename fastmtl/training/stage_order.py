"""What each stage of a recipe trains with, and what it continues from the stage before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..config import OptimizerConfig, Recipe, optimizer_of, stages_of
from ..protocols import Task


class StageOrder:
    """The stages of `recipe`, by number; a recipe without stages has one, with all `tasks`."""

    def __init__(self, recipe: Recipe, tasks: Sequence[Task]) -> None:
        self.recipe, self.all_tasks = recipe, list(tasks)
        self.stages = stages_of(recipe)

    def optimizer(self, number: int) -> OptimizerConfig:
        return optimizer_of(self.recipe, self.stages[number])

    def balancer(self, number: int) -> dict[str, Any]:
        return self.stages[number].balancer or self.recipe.balancer

    def tasks(self, number: int) -> list[Task]:
        names = self.stages[number].tasks
        return [task for task in self.all_tasks if task.name in names or not names]

    def names(self, number: int) -> list[str]:
        return [task.name for task in self.tasks(number)]

    def keeps_balancer(self, number: int) -> bool:
        """Whether this stage continues with the state of the balancer of the stage before."""
        return self._same(number, lambda n: (self.balancer(n), self.names(n)))

    def keeps_schedule(self, number: int) -> bool:
        """Whether this stage continues the learning-rate schedule of the stage before."""
        # With other tasks the score is another mean: the plateau would take a lower one for no progress.
        return self.stages[number].keep_optimizer and self._same(number, lambda n: (self.optimizer(n), self.names(n)))

    def epochs_of_schedule(self, number: int) -> int:
        """Epochs of all stages that share this one's schedule."""
        first = number
        while self.keeps_schedule(first):
            first -= 1
        last = number
        while last + 1 < len(self.stages) and self.keeps_schedule(last + 1):
            last += 1
        return sum(stage.epochs for stage in self.stages[first : last + 1])

    def _same(self, number: int, what: Callable[[int], Any]) -> bool:
        return number > 0 and what(number) == what(number - 1)
