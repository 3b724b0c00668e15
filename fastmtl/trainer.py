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
from .world import World


class NonFiniteError(UserError, RuntimeError):
    """A loss or gradient was NaN or infinite; no parameter took that step."""


class Interrupted(UserError, RuntimeError):
    """Training stopped on request, after saving where it was."""


class OtherRanks(UserError, ValueError):
    """A checkpoint of more or fewer ranks than there are now."""


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
        world: the ranks that train this model, each on its part of the data; one process if None. All of them make the
            same trainer and call its methods alike; the folder and the observers are rank 0's.
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
        world: World | None = None,
    ):
        self.model, self.tasks, self.balancer, self.optimizer = model, list(tasks), balancer, optimizer
        self.config, self.scheduler, self.folder, self.observers = config, scheduler, folder, list(observers)
        self.device, self.update = torch.device(device), update or PlainUpdate(optimizer, config.clip_norm)
        self.world = world or World()
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
        self.world.distribute(self.balancer, self.model)
        while self.epoch < self.config.epochs and not self._out_of_patience():
            started = time.perf_counter()
            self.model.train()
            images, waited = self._run_epoch(train)
            sums = self.world.sum(self.sums) / self.world.size
            losses = (sums / max(len(train), 1)).tolist()  # waits for the device, so that `seconds` is all of it
            seconds = time.perf_counter() - started
            self.sums.zero_()
            self.epoch += 1
            self.balancer.on_epoch()
            record = {
                "epoch": self.epoch,
                "step": self.step_count,
                "loss": {task.name: loss for task, loss in zip(self.tasks, losses, strict=True)},
                "lr": self.optimizer.param_groups[0]["lr"],
                "images_per_second": images * self.world.size / seconds,
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
        self.world.share_statistics(self.model)
        self.step_count += 1
        return losses, done

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Task name -> scalar loss, under autocast where the precision asks for it; with several ranks those whose mean
        over the ranks is that over all labelled samples."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.network(batch)
        losses = {task.name: task.loss(outputs[task.name], batch) for task in self.tasks}
        return self.world.losses(losses, batch.present.sum(0))

    def evaluate(self, loader: Loader) -> dict[str, Any]:
        """Metrics, losses and score on `loader`; see `inference.evaluate`."""
        return evaluate(self.network, self.tasks, loader, device=self.device, dtype=self.dtype, world=self.world)

    def state_dict(self, loader: Loader) -> dict[str, Any]:
        """Everything a bit-equal continuation needs, the other ranks' own things too."""
        on_gpu = self.device.type == "cuda"
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "loader": loader.state_dict(),
            "rng": self.world.gather(torch.get_rng_state()),
            "rng_device": self.world.gather(torch.cuda.get_rng_state(self.device)) if on_gpu else None,
            "progress": {
                "epoch": self.epoch,
                "step": self.step_count,
                "best_score": self.best_score,
                "bad_epochs": self.bad_epochs,
                "sums": self.world.gather(self.sums),
            },
        }

    def resume(self, directory: Path, loader: Loader) -> None:
        """Continue from a checkpoint of this trainer: the same model, tasks, balancer, data and number of ranks.

        Raises:
            OtherRanks: it is of more or fewer ranks.
        """
        state = checkpoint.load(directory)
        if len(state["rng"]) != self.world.size:
            raise OtherRanks(
                f"{directory} is of a training on {len(state['rng'])} rank(s), and this one has {self.world.size}: the "
                f"batches would not go on. Continue it with torchrun --nproc-per-node {len(state['rng'])}."
            )
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
        self.sums.copy_(progress["sums"][self.world.rank])
        # Last, because moving the loader may itself have drawn random numbers.
        rank = self.world.rank
        torch.set_rng_state(state["rng"][rank].clone())  # it reads from the beginning of the storage
        if state["rng_device"] is not None:
            torch.cuda.set_rng_state(state["rng_device"][rank].clone(), self.device)

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
                pace = {"images_per_second": images * self.world.size / seconds, "waiting": waited / seconds}
                self._look(losses, done, number, len(loader), pace)
            if self.world.stopping(self.stop_requested):
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
        seen = torch.stack([loss.detach().double() for loss in losses.values()])
        values = (self.world.sum(seen) / self.world.size).tolist()
        record = dict(zip(losses, values, strict=True))
        telemetry = {name: value.tolist() for name, value in done.items()}
        for observer in self.observers:
            look = {"loss": record, "balance": telemetry} | pace
            observer.on_step(self.step_count, self.epoch, number, total, look)

    def _keep_best(self, score: float, loader: Loader) -> None:
        self.bad_epochs += 1
        # The first score counts even as NaN (nothing held out has labels): there must be a best, and any beats NaN.
        if score > self.best_score or not self.best_score > float("-inf"):
            self.best_score, self.bad_epochs = score, 0
            self._save("best", loader)

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.bad_epochs

    def _save(self, name: str, loader: Loader) -> None:
        if self.folder is None and self.world.size == 1:
            return
        state = self.state_dict(loader)  # on every rank: it gathers
        if self.folder is not None:
            checkpoint.save(self.folder / name, state)


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give the state the parameters' memory order: torch's fused CPU optimizers walk both side by side in memory, and
    would pair a contiguous moment with the wrong elements of a channels-last weight."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
