"""The training loop: outputs -> losses -> update (backward, clip, step), and nothing of any paper.

With the fused step, or torch's fused optimizers, a step never waits for the device. What goes wrong there (a NaN loss,
an infinite gradient) makes the optimizer skip the step on the device, and is raised, by task, at the next look
(`TrainingConfig.log_every`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from . import checkpoint
from .config import TrainingConfig
from .errors import UserError
from .inference import autocast_dtype, evaluate
from .protocols import Balancer, Batch, Loader, Task, Update
from .replay import Replay
from .update import PlainUpdate


class NonFiniteError(UserError, RuntimeError):
    """A loss or gradient was NaN or infinite; no parameter took that step."""


class Interrupted(UserError, RuntimeError):
    """Training stopped on request, after saving where it was."""


class Observer(Protocol):
    """Sees what happens; the progress line, metrics.jsonl and TensorBoard are observers."""

    def on_step(self, step: int, epoch: int, batch: int, num_batches: int, record: Mapping[str, Any]) -> None:
        """Every `log_every` steps: "loss" by task, "balance" (what the balancer did), and of the epoch so far
        "images_per_second" and "waiting", the share of time spent waiting for data."""

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """After each epoch and its validation: the line of metrics.jsonl."""


class Trainer:
    """Drives one model on K tasks.

    Args:
        model: see `protocols.Model`; already on `device`.
        tasks: in the columns' order of `Batch.present`.
        balancer: turns K losses into gradients.
        optimizer: of the model's and the balancer's parameters.
        config: epochs, precision, clipping, patience.
        device: where batches go.
        update: from losses to moved parameters, with this optimizer; `PlainUpdate` if None.
        scheduler: stepped once a step.
        folder: where `last` and `best` checkpoints go; None keeps none.
        observers: told what happens.
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
        scheduler: LRScheduler | None = None,
        folder: Path | None = None,
        observers: Sequence[Observer] = (),
    ):
        self.model, self.tasks, self.balancer, self.optimizer = model, list(tasks), balancer, optimizer
        self.config, self.scheduler, self.folder, self.observers = config, scheduler, folder, list(observers)
        self.device, self.update = torch.device(device), update or PlainUpdate(optimizer, config.clip_norm)
        self.network: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
        self.dtype = autocast_dtype(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None
        self.epoch = self.step_count = self.bad_epochs = 0
        self.best_score = float("-inf")
        self.stop_requested = False
        # Per task: the epoch's sum of losses, and how many were not finite; last: steps skipped.
        self.sums = torch.zeros(len(self.tasks), dtype=torch.float64, device=self.device)
        self.bad = torch.zeros(len(self.tasks) + 1, dtype=torch.int64, device=self.device)

    def fit(self, train: Loader, validation: Loader | None = None) -> dict[str, Any]:
        """Train to `config.epochs`, from wherever `resume` left off; returns the last epoch's record."""
        record: dict[str, Any] = {}
        while self.epoch < self.config.epochs and not self._out_of_patience():
            started = time.perf_counter()
            self.model.train()
            images, waited = self._run_epoch(train)
            losses = (self.sums / max(len(train), 1)).tolist()  # waits for the device, so that `seconds` is all of it
            seconds = time.perf_counter() - started
            self.sums.zero_()
            self.epoch += 1
            self.balancer.on_epoch()
            record = {
                "epoch": self.epoch,
                "step": self.step_count,
                "loss": {task.name: loss for task, loss in zip(self.tasks, losses, strict=True)},
                "lr": self.optimizer.param_groups[0]["lr"],
                "images_per_second": images / seconds,
                "waiting": waited / seconds,
                "seconds": seconds,
            }
            if validation is not None:
                started = time.perf_counter()
                record["validation"] = self.evaluate(validation)
                record["validation_seconds"] = time.perf_counter() - started
                self._keep_best(record["validation"]["score"], train)
            self._save("last", train)
            for observer in self.observers:
                observer.on_epoch(record)
        return record

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One update on `batch`; returns the losses and what the balancer did, on the device."""
        again = Replay(self.model, self.device) if self.balancer.looks_twice else None
        losses = self.losses(batch)
        shared, active = self.model.shared_parameters(), batch.present.any(0)  # type: ignore[operator]
        done = dict(self.update(self.balancer, losses, shared, scale=self.scaler, active=active))
        if self.scaler is not None:
            self.scaler.update()
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        self.sums += values
        self.bad += torch.cat([~values.isfinite(), done.pop("skipped").reshape(1)])
        if self.scheduler is not None:
            self.scheduler.step()
        if again is not None:
            self.balancer.after_step(lambda: again(lambda: self.losses(batch)))
        self.step_count += 1
        return losses, done

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Task name -> scalar loss, under autocast where the precision asks for it."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.network(batch)
        return {task.name: task.loss(outputs[task.name], batch) for task in self.tasks}

    def evaluate(self, loader: Loader) -> dict[str, Any]:
        """Metrics, losses and score on `loader`; see `inference.evaluate`."""
        return evaluate(self.network, self.tasks, loader, device=self.device, dtype=self.dtype)

    def state_dict(self, loader: Loader) -> dict[str, Any]:
        """Everything a bit-equal continuation needs."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "loader": loader.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "progress": {
                "epoch": self.epoch,
                "step": self.step_count,
                "best_score": self.best_score,
                "bad_epochs": self.bad_epochs,
                "sums": self.sums,
            },
        }

    def resume(self, directory: Path, loader: Loader) -> None:
        """Continue from a checkpoint of this trainer: the same model, tasks, balancer and data."""
        state = checkpoint.load(directory)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        _lay_out_like_parameters(self.optimizer)
        self.balancer.load_state_dict(state["balancer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        loader.load_state_dict(state["loader"])
        progress = state["progress"]
        self.epoch, self.step_count = progress["epoch"], progress["step"]
        self.best_score, self.bad_epochs = progress["best_score"], progress["bad_epochs"]
        self.sums.copy_(progress["sums"])
        # Last, because moving the loader may itself have drawn random numbers.
        torch.set_rng_state(state["rng"])
        if state["rng_device"] is not None:
            torch.cuda.set_rng_state(state["rng_device"], self.device)

    def _run_epoch(self, loader: Loader) -> tuple[int, float]:
        """Returns images seen and seconds spent waiting for data."""
        images, waited = 0, 0.0
        started = mark = time.perf_counter()
        number = loader.state_dict().get("batch", 0)
        for batch in loader:
            waited += time.perf_counter() - mark
            losses, done = self.step(batch.to(self.device, non_blocking=True))
            images, number = images + len(batch), number + 1
            if self.step_count % self.config.log_every == 0 or number == len(loader):
                seconds = time.perf_counter() - started
                pace = {"images_per_second": images / seconds, "waiting": waited / seconds}
                self._look(losses, done, number, len(loader), pace)
            if self.stop_requested:
                self._save("last", loader)
                raise Interrupted(f"stopped at epoch {self.epoch + 1}, step {self.step_count}")
            mark = time.perf_counter()
        return images, waited

    def _look(
        self, losses: dict[str, Tensor], done: dict[str, Tensor], number: int, total: int, pace: dict[str, float]
    ) -> None:
        counts = self.bad.tolist()
        self.bad.zero_()
        names = [task.name for task, count in zip(self.tasks, counts, strict=False) if count]
        # With a loss scale, infinite gradients are how the scale is found; without one they are a fault.
        if names or (counts[-1] and self.scaler is None):
            what = f"the loss of task {', '.join(map(repr, names))}" if names else "the gradient"
            raise NonFiniteError(
                f"{what} was NaN or infinite in {max(counts)} of the steps before step {self.step_count} "
                f"(epoch {self.epoch + 1}); those steps were skipped and the weights are finite. "
                "Lower optimizer.lr, set training.clip_norm, or look for broken targets."
            )
        record = {name: loss.item() for name, loss in losses.items()}
        telemetry = {name: value.tolist() for name, value in done.items()}
        for observer in self.observers:
            seen = {"loss": record, "balance": telemetry} | pace
            observer.on_step(self.step_count, self.epoch, number, total, seen)

    def _keep_best(self, score: float, loader: Loader) -> None:
        self.bad_epochs += 1
        # The first score counts even as NaN (nothing held out has labels): there must be a best, and any beats NaN.
        if score > self.best_score or not self.best_score > float("-inf"):
            self.best_score, self.bad_epochs = score, 0
            self._save("best", loader)

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.bad_epochs

    def _save(self, name: str, loader: Loader) -> None:
        if self.folder is not None:
            checkpoint.save(self.folder / name, self.state_dict(loader))


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give the state the parameters' memory order: torch's fused CPU optimizers walk both side by side in memory, and
    would pair a contiguous moment with the wrong elements of a channels-last weight."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
