"""When a trainer saves, goes back to a checkpoint and stops: all ranks agree, at a step or in a validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from ..config import TrainingConfig
from ..protocols import Batch, Loader, Observer
from .checkpoint_names import history
from .checkpoint_store import CheckpointStore, newest_sound
from .errors import CheckpointError, Interrupted, NonFiniteError
from .trainer_state import TrainerState

_SAVE, _STOP = 1, 2  # what a rank asks all of them to do


class TrainerSaving(TrainerState):
    """The part of `Trainer` that saves and stops; `Trainer.__init__` sets the attributes."""

    config: TrainingConfig
    store: CheckpointStore | None
    stop_requested: bool
    observers: list[Observer]
    network: nn.Module
    _saved_at: float

    def save(self, loader: Loader, *, best: bool = False) -> None:
        """Save a checkpoint, the best one from now on if `best`; all ranks call it. It is on the disk after `wait`."""
        self._saved_at = time.monotonic()
        if self.store is None and self.world.size == 1:
            return
        self._forget_missed_best()
        state = self.state_dict(loader)  # on every rank, because it gathers
        if self.store is not None:
            self.store.save(state, self.step_count, best=best)

    def wait(self) -> None:
        """Return when the last save is on the disk.

        Raises:
            CheckpointError: the last save failed (training.on_disk_error = "stop").
        """
        if self.store is not None:
            self.store.wait()

    def save_durably(self, loader: Loader, *, best: bool = False) -> None:
        """As `save` and `wait`, and a failed save raises CheckpointError also with on_disk_error = "continue"."""
        self.save(loader, best=best)
        self.wait()
        if self.store is not None and self.store.failed is not None:
            raise self.store.failed

    def replace_best(self, loader: Loader) -> None:
        """Save this state as the best one; the next epoch that is validated may replace it."""
        self.best_score = float("-inf")
        self.save_durably(loader, best=True)

    def _forget_missed_best(self) -> None:
        """If the best checkpoint could not be written: a later one that is better than those on the disk is the best
        one."""
        if self.config.on_disk_error == "continue":
            self.wait()
            if self.world.broadcast(self._missed_best()):
                self.best_score = self.best_saved

    def _missed_best(self) -> bool:
        if self.store is None:
            return False
        missed, self.store.missed_best = self.store.missed_best, False
        return missed

    def _save_last(self, loader: Loader) -> None:
        """After the last epoch of a stage: if its checkpoint is not on the disk, try once more."""
        if self.config.on_disk_error == "continue":
            self.wait()
            failed = self.store is not None and self.store.failed is not None
            failed, missed_best = self.world.broadcast((failed, self._missed_best()))
            if failed:
                self.save_durably(loader, best=missed_best)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Inside, checkpoints are saved; at the end they are on the disk, except after a KeyboardInterrupt."""
        self._saved_at = time.monotonic()
        try:
            yield
        except Interrupted as stopped:
            self.wait()
            if self.store is not None and self.store.failed is not None:
                raise Interrupted(f"{stopped}, but {self.store.failed}") from None
            raise
        except Exception:
            with suppress(CheckpointError):  # raise the first error
                self.wait()
            raise
        self.wait()

    def _save_first(self, loader: Loader) -> None:
        """With on_nonfinite = "restore": save, unless there is a checkpoint to go back to."""
        if self.config.on_nonfinite != "restore":
            return
        self.wait()
        if not self.world.broadcast(self.store is not None and bool(history(self.store.folder))):
            self.save(loader)

    def _restore(self, why: str, loader: Loader) -> None:
        """Go back to the newest checkpoint that is not damaged; all ranks call it."""
        self.wait()
        path, state, note = (None, None, "") if self.store is None else newest_sound(self.store.folder)
        path = self.world.broadcast(path)
        if path is None:
            raise NonFiniteError(f"{why} There is no checkpoint to go back to: this trainer has no folder.")
        self.resume(path, loader, state)
        why += f" {note[:1].upper()}{note[1:]}" * bool(note)
        for observer in self.observers:
            if (on_restore := getattr(observer, "on_restore", None)) is not None:
                on_restore(self.step_count, self.epoch, why)

    def _save_if_due(self, loader: Loader) -> None:
        """After a step: save, or save and raise Interrupted, if it is time to. All ranks do the same."""
        config, asked = self.config, self._asked()
        if asked or (config.checkpoint_steps and self.step_count % config.checkpoint_steps == 0):
            self.skipped.judge(self.epoch, len(loader))  # before saving: a checkpoint has only checked steps
            self.save(loader)
        if asked == _STOP:
            raise Interrupted(f"stopped at epoch {self.epoch + 1}, step {self.step_count}", of_all_ranks=True)

    def _until_stopped(self, loader: Loader) -> Iterator[Batch]:
        """The batches, until a rank is asked to stop: then Interrupted on all ranks after the same number of rounds."""
        batches = iter(loader)
        rounds = self.world.gather(torch.tensor(len(loader)))
        spare: Batch | None = None
        for number in range(int(rounds.max())):
            if self._asked() == _STOP:
                where = f"the validation of epoch {self.epoch}, step {self.step_count}"
                raise Interrupted(f"stopped in {where}", of_all_ranks=True)
            batch = next(batches, None)
            if number == 0 and self._sharded and int(rounds.min()) != int(rounds.max()):
                spare = self.world.gather_entries({} if batch is None else {0: batch.to("cpu")}).get(0)
            if batch is not None:
                yield batch
            elif spare is not None:
                self.network(spare.to(self.device))  # the ranks gather each parameter together
        yield from batches  # yields none, but moves the loader to its next epoch

    def _asked(self) -> int:
        """What the ranks agree on, a step later if there are several: 0 (nothing), _SAVE or _STOP."""
        interval = 60 * self.config.checkpoint_minutes
        asked = _STOP if self.stop_requested else 0
        if not asked and self.world.rank == 0 and 0 < interval <= time.monotonic() - self._saved_at:
            asked, self._saved_at = _SAVE, time.monotonic()
        return self.world.delayed_max(asked)
