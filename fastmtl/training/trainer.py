"""The training loop: outputs -> losses -> update (backward, clip, step).

With the fused step, or torch's fused optimizers, a step never waits for the device. With a NaN loss or an infinite
gradient the optimizer skips the step on the device; the next log step (`TrainingConfig.log_every`) does what
`TrainingConfig.on_nonfinite` says. All steps are checked before a checkpoint is saved.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..balance.plain_step import PlainUpdate
from ..balance.replay import Replay
from ..balance.set_balancers import SetBalancers
from ..config import TrainingConfig
from ..distributed import World
from ..protocols import Balancer, Batch, Loader, MixingLoader, Observer, Task, Update
from ..utils.deprecation import adopt
from ..utils.phases import phase
from .checkpoint_store import CheckpointStore
from .disk_policy import DiskPolicy
from .eval_loop import autocast_dtype, evaluate
from .gradient_stats import watch, watches
from .loss_spikes import LossSpikes
from .lr_schedule import rate_of
from .norm_statistics import NormStatistics
from .set_shares import SetShares
from .sharding import is_sharded, why_not
from .skipped_steps import GoBack, SkippedSteps
from .step_clock import StepClock
from .step_tasks import StepTasks
from .trainer_saving import TrainerSaving
from .weight_averaging import WeightAverage


class Trainer(StepTasks, TrainerSaving):
    """Trains one model on K tasks.

    Args:
        model: see `protocols.Model`; already on `device`; whole, or divided by `sharding.shard`.
        tasks: some or all of the tasks that the batches have labels for.
        balancer: computes gradients from K losses.
        optimizer: of the model's and the balancer's parameters.
        config: epochs (of this trainer), precision, clipping, patience.
        device: of the model and batches.
        update: computes an optimizer step from the losses; `PlainUpdate` if None.
        scheduler: stepped once per step.
        folder: for checkpoints, see `checkpoint_names`; None saves none.
        nonfinite: folder for batches whose loss or gradient was not finite, the same on all ranks; None writes none.
        observers: called at log steps and after epochs.
        world: the ranks that train this model, each on its part of the data; one process if None. All ranks create the
            same trainer and call the same methods; only rank 0 uses folder and observers.
        shares: moves the shares of data sets between epochs; the training loader must be a `MixingLoader`.
        disk: shared with the observers that write files; a new one of `config.on_disk_error` if None.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        balancer: Balancer,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        *,
        device: torch.device | str = "cpu",
        update: Update | None = None,
        scheduler: Any = None,
        average: WeightAverage | None = None,
        stage: str = "",
        folder: Path | None = None,
        nonfinite: Path | None = None,
        observers: Sequence[Observer] = (),
        world: World | None = None,
        shares: SetShares | None = None,
        disk: DiskPolicy | None = None,
    ):
        for task in tasks:
            adopt(task, headline="primary_metric")
        adopt(balancer, looks_twice="needs_reevaluation")
        self.model, self.tasks, self.balancer, self.optimizer = model, list(tasks), balancer, optimizer
        self.config, self.scheduler, self.observers = config, scheduler, list(observers)
        disk = disk or DiskPolicy(config.on_disk_error)
        self.store = None if folder is None else CheckpointStore(folder, config.keep_checkpoints, disk)
        self.average, self.stage, self.shares = average, stage, shares
        self.device, self.update = torch.device(device), update or PlainUpdate(optimizer, config.clip_norm)
        self.world = world or World()
        self._sharded = is_sharded(model)
        by_fused_step = not isinstance(self.update, PlainUpdate)
        if self._sharded and (why := why_not(model, balancer, optimizer, config, by_fused_step=by_fused_step)):
            raise ValueError(f"`model` must not be divided by FSDP2 here: {why}. Train it whole, or change that.")
        self.network = cast(nn.Module, torch.compile(model)) if config.compile else model
        self.dtype = autocast_dtype(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None
        self.epoch = self.step_count = self.first_epoch = self.bad_epochs = 0
        self.best_score = self.best_saved = float("-inf")
        self.pending: dict[str, Any] | None = None
        self.stop_requested = False
        self._saved_at = 0.0  # set where `fit` begins
        self.sums = torch.zeros(len(self.tasks), dtype=torch.float64, device=self.device)
        self.counts = torch.zeros_like(self.sums) if isinstance(balancer, SetBalancers) else None
        self.places = {}
        self.skipped = SkippedSteps(
            config,
            [task.name for task in tasks],
            self.device,
            scaled=self.scaler is not None,
            folder=nonfinite,
            rank=self.world.rank,
        )
        names, factor = [task.name for task in tasks], config.spike_factor
        self.spikes = LossSpikes(factor, names, self.device, self.world) if factor else None
        self.statistics = NormStatistics(model)
        self.columns = torch.tensor([task.column for task in tasks], device=self.device)  # of `Batch.has_label`

    def fit(self, train: Loader, validation: Loader | None = None) -> dict[str, Any]:
        """Train for `config.epochs`, or continue after `resume`; returns the last epoch's record.

        Checkpoints are written in the background; all of them are on the disk when this returns or raises.

        Raises:
            Interrupted: a rank was asked to stop; its state is saved.
            CheckpointError: a checkpoint could not be written; with on_disk_error = "continue" only the last one of the
                training raises.
            DiskError: an observer could not write.
        """
        record: dict[str, Any] = {}
        self.world.distribute(self.balancer, self.model)
        with self._saving():
            self._save_first(train)
            while not self.finished:
                if self.pending is None:
                    try:
                        clock, num_batches = self._train_epoch(train)
                    except GoBack as why:
                        self._restore(str(why), train)
                        continue
                    weights = self._constant_weights()  # of this epoch: closing it may change them
                    record = self._close_epoch(train, num_batches) | clock.so_far() | {"seconds": clock.seconds}
                    self.pending = {"record": record, "weights": weights}
                    if validation is not None:
                        self.save(train)
                record = self._finish_epoch(self.pending, train, validation)
            self._save_last(train)
        return record

    def _train_epoch(self, train: Loader) -> tuple[StepClock, int]:
        """The steps of an epoch, or of the rest of it; returns their times, and the number of batches in the epoch.

        Raises:
            Interrupted, NonFiniteError, GoBack: see `fit` and `SkippedSteps.judge`.
        """
        self.model.train()
        clock, number = StepClock(self.device, self.world.size), train.state_dict().get("batch", 0)
        for batch in clock.timed(train):
            number += 1
            if self.skipped.passes_over(self.step_count + 1):
                self._pass_over()
            else:
                batch = batch.to(self.device, non_blocking=True)
                if self.shares is not None:
                    self.shares.look(batch, self.model, self.shared(), self.plain_loss)
                losses, done = self.step(batch)
                log = self.step_count % self.config.log_every == 0 or number == len(train)
                if log or self.skipped.full:
                    self.skipped.judge(self.epoch, len(train))
                if log:
                    self._look(losses, done, number, len(train), clock.so_far())
            self._save_if_due(train)
        self.skipped.judge(self.epoch, len(train))  # the last batch may have been passed over
        return clock, number

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One update on `batch`; returns the losses and the balancer's statistics, on the device."""
        statistics, balancer = self.statistics.take(), self.balancer_of(batch)
        again = Replay(self.model, self.device) if balancer.needs_reevaluation else None
        with phase("forward"):
            found = losses = self.losses(batch)
        spikes = None
        if self.spikes is not None:
            with phase("communication"):
                losses, spikes = self.spikes.screen(self.with_others(found))
                losses = {name: losses[name] for name in found}
        shared, active = self.shared(), self.labels_of(batch).any(0)
        due = watches(self.config, self.step_count + 1, balancer)
        watched = watch(losses, shared, self.scaler) if due else {}
        with phase("balance"):
            done = watched | dict(self.update(balancer, losses, shared, scale=self.scaler, active=active))
        if self.scaler is not None:
            self.scaler.update()
        values = torch.stack([loss.detach().double() for loss in self.with_others(found).values()])
        skipped = done.pop("skipped")
        not_counted = self.skipped.add(self.step_count + 1, values, skipped, batch, spikes)
        self.add_losses(batch, values, not_counted)
        if self.scheduler is not None:
            self.scheduler.step()
        if again is not None:
            with phase("balance"):
                balancer.after_step(lambda: again(lambda: self.losses(batch)))
        with phase("communication"):
            self.statistics.share(self.world)
        self.statistics.undo(statistics, skipped)
        if self.average is not None:
            with phase("average"):
                self.average.on_step(self.epoch - self.first_epoch)
        self.step_count += 1
        return found, done

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Task name -> scalar loss, under autocast if the precision needs it. With several ranks, the mean of the
        losses over the ranks is the mean over all labelled samples."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.network(batch)
        losses = {task.name: task.loss(outputs[task.name], batch) for task in self.tasks_of(batch)}
        with phase("communication"):
            return self.world.losses(losses, self.labels_of(batch).sum(0))

    def _finish_epoch(self, pending: dict[str, Any], train: Loader, validation: Loader | None) -> dict[str, Any]:
        """Validate and record the epoch that has been trained; returns its record."""
        record, best, monitored = pending["record"], False, None
        if validation is not None:
            started = time.perf_counter()
            record["validation"] = found = self.evaluate(self._until_stopped(validation))
            record["validation_seconds"] = time.perf_counter() - started
            monitored = score = float(found["score"])
            if self.config.monitor == "loss":
                monitored = found["weighted_loss"] = sum(
                    weight * loss
                    for weight, loss in zip(pending["weights"], found["loss"].values(), strict=True)
                    if weight
                )
                score = -monitored
            best = self._is_best(score)
        if hasattr(self.scheduler, "on_epoch"):  # torch's schedulers only have steps
            self.scheduler.on_epoch(monitored)
        self.pending = None
        for observer in self.observers:  # before the checkpoint: each epoch that it counts as done is recorded
            observer.on_epoch(record)
        self.save(train, best=best)
        return record

    def evaluate(self, loader: Iterable[Batch]) -> dict[str, Any]:
        """See `eval_loop.evaluate`; uses the averaged weights if there are any."""
        with nullcontext() if self.average is None else self.average.applied() as averaged:
            network = averaged or self.network
            return evaluate(network, self.tasks, loader, device=self.device, dtype=self.dtype, world=self.world)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done and validated, or patience is exhausted."""
        done = self.epoch - self.first_epoch >= self.config.epochs
        return self.pending is None and (done or 0 < self.config.patience <= self.bad_epochs)

    def follow(self, before: Trainer) -> None:
        """Continue the counts of epochs and steps of `before`."""
        self.epoch = self.first_epoch = before.epoch
        self.step_count = before.step_count

    def _constant_weights(self) -> list[float]:
        """The weight of each task's validation loss in `training.monitor = "loss"`; 0 if it does not count."""
        constant = getattr(self.balancer, "constant_weights", None)
        losses = {task.name: total for task, total in zip(self.tasks, self.sums.unbind(), strict=True)}
        weights = [1.0] * len(losses) if constant is None else constant(losses).tolist()
        counted = losses.keys() & set(self.config.monitor_tasks) or losses.keys()  # all, of a stage without any of them
        return [weight * (name in counted) for name, weight in zip(losses, weights, strict=True)]

    def _close_epoch(self, train: Loader, num_batches: int) -> dict[str, Any]:
        """Count the epoch; returns its part of the record."""
        skipped = self.skipped.in_epoch
        losses = self.mean_losses(num_batches - skipped)  # waits for the device, so that the measured time is complete
        self.skipped.close_epoch()
        self.epoch += 1
        self.balancer.on_epoch()
        sets = {}
        if self.shares is not None:
            sets = {"sets": self.shares.close_epoch(cast(MixingLoader, train), self.world)}
        if self.average is not None:
            self.average.on_epoch(self.epoch - self.first_epoch - 1)
        return ({"stage": self.stage} if self.stage else {}) | {
            "epoch": self.epoch,
            "step": self.step_count,
            "loss": losses,
            "skipped": skipped,
            "lr": rate_of(self.optimizer),
            **sets,
        }

    def _look(
        self, losses: dict[str, Tensor], done: dict[str, Tensor], number: int, total: int, timing: dict[str, Any]
    ) -> None:
        """Average the losses over the ranks, and call the observers."""
        seen = torch.stack([loss.detach().double() for loss in losses.values()])
        values = (self.world.sum(seen) / self.world.size).tolist()
        record = dict(zip(losses, values, strict=True))
        telemetry = {name: value.tolist() for name, value in done.items()}
        for observer in self.observers:
            look = {"loss": record, "balance": telemetry, "skipped": self.skipped.in_epoch} | timing
            observer.on_step(self.step_count, self.epoch, number, total, look)

    def _pass_over(self) -> None:
        """Count a step without taking it."""
        self.step_count += 1
        if self.scheduler is not None:
            self.scheduler.step()

    def _is_best(self, score: float) -> bool:
        self.bad_epochs += 1
        # The first score is kept even if it is NaN (no labels in the validation set): there must be a "best".
        if score > self.best_score or not self.best_score > float("-inf"):
            self.best_saved, self.best_score, self.bad_epochs = self.best_score, score, 0
            return True
        return False
