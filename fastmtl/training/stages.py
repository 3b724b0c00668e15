"""Runs the stages of a recipe one after the other. A stage sets its tasks, its frozen parts and its initial weights.

Each stage has its own trainer; epochs and steps are counted over all stages.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.console import Console
from torch import nn

from ..balance import FusedStep
from ..builders import components, optimizers
from ..config import ConfigError, OptimizerConfig, Recipe, StageConfig
from ..distributed import World
from ..protocols import Loader, Observer, Task
from . import checkpoint, sharding
from .checkpoint_names import located
from .checkpoint_store import damage, newest_sound, set_aside
from .disk_policy import DiskPolicy
from .lr_finder import find_lr
from .lr_schedule import Schedule
from .set_shares import set_shares_of
from .stage_order import StageOrder
from .state_checks import StateDict
from .trainer import Trainer
from .weight_averaging import WeightAverage

if TYPE_CHECKING:
    from ..models import MultiTaskModel


class Stages:
    """The whole training of `recipe`.

    Args:
        recipe: a recipe without stages is trained as one stage with all tasks.
        model: on `device`. Recipes with stages need the methods of `models.MultiTaskModel`.
        tasks: all tasks of the recipe.
        device: where the model is.
        folder: of the checkpoints (the best one is of the current stage), the same on all ranks.
        observers: called after steps and epochs, on rank 0 only.
        world: the ranks.
        console: prints each new stage and the learning rate that was found.
        disk: see `Trainer`.

    Attributes:
        trainer: of the current stage; None before `begin` or `resume`.
        replaced_best: what `resume` found wrong with the best checkpoint, in a line; or "".
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        tasks: Sequence[Task],
        *,
        device: torch.device,
        folder: Path,
        observers: Sequence[Observer] = (),
        world: World | None = None,
        console: Console | None = None,
        disk: DiskPolicy | None = None,
    ) -> None:
        self.recipe, self.device = recipe, device
        self.model = cast("MultiTaskModel", model)  # or any model, of a recipe without stages
        self.folder, self.observers, self.world = folder, list(observers), world or World()
        self.console, self.disk = console or Console(quiet=True), disk
        self.order = StageOrder(recipe, tasks)
        self.stages = self.order.stages
        self.trainer: Trainer | None = None
        self.replaced_best = ""
        self._number = 0
        self._stopping = False
        self._factors: dict[int, dict[str, float]] = {}  # of each stage, known before FSDP2 divides the model
        self.shares = set_shares_of(recipe, device)
        self._asleep = tuple(getattr(model, "frozen", ()))  # parts that were frozen when the model was built

    def check(self) -> None:
        """Raise ConfigError, before training starts, for a stage that the model cannot be trained in."""
        missing = [name for name in ("select", "freeze", "unfreeze", "use_auxiliary") if not hasattr(self.model, name)]
        if self.recipe.stages and missing:
            raise ConfigError(f"recipe {self.recipe.name} has stages, and its model has no method {missing[0]!r}.")
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            for number in range(len(self.stages)):
                self._check_stage(number)
        self.leave()

    def _check_stage(self, number: int) -> None:
        stage, config = self.stages[number], self.order.optimizer(number)
        where = f"recipe {self.recipe.name}" + f": stages.{stage.name}" * bool(self.recipe.stages)
        try:
            self._prepare(number)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        if self.recipe.stages:
            self._check_learns(number)
        before = self.order.optimizer(max(number - 1, 0)).optimizer
        if stage.keep_optimizer and config.optimizer != before:
            raise ConfigError(f"{where} keeps the optimizer, which was {before}, and asks for {config.optimizer}.")
        self._factors[number] = optimizers.lr_factors(self.recipe, self.model, config)
        balancer = components.build_balancer(self.recipe, stage, self.model)
        optimizer = optimizers.build_optimizer(self.recipe, self.model, balancer, config, self._factors[number])
        update = optimizers.build_update(self.recipe, optimizer)
        if self.recipe.distributed.strategy == "fsdp2" and self.world.size > 1:
            by_fused_step = isinstance(update, FusedStep)
            training = self.recipe.training
            if problem := sharding.why_not(self.model, balancer, optimizer, training, by_fused_step=by_fused_step):
                problem = problem.removesuffix(".")  # a balancer tells it as a whole sentence
                raise ConfigError(f'{where}: with distributed.strategy = "fsdp2", {problem}. Use "ddp" or change it.')

    def begin(self, train: Loader) -> None:
        """Prepare the first stage, and save its initial state."""
        self._enter(0, train)

    def resume(self, train: Loader, *, rebased: bool = False) -> Trainer:
        """Prepare to continue from the newest checkpoint that is not damaged, in its stage; returns its trainer.

        If the best checkpoint is damaged, the state is saved as the best one until a later epoch is.

        Args:
            train: the training batches.
            rebased: continue with the recipe's rates and weight decay; otherwise with those of the checkpoint.

        Raises:
            CheckpointError: there is no checkpoint, all are damaged, or it is of another training.
            ConfigError: it is of a stage that the recipe lacks.
        """
        state: StateDict = {}
        path = self.folder
        if self.world.rank == 0:
            path, state, note = newest_sound(self.folder)
            if note:
                self.console.print(f"note: {note}")
        path = self.world.broadcast(path)
        state = state or checkpoint.load(path)
        progress = state.get("progress")
        if not isinstance(progress, dict) or "stage" not in progress:
            raise checkpoint.CheckpointError(f"checkpoint {path} is not of a training: it has no stage.")
        name = progress["stage"]
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ConfigError(f"{path} is of stage {name!r}, and the recipe has {', '.join(names)}.")
        self._number = names.index(name)
        self.trainer = self._make(self._number, len(train), self.order.optimizer(self._number))
        own = [dict(group) for group in self.trainer.optimizer.param_groups]
        self.trainer.resume(path, train, state)
        if rebased:
            self.trainer.scheduler.rebase(own)
            # A training that goes back keeps the new rates. On the disk before the run's recipe has them.
            self.trainer.save_durably(train)
        if problem := self.world.broadcast(damage(self.folder) if self.world.rank == 0 else ""):
            self.replaced_best = f"{problem} The checkpoint of step {self.trainer.step_count} replaces it."
            self.console.print(f"note: {self.replaced_best}")
            if self.world.rank == 0:
                set_aside(located(self.folder / "best"))
            self.trainer.replace_best(train)
        return self.trainer

    def fit(self, train: Loader, validation: Loader | None = None) -> dict[str, Any]:
        """Train to the end of the last stage; returns the last epoch's record."""
        record: dict[str, Any] = {}
        while True:
            assert self.trainer is not None, "`begin` or `resume` comes first"
            record = self.trainer.fit(train, validation) or record
            if self._number + 1 == len(self.stages):
                self.leave()
                return record
            self._enter(self._number + 1, train)

    @property
    def finished(self) -> bool:
        """Whether all stages have been trained."""
        return self._number + 1 == len(self.stages) and self.trainer is not None and self.trainer.finished

    def stop(self) -> None:
        """Save and stop after the current step."""
        self._stopping = True
        if self.trainer is not None:
            self.trainer.stop_requested = True

    def leave(self) -> None:
        """Put the model in its final form: unfrozen, every task selected, the auxiliary head of the last stage."""
        if self.recipe.stages:
            self.model.unfreeze()
            self.model.freeze(*self._asleep)
            ready_for_use(self.recipe, self.model)

    def _enter(self, number: int, train: Loader) -> None:
        before, stage = self.trainer, self.stages[number]
        self._number = number
        if stage.start == "best":
            self.world.broadcast(None)  # a barrier: rank 0 has written the checkpoint, which `Trainer.fit` waits for
            checkpoint.load_model(self.folder / "best", self.model, self.device)
        config = self.order.optimizer(number)
        self.trainer = self._make(number, len(train), config, before)
        if config.find_lr and not self.order.keeps_schedule(number):
            found = find_lr(self.trainer, train)
            self.console.print(f"learning rate found: {found:.2g}, where the loss falls fastest")
            self.trainer = self._make(number, len(train), replace(config, lr=found), before)
        if stage.name:
            self.console.print(self._describe(number))
        # Its initial weights: the best of the stage before, their possible source, will soon be removed.
        self.trainer.save(train)

    def _make(self, number: int, num_batches: int, config: OptimizerConfig, before: Trainer | None = None) -> Trainer:
        """The trainer of a stage; with `before`, its counts of epochs and steps continue."""
        recipe, stage, training = self.recipe, self.stages[number], self.recipe.training
        self._prepare(number)
        balancer = components.build_balancer(recipe, stage, self.model)
        optimizer = optimizers.build_optimizer(recipe, self.model, balancer, config, self._factors.get(number))
        average = None
        if training.average:
            average = WeightAverage(
                self.model, training.average, decay=training.average_decay, start=training.average_start
            )
        first = self.world.rank == 0
        trainer = Trainer(
            self.model,
            self.order.tasks(number),
            balancer,
            optimizer,
            replace(training, epochs=stage.epochs),
            device=self.device,
            update=optimizers.build_update(recipe, optimizer),
            scheduler=Schedule(
                optimizer,
                config,
                self.order.epochs_of_schedule(number) * num_batches,
                "min" if training.monitor == "loss" else "max",
            ),
            average=average,
            stage=stage.name,
            folder=self.folder if first else None,
            nonfinite=self.folder.parent / "nonfinite",
            observers=self.observers if first else [],
            world=self.world,
            shares=self.shares,
            disk=self.disk,
        )
        trainer.stop_requested = self._stopping
        if before is not None:
            trainer.follow(before)
            if stage.keep_optimizer:
                self._carry(number, before, trainer)
        return trainer

    def _prepare(self, number: int) -> None:
        if not self.recipe.stages:
            return
        stage, model = self.stages[number], self.model
        model.unfreeze()
        model.freeze(*self._asleep, *stage.freeze)
        model.select(*stage.tasks)
        _use_auxiliary(self.stages[: number + 1], model)

    def _carry(self, number: int, before: Trainer, after: Trainer) -> None:
        pairs = {parameter: parameter for parameter in before.optimizer.state}
        if self.order.keeps_balancer(number):
            after.balancer.load_state_dict(before.balancer.state_dict())
            pairs |= dict(zip(after.balancer.parameters(), before.balancer.parameters(), strict=True))
        for group in after.optimizer.param_groups:
            for parameter in group["params"]:
                old = pairs.get(parameter)
                if old is not None and old in before.optimizer.state:
                    after.optimizer.state[parameter] = copy.deepcopy(before.optimizer.state[old])
        if self.order.keeps_schedule(number):
            after.scheduler.load_state_dict(before.scheduler.state_dict())
        if after.scaler is not None and before.scaler is not None:
            after.scaler.load_state_dict(before.scaler.state_dict())

    def _describe(self, number: int) -> str:
        stage = self.stages[number]
        assert self.trainer is not None
        first = self.trainer.first_epoch + 1
        said = f"stage {number + 1}/{len(self.stages)}, {stage.name}: epochs {first} to {first + stage.epochs - 1}"
        said += f", tasks {', '.join(self.order.names(number))}"
        return said + f", frozen {', '.join(stage.freeze)}" * bool(stage.freeze)

    def _check_learns(self, number: int) -> None:
        """Check by a forward pass of two empty images that each task's output depends on a trainable parameter."""
        stage, training = self.stages[number], self.model.training
        outputs = self.model.eval()(components.empty_batch(self.recipe, 2, len(self.order.all_tasks), self.device))
        self.model.train(training)
        for task in self.order.tasks(number):
            output = outputs[task.name]
            parts = [output] if isinstance(output, torch.Tensor) else output
            if not any(one.requires_grad for one in parts if isinstance(one, torch.Tensor)):
                raise ConfigError(
                    f"recipe {self.recipe.name}: stages.{stage.name} freezes everything that task {task.name!r} could "
                    f"learn with ({', '.join([*self._asleep, *stage.freeze])}); leave a part of it, or the task out."
                )


def ready_for_use(recipe: Recipe, model: nn.Module) -> None:
    """Select every task, and the auxiliary head that the last stage used."""
    if recipe.stages:
        staged = cast("MultiTaskModel", model)
        staged.select()
        _use_auxiliary(recipe.stages, staged)


def _use_auxiliary(stages: Sequence[StageConfig], model: MultiTaskModel) -> None:
    """Switch to the last stride that one of `stages` names."""
    strides = [stage.auxiliary_stride for stage in stages if stage.auxiliary_stride]
    if strides:
        model.use_auxiliary(strides[-1])
