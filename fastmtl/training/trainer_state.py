"""The state of a trainer: save it in a checkpoint, and continue from it bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..balance.plain_step import match_param_layout
from ..distributed import World
from ..protocols import Balancer, Loader, Task
from . import checkpoint
from .errors import CheckpointError, OtherRanks
from .skipped_steps import SkippedSteps
from .state_checks import StateDict, load_balancer, load_like, load_model, load_optimizer, loading, mismatch, refuse
from .weight_averaging import WeightAverage


class TrainerState:
    """The part of `Trainer` that saves and restores its state; `Trainer.__init__` sets the attributes."""

    model: nn.Module
    tasks: list[Task]
    balancer: Balancer
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler | None
    average: WeightAverage | None
    device: torch.device
    world: World
    stage: str
    epoch: int
    step_count: int
    first_epoch: int
    best_score: float
    bad_epochs: int
    pending: dict[str, Any] | None  # of an epoch that was trained and not yet validated: its record and loss weights
    sums: Tensor
    skipped: SkippedSteps

    @property
    def num_recorded(self) -> int:
        """Epochs that are complete, validation included."""
        return self.epoch - (self.pending is not None)

    def state_dict(self, loader: Loader) -> StateDict:
        """The state of all ranks for a bit-equal continuation."""
        on_gpu = self.device.type == "cuda"
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "loader": loader.state_dict(),
            "rng": self.world.gather(torch.get_rng_state()),
            "rng_device": self.world.gather(torch.cuda.get_rng_state(self.device)) if on_gpu else None,
            "progress": self._progress(),
        }

    def _progress(self) -> StateDict:
        return {
            "stage": self.stage,
            "first_epoch": self.first_epoch,
            "epoch": self.epoch,
            "step": self.step_count,
            "best_score": self.best_score,
            "bad_epochs": self.bad_epochs,
            "pending": self.pending,
            "sums": self.world.gather(self.sums),
            "skipped": self.skipped.state_dict(),
        }

    def resume(self, directory: Path, loader: Loader, state: StateDict | None = None) -> None:
        """Continue from a checkpoint with the same model, tasks, balancer, data and number of ranks.

        Args:
            directory: the checkpoint.
            loader: of the training batches.
            state: what the checkpoint holds, if it has been loaded.

        Raises:
            OtherRanks: the number of ranks differs.
            CheckpointError: it is damaged, or of another training; the message names the difference.
            ValueError: the loader has other data or settings.
        """
        state = checkpoint.load(directory) if state is None else state
        rng = state.get("rng")
        if not isinstance(rng, Tensor) or not rng.dim():
            raise CheckpointError(f"checkpoint {directory} is not of a training: it has no rng.")
        if len(rng) != self.world.size:
            raise OtherRanks(
                f"{directory} is of a training on {len(rng)} rank(s), and this one has {self.world.size}: the "
                f"batches would differ. Continue it with torchrun --nproc-per-node {len(rng)}."
            )
        try:
            self.load_state_dict(state, loader)
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from error

    def load_state_dict(self, state: StateDict, loader: Loader) -> None:
        """Continue from a `state_dict`.

        Raises:
            CheckpointError: the state is of another training; the message names the difference.
            ValueError: the loader has other data or settings.
        """
        with loading("model"):
            load_model(self.model, state["model"])
        with loading("balancer"):  # before the optimizer: it sets the shape of learned weights
            load_balancer(self.balancer, state["balancer"], [task.name for task in self.tasks])
        with loading("optimizer"):
            load_optimizer(self.optimizer, state["optimizer"])
            match_param_layout(self.optimizer)
        for name in ("scheduler", "scaler", "average"):
            if (part := getattr(self, name)) is not None:
                with loading(name):
                    load_like(part, state[name])
        loader.load_state_dict(state["loader"])
        with loading("progress"):
            progress, rank = state["progress"], self.world.rank
            refuse(mismatch(self._progress(), progress))
            counts = (progress[name] for name in ("epoch", "step", "first_epoch", "bad_epochs"))
            self.epoch, self.step_count, self.first_epoch, self.bad_epochs = counts
            self.best_score = progress["best_score"]
            self.pending = progress.get("pending")
            self.sums.copy_(progress["sums"][rank])
            self.skipped.load_state_dict(progress.get("skipped", {}))
        # Last, because setting the loader's position may draw random numbers.
        with loading("rng"):
            torch.set_rng_state(state["rng"][rank].clone())  # a clone: torch reads from the start of the storage
            if state["rng_device"] is not None:
                torch.cuda.set_rng_state(state["rng_device"][rank].clone(), self.device)
