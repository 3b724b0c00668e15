"""Writes checkpoints in the background, keeps the newest and the best, and finds the one to resume from."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .checkpoint_names import best_of, history, next_path
from .errors import CheckpointError, DamagedCheckpoint
from .state_checks import StateDict


class CheckpointStore:
    """Saves states in `folder` (see `checkpoint_names`). One process at a time may have a store of a folder.

    `save` copies the state, and a thread writes the copy: the training waits only for the copy. A kill at any moment
    leaves the previous checkpoint or the new one.

    Args:
        folder: created by the first save.
        keep: number of steps whose newest checkpoint is kept, besides the best checkpoint.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
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
        tree, tensors = checkpoint.encode(state)
        path = next_path(self.folder, step)
        if self._best is None:
            saved = history(self.folder)
            self._best = best_of(saved[-1].path) if saved else ""
        arguments = (path, tree, self._copied(tensors), path.name if best else self._best)
        # A daemon: a process that exits at once does not wait for it, and an unfinished checkpoint is ignored.
        self._thread = threading.Thread(target=self._write, args=arguments, name="fastmtl-checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the last save is on the disk.

        Raises:
            CheckpointError: it failed; raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
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

    def _write(self, path: Path, tree: Any, tensors: dict[str, Tensor], best: str) -> None:
        try:
            checkpoint.write(path, tree, tensors, best=best)
            self._best = best
            prune(self.folder, self.keep)
        except Exception as error:  # `wait` raises it in the training's thread
            self._error = error


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
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        note = f"{first} Training continues from {one.path.name} and repeats what came after it." if first else ""
        return one.path, state, note
    if first is not None:
        raise DamagedCheckpoint(f"{first} No earlier checkpoint is whole: remove {folder} to train from the start.")
    raise CheckpointError(f"no checkpoint at {folder}.")


def _remove(path: Path) -> None:
    """Remove a checkpoint; a kill in the middle leaves nothing that looks like one."""
    if path.is_dir():
        aside = path.with_name(f"{path.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
