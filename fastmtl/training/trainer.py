"""The training loop: outputs -> losses -> update (backward, clip, step).

With the fused step, or torch's fused optimizers, a step never waits for the device. With a NaN loss or an infinite
gradient the optimizer skips the step on the device; the next log step (`TrainingConfig.log_every`) raises an error
with the task's name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..balance.plain_step import PlainUpdate
from ..balance.replay import Replay
from ..config import TrainingConfig
from ..distributed import World
from ..protocols import Balancer, Batch, Loader, Model, Observer, Task, Update
from ..utils.deprecation import adopt
from . import checkpoint
from .errors import Interrupted as Interrupted
from .errors import NonFiniteError as NonFiniteError
from .errors import OtherRanks as OtherRanks
from .eval_loop import autocast_dtype, evaluate
from .gradient_stats import watch, watches
from .lr_schedule import rate_of
from .trainer_state import TrainerState
from .weight_averaging import WeightAverage


class Trainer(TrainerState):
    """Trains one model on K tasks.

    Args:
        model: see `protocols.Model`; already on `device`.
        tasks: some or all of the tasks that the batches have labels for.
        balancer: computes gradients from K losses.
        optimizer: of the model's and the balancer's parameters.
        config: epochs (of this trainer), precision, clipping, patience.
        device: of the model and batches.
        update: computes an optimizer step from the losses; `PlainUpdate` if None.
        scheduler: stepped once per step.
        folder: for the checkpoints `last` and `best`; None saves none.
        observers: called at log steps and after epochs.
        world: the ranks that train this model, each on its part of the data; one process if None. All ranks create the
            same trainer and call the same methods; only rank 0 uses folder and observers.
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
        observers: Sequence[Observer] = (),
        world: World | None = None,
    ):
        for task in tasks:
            adopt(task, headline="primary_metric")
        adopt(balancer, looks_twice="needs_reevaluation")
        self.model, self.tasks, self.balancer, self.optimizer = model, list(tasks), balancer, optimizer
        self.config, self.scheduler, self.folder, self.observers = config, scheduler, folder, list(observers)
        self.average, self.stage = average, stage
        self.device, self.update = torch.device(device), update or PlainUpdate(optimizer, config.clip_norm)
        self.world = world or World()
        self.network = cast(nn.Module, torch.compile(model)) if config.compile else model
        self.dtype = autocast_dtype(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None
        self.epoch = self.step_count = self.first_epoch = self.bad_epochs = 0
        self.best_score = float("-inf")
        self.stop_requested = False
        # Per task: the epoch's sum of losses, and the number of non-finite losses; last: skipped steps.
        self.sums = torch.zeros(len(self.tasks), dtype=torch.float64, device=self.device)
        self.bad = torch.zeros(len(self.tasks) + 1, dtype=torch.int64, device=self.device)
        self.columns = torch.tensor([task.column for task in tasks], device=self.device)  # of `Batch.has_label`

    def fit(self, train: Loader, validation: Loader | None = None) -> dict[str, Any]:
        """Train for `config.epochs`, or continue after `resume`; returns the last epoch's record."""
        record: dict[str, Any] = {}
        self.world.distribute(self.balancer, self.model)
        while not self.finished:
            self.model.train()
            pace, number = _Pace(self.world.size), train.state_dict().get("batch", 0)
            for batch in pace.timed(train):
                losses, done = self.step(batch.to(self.device, non_blocking=True))
                number += 1
                if self.step_count % self.config.log_every == 0 or number == len(train):
                    self._look(losses, done, number, len(train), pace.so_far())
                if self.world.stopping(self.stop_requested):
                    self.save("last", train)
                    raise Interrupted(f"stopped at epoch {self.epoch + 1}, step {self.step_count}")
            weights = self._constant_weights()  # of this epoch: closing it may change them
            record = self._close_epoch(number) | pace.so_far() | {"seconds": pace.seconds}
            monitored: float | None = None
            if validation is not None:
                started = time.perf_counter()
                record["validation"] = found = self.evaluate(validation)
                record["validation_seconds"] = time.perf_counter() - started
                monitored = score = float(found["score"])
                if self.config.monitor == "loss":
                    monitored = found["weighted_loss"] = sum(
                        weight * loss for weight, loss in zip(weights, found["loss"].values(), strict=True) if weight
                    )
                    score = -monitored
                self._keep_best(score, train)
            if hasattr(self.scheduler, "on_epoch"):  # torch's schedulers only have steps
                self.scheduler.on_epoch(monitored)
            self.save("last", train)
            for observer in self.observers:
                observer.on_epoch(record)
        return record

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One update on `batch`; returns the losses and the balancer's statistics, on the device."""
        again = Replay(self.model, self.device) if self.balancer.needs_reevaluation else None
        losses = self.losses(batch)
        shared, active = list(cast(Model, self.model).shared_parameters()), self._has_label(batch).any(0)
        due = watches(self.config, self.step_count + 1, self.balancer)
        watched = watch(losses, shared, self.scaler) if due else {}
        done = watched | dict(self.update(self.balancer, losses, shared, scale=self.scaler, active=active))
        if self.scaler is not None:
            self.scaler.update()
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        self.sums += values
        self.bad += torch.cat([~values.isfinite(), done.pop("skipped").reshape(1)])
        if self.scheduler is not None:
            self.scheduler.step()
        if again is not None:
            self.balancer.after_step(lambda: again(lambda: self.losses(batch)))
        self.world.share_statistics(self.model)
        if self.average is not None:
            self.average.on_step(self.epoch - self.first_epoch)
        self.step_count += 1
        return losses, done

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Task name -> scalar loss, under autocast if the precision needs it. With several ranks, the mean of the
        losses over the ranks is the mean over all labelled samples."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.network(batch)
        losses = {task.name: task.loss(outputs[task.name], batch) for task in self.tasks}
        return self.world.losses(losses, self._has_label(batch).sum(0))

    def evaluate(self, loader: Loader) -> dict[str, Any]:
        """See `eval_loop.evaluate`; uses the averaged weights if there are any."""
        network = self._averaged or self.network
        return evaluate(network, self.tasks, loader, device=self.device, dtype=self.dtype, world=self.world)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience is exhausted."""
        done = self.epoch - self.first_epoch >= self.config.epochs
        return done or 0 < self.config.patience <= self.bad_epochs

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

    def _close_epoch(self, num_batches: int) -> dict[str, Any]:
        """Count the epoch; returns its part of the record."""
        sums = self.world.sum(self.sums) / self.world.size
        losses = (
            sums / max(num_batches, 1)
        ).tolist()  # synchronises with the device, so that the measured time is complete
        self.sums.zero_()
        self.epoch += 1
        self.balancer.on_epoch()
        if self.average is not None:
            self.average.on_epoch(self.epoch - self.first_epoch - 1)
        return ({"stage": self.stage} if self.stage else {}) | {
            "epoch": self.epoch,
            "step": self.step_count,
            "loss": {task.name: loss for task, loss in zip(self.tasks, losses, strict=True)},
            "lr": rate_of(self.optimizer),
        }

    def _look(
        self, losses: dict[str, Tensor], done: dict[str, Tensor], number: int, total: int, pace: dict[str, float]
    ) -> None:
        counts = self.bad.tolist()
        self.bad.zero_()
        names = [task.name for task, count in zip(self.tasks, counts, strict=False) if count]
        # A loss scaler uses infinite gradients to find its scale; without a scaler they are an error.
        if names or (counts[-1] and self.scaler is None):
            what = f"the loss of task {', '.join(map(repr, names))}" if names else "the gradient"
            raise NonFiniteError(
                f"{what} was NaN or infinite in {max(counts)} of the steps before step {self.step_count} "
                f"(epoch {self.epoch + 1}); those steps were skipped and the weights are finite. "
                "Lower optimizer.lr, set training.clip_norm, or look for broken targets."
            )
        seen = torch.stack([loss.detach().double() for loss in losses.values()])
        values = (self.world.sum(seen) / self.world.size).tolist()
        record = dict(zip(losses, values, strict=True))
        telemetry = {name: value.tolist() for name, value in done.items()}
        for observer in self.observers:
            look = {"loss": record, "balance": telemetry} | pace
            observer.on_step(self.step_count, self.epoch, number, total, look)

    def _keep_best(self, score: float, loader: Loader) -> None:
        self.bad_epochs += 1
        # The first score is kept even if it is NaN (no labels in the validation set): there must be a "best".
        if score > self.best_score or not self.best_score > float("-inf"):
            self.best_score, self.bad_epochs = score, 0
            self.save("best", loader)

    @property
    def _averaged(self) -> nn.Module | None:
        return None if self.average is None else self.average.module

    def _has_label(self, batch: Batch) -> Tensor:
        """bool [B, K], for this trainer's tasks only."""
        return batch.has_label.index_select(1, self.columns)

    def save(self, name: str, loader: Loader) -> None:
        """Write the checkpoint `folder`/`name`; all ranks call it. "best" has the averaged weights if there are any."""
        if self.folder is None and self.world.size == 1:
            return
        state = self.state_dict(loader)  # on every rank, because it gathers
        if name == "best" and (averaged := self._averaged) is not None:
            state |= {"model": dict(averaged.state_dict()), "average": None}
        if self.folder is not None:
            checkpoint.save(self.folder / name, state)


class _Pace:
    """Images per second and the fraction of time spent waiting for data, in one epoch."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks, self._images, self._waited = num_ranks, 0, 0.0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def timed(self, loader: Loader) -> Iterator[Batch]:
        """The loader's batches, with the waiting time measured."""
        mark = time.perf_counter()
        for batch in loader:
            self._waited += time.perf_counter() - mark
            self._images += len(batch)
            yield batch
            mark = time.perf_counter()

    def so_far(self) -> dict[str, float]:
        seconds = self.seconds
        return {"images_per_second": self._images * self._num_ranks / seconds, "waiting": self._waited / seconds}
