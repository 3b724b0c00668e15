"""The state of a trainer: save it, and continue from it bit for bit on the same number of ranks. On another number,
sums are rounded differently, and the network draws other random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..balance.plain_step import match_param_layout
from ..config import TrainingConfig
from ..distributed import World
from ..protocols import Balancer, Loader, Task
from ..utils.words import counted
from . import checkpoint
from .errors import CheckpointError
from .loss_spikes import LossSpikes
from .set_shares import SetShares
from .sharding import gathered
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
    config: TrainingConfig
    stage: str
    epoch: int
    step_count: int
    first_epoch: int
    best_score: float
    best_saved: float  # `best_score` before the last best epoch
    bad_epochs: int
    pending: dict[str, Any] | None  # of an epoch that was trained and not yet validated: its record and loss weights
    sums: Tensor
    counts: Tensor | None
    skipped: SkippedSteps
    spikes: LossSpikes | None
    shares: SetShares | None
    _sharded: bool  # by FSDP2
    notes: tuple[str, ...] = ()
    """What `resume` found to be different from the uninterrupted training."""

    @property
    def num_recorded(self) -> int:
        """Epochs that are complete, validation included."""
        return self.epoch - (self.pending is not None)

    def state_dict(self, loader: Loader, *, everywhere: bool = False) -> StateDict:
        """The state of all ranks for a bit-equal continuation. Of a model divided by FSDP2 rank 0 has whole tensors on
        the CPU, and the others have None instead unless `everywhere`."""
        on_gpu, of_loader = self.device.type == "cuda", loader.state_dict()
        quarantines = self.world.gather_entries({self.world.rank: of_loader.get("quarantine", [])})
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "loader": of_loader,
            "quarantines": [quarantines[rank] for rank in sorted(quarantines)],
            "rng": self.world.gather(torch.get_rng_state()),
            "rng_device": self.world.gather(torch.cuda.get_rng_state(self.device)) if on_gpu else None,
            "progress": self._progress(),
        }
        return gathered(state, keep=everywhere or self.world.rank == 0) if self._sharded else state

    def _progress(self) -> StateDict:
        counts = {} if self.counts is None else {"counts": self.counts}
        shares = {} if self.shares is None else {"shares": self.shares.state_dict(self.world)}
        return (
            counts
            | shares
            | {
                "stage": self.stage,
                "first_epoch": self.first_epoch,
                "epoch": self.epoch,
                "step": self.step_count,
                "best_score": self.best_score,
                "bad_epochs": self.bad_epochs,
                "pending": self.pending,
                "sums": self.world.gather(self.sums),
                "skipped": self.skipped.state_dict(),
                "spikes": {} if self.spikes is None else self.spikes.state_dict(),
            }
        )

    def resume(self, directory: Path, loader: Loader, state: StateDict | None = None) -> None:
        """Continue from a checkpoint with the same model, tasks, balancer and data, on any number of ranks.

        Args:
            directory: the checkpoint.
            loader: of the training batches.
            state: the checkpoint's state; None loads it.

        Raises:
            CheckpointError: it is damaged, or of another training; the message names the difference.
            ValueError: the loader has other data or settings.
        """
        state = checkpoint.load(directory) if state is None else state
        rng = state.get("rng")
        if not isinstance(rng, Tensor) or not rng.dim():
            raise CheckpointError(f"checkpoint {directory} is not of a training: it has no rng.")
        try:
            self.load_state_dict(state, loader)
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from error

    def load_state_dict(self, state: StateDict, loader: Loader) -> None:
        """Continue from a `state_dict`; `notes` says what differs with other ranks or batches.

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
        try:
            loader.load_state_dict(self._with_own_quarantine(state))
        except (AttributeError, KeyError, TypeError) as error:  # a ValueError names the difference
            said = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"its loader is of another training, or damaged: {said}") from error
        self._compare_batches(state["loader"], loader.state_dict())
        with loading("progress"):
            progress, rank, ranks = state["progress"], self.world.rank, len(state["rng"])
            same = ranks == self.world.size
            sums = progress["sums"][rank] if same else progress["sums"].mean(0)  # the mean over ranks is what counts
            unchecked = {"sums": sums, "shares": progress.get("shares")}
            refuse(mismatch(self._progress() | unchecked | {"sums": self.sums}, progress | unchecked))
            refuse(_progress_problem(progress))
            counts = (progress[name] for name in ("epoch", "step", "first_epoch", "bad_epochs"))
            self.epoch, self.step_count, self.first_epoch, self.bad_epochs = counts
            self.best_score = progress["best_score"]
            self.pending = progress.get("pending")
            self.sums.copy_(sums)
            if self.counts is not None:
                self.counts.copy_(progress["counts"])
            if self.shares is not None:
                self.shares.load_state_dict(progress["shares"], self.world)
            self.skipped.load_state_dict(progress.get("skipped", {}))
            if self.spikes is not None:
                self.spikes.load_state_dict(progress.get("spikes", {}))
        # Last, because setting the loader's position may draw random numbers.
        with loading("rng"):
            if not same:
                torch.manual_seed(_seed(self.config.seed, self.step_count, rank))
                self.notes += (
                    f"continues on {counted(self.world.size, 'rank')} what {counted(ranks, 'rank')} began: not "
                    "bit-equal to the uninterrupted training. Sums are rounded differently, and the network's random "
                    "numbers (dropout) are drawn from seed, step and rank.",
                )
                return
            torch.set_rng_state(state["rng"][rank].clone())  # a clone: torch reads from the start of the storage
            if state["rng_device"] is not None:
                torch.cuda.set_rng_state(state["rng_device"][rank].clone(), self.device)

    def _with_own_quarantine(self, state: StateDict) -> dict[str, Any]:
        """The loader's state with the damaged tiles that this rank had found; on another number of ranks, those of all.
        Otherwise a rank would read its tiles again, and might then take one that it had left out."""
        found = state.get("quarantines")  # not in checkpoints of earlier versions
        if found is None or "quarantine" not in state["loader"]:
            return state["loader"]
        every = {entry["tile"]: entry for entries in found for entry in entries}
        own = found[self.world.rank] if len(found) == self.world.size else list(every.values())
        return {**state["loader"], "quarantine": own}

    def _compare_batches(self, before: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """With other batches of all ranks, move the schedule to the same fraction of its steps."""
        sizes = [one.get("batch_size", 0) * one.get("world_size", 0) for one in (before, here)]  # 0: another loader
        if not all(sizes) or sizes[0] == sizes[1]:
            return
        if hasattr(self.scheduler, "rescale"):  # torch's schedulers only have steps
            self.scheduler.rescale(sizes[0] / sizes[1])
        self.notes += (
            f"a batch of all ranks has {sizes[1]} images from here on, {sizes[0]} before; the learning rate is the "
            "recipe's for both.",
        )


def _progress_problem(progress: Mapping[str, Any]) -> str:
    """What no training counts, in a checkpoint that somebody edited; "" if there is nothing."""
    for name in ("epoch", "step", "first_epoch", "bad_epochs"):
        if type(progress[name]) is not int or not 0 <= progress[name] < 2**53:
            return f"{name} is {progress[name]!r}, and not a count"
    pending = progress.get("pending")
    if pending is not None and not (
        isinstance(pending, Mapping)
        and isinstance(pending.get("record"), Mapping)
        and isinstance(pending.get("weights"), (list, tuple))
    ):
        return "pending is not an epoch that awaits its validation"
    return ""


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])
