"""Writes checkpoints in the background, keeps the newest and the best, and finds the one to resume from."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .checkpoint_names import best_of, history, next_path
from .disk_policy import DiskPolicy, is_full
from .errors import CheckpointError, DamagedCheckpoint
from .state_checks import StateDict


class CheckpointStore:
    """Saves states in `folder` (see `checkpoint_names`). One process at a time may have a store of a folder.

    `save` copies the state, and a thread writes the copy: the training waits only for the copy. A kill at any moment
    leaves the previous checkpoint or the new one.

    Args:
        folder: created by the first save.
        keep: number of steps whose newest checkpoint is kept, besides the best checkpoint.
        disk: whether the training continues after a save that failed, and the lines of records that belong on the disk
            before a checkpoint; None: a failed save raises.

    Attributes:
        failed: the error of the last save, if the training continues after it.
        missed_best: whether a save of a best checkpoint failed; whoever reads it sets it to False.
    """

    def __init__(self, folder: Path, keep: int = 2, disk: DiskPolicy | None = None) -> None:
        self.folder, self.keep, self.disk = folder, keep, disk or DiskPolicy()
        self.failed: Exception | None = None
        self.missed_best = False
        self._saving = self._saving_best = False
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._best: str | None = None  # None: as the newest checkpoint has it

    def save(self, state: StateDict, step: int, *, best: bool = False) -> None:
        """Copy `state` and start to write it, after the previous save has ended.

        Args:
            state: see `checkpoint.encode`.
            step: names the checkpoint.
            best: whether this is the best one from now on.

        Raises:
            CheckpointError: the previous save failed.
            TypeError: see `checkpoint.encode`.
        """
        self.wait()
        self._saving, self._saving_best = True, best
        tree, tensors = checkpoint.encode(state)
        path = next_path(self.folder, step)
        try:
            lines = self.disk.flush()
        except OSError as error:
            self._error = checkpoint.refused(path, error, tensors)
            return
        if self._best is None:
            saved = history(self.folder)
            self._best = best_of(saved[-1].path) if saved else ""
        arguments = (path, tree, self._copied(tensors), path.name if best else self._best, lines)
        # A daemon: a process that exits at once does not wait for it, and an unfinished checkpoint is ignored.
        self._thread = threading.Thread(target=self._write, args=arguments, name="fastmtl-checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the last save is on the disk.

        Raises:
            CheckpointError: it failed, and the training does not continue without it; raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if not self._saving:
            return
        self._saving, error, self._error = False, self._error, None
        self.failed = error
        if error is None:
            self.disk.works_again()
        elif self.disk.continues_after(error, str(error)):
            self.missed_best |= self._saving_best
        else:
            raise error

    def _copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies on the CPU, in the memory of the previous ones where it fits: new pages cost more."""
        copies, devices = {}, set[torch.device]()
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = buffer.copy_(tensor, non_blocking=True)
            if tensor.is_cuda:
                devices.add(tensor.device)
        for device in devices:
            torch.cuda.synchronize(device)
        self._buffers = copies
        return copies

    def _write(self, path: Path, tree: Any, tensors: dict[str, Tensor], best: str, lines: Sequence[Path]) -> None:
        try:
            self.disk.sync(lines)
            try:
                checkpoint.write(path, tree, tensors, best=best)
            except CheckpointError as error:
                if not is_full(error) or not self._make_room():
                    raise
                checkpoint.write(path, tree, tensors, best=best)
            self._best, self._saving_best = best, False
            prune(self.folder, self.keep)
        except Exception as error:  # `wait` raises it in the training's thread
            self._error = error

    def _make_room(self) -> bool:
        """Remove what the next checkpoint would replace, if the newest one is sound; returns whether it did."""
        saved = history(self.folder)
        if not saved:
            return False
        checkpoint.verified(saved[-1].path)
        prune(self.folder, max(self.keep - 1, 1))
        return len(history(self.folder)) < len(saved)


def prune(folder: Path, keep: int) -> None:
    """Remove what interrupted saves left, and all checkpoints except the newest of each of the last `keep` steps and
    the best ones that these name."""
    saved = history(folder)
    kept = [one.path for one in {one.step: one for one in saved}.values()][-keep:]
    try:
        best = {best_of(path) for path in kept}
    except DamagedCheckpoint:  # without its manifest it is unknown which one is the best
        return
    for one in saved:
        if one.path not in kept and one.path.name not in best:
            _remove(one.path)
    if "" not in best:  # the best one of an earlier version
        _remove(folder / "best")
    for path in folder.glob("*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def newest_sound(folder: Path) -> tuple[Path, StateDict, str]:
    """The newest checkpoint in `folder` that is not damaged, its state, and a line about damaged newer ones or "".

    Renames damaged newer ones to NAME.damaged.

    Raises:
        DamagedCheckpoint: all are damaged; nothing was renamed.
        CheckpointError: there is none, or it is of another format.
    """
    saved, damaged = history(folder), list[Path]()
    first: DamagedCheckpoint | None = None
    for one in reversed(saved):
        try:
            state = checkpoint.load(one.path)
        except DamagedCheckpoint as error:
            first = first or error
            damaged.append(one.path)
            continue
        for path in damaged:
            set_aside(path)
        note = f"{first} Training continues from {one.path.name} and repeats what came after it." if first else ""
        return one.path, state, note
    if first is not None:
        raise DamagedCheckpoint(f"{first} No earlier checkpoint is whole: remove {folder} to train from the start.")
    raise CheckpointError(f"no checkpoint at {folder}.")


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to NAME.damaged."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    if path.exists():
        path.rename(aside)


def damage(folder: Path, *, last: bool = False) -> str:
    """What is wrong with the best checkpoint in `folder`, or with the `last` one, in a line; "" if they are sound.

    Raises:
        CheckpointError: one is of another format.
    """
    saved = history(folder)
    try:
        if saved and last:
            checkpoint.verified(saved[-1].path)
        if saved and (best := best_of(saved[-1].path)):
            if not (folder / best).exists():
                return f"the best checkpoint {folder / best} is missing."
            checkpoint.verified(folder / best)
    except DamagedCheckpoint as error:
        return str(error)
    return ""


def _remove(path: Path) -> None:
    """Remove a checkpoint; a kill in the middle leaves nothing that looks like one."""
    if path.is_dir():
        aside = path.with_name(f"{path.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
