"""What a training does when its disk is full, read-only or failing (`TrainingConfig.on_disk_error`)."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..utils.atomic_io import append, sync
from ..utils.cures import cure_of, number_of
from ..utils.words import counted

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NUMBERS = (*_FULL, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class DiskError(UserError, RuntimeError):
    """A file of a run cannot be written; the message is one line."""


def disk_reason(error: BaseException | None, numbers: tuple[int, ...] = _NUMBERS) -> str:
    """Why the disk refused to write, for example "No space left on device"; "" if `error` has another cause."""
    while error is not None:
        number = number_of(error)
        if number in numbers:
            return os.strerror(number)
        error = error.__cause__
    return ""


def is_full(error: BaseException) -> bool:
    """Whether free space would help."""
    return bool(disk_reason(error, _FULL))


def advice(error: BaseException) -> str:
    """How to continue a training after this failure to write: the last sentence of its message."""
    cure = cure_of(error) or "remove the cause"
    return f"{cure.capitalize()}, and continue with fastmtl train --resume."


def _refused(path: Path, error: OSError) -> DiskError:
    return DiskError(f"{path} cannot be written ({error.strerror}). {advice(error)}")


def _print(line: str) -> None:
    print(line, file=sys.stderr)


class DiskPolicy:
    """Appends to the files of a run, and decides whether the training continues without what could not be written.

    Args:
        on_error: "stop" or "continue".
        note: called with one line when writing begins to fail, and when it works again.
    """

    def __init__(self, on_error: Literal["stop", "continue"] = "stop", note: Callable[[str], None] = _print) -> None:
        self.on_error, self._note = on_error, note
        self._held: dict[Path, list[bytes]] = {}  # what could not be appended yet
        self._appended: set[Path] = set()  # since the last `flush`
        self._failing = False
        self._failed = 0
        self._first = ""

    def append(self, path: Path, data: str | bytes) -> None:
        """Append to a file, or hold `data` until the disk can be written again.

        Raises:
            DiskError: the disk cannot be written, and the policy is "stop".
        """
        self._held.setdefault(path, []).append(data.encode() if isinstance(data, str) else data)
        try:
            self._write(path)
        except OSError as error:
            refused = _refused(path, error)
            if not self.continues_after(error, str(refused)):
                self.take(path)
                raise refused from error

    def take(self, path: Path) -> bytes:
        """What `path` still lacks; it is no longer held."""
        return b"".join(self._held.pop(path, []))

    def flush(self) -> list[Path]:
        """Append what is held; returns the files that were appended to since the last call.

        Raises:
            OSError: a file cannot be written; its lines are still held.
        """
        for path in list(self._held):
            self._write(path)
        found = sorted(self._appended)
        self._appended.clear()
        return found

    def sync(self, paths: Iterable[Path]) -> None:
        """Wait until files that `flush` returned are on the disk; DiskError if not: `flush` returns them again."""
        paths = list(paths)
        for path in paths:
            try:
                sync(path)
            except FileNotFoundError:
                continue  # somebody removed it
            except OSError as error:
                self._appended.update(paths)
                raise _refused(path, error) from error

    def continues_after(self, error: BaseException, said: str) -> bool:
        """Whether the training continues after this failure to write, of which the first is noted.

        Args:
            error: of the write.
            said: the line about it, which ends with `advice`.
        """
        if self.on_error == "stop" or not disk_reason(error):
            return False
        self._failed += 1
        said = said.removesuffix(f". {advice(error)}")
        self._first = self._first or said
        if not self._failing:
            self._failing = True
            again = "The training continues and tries again (training.on_disk_error)"
            self._note(f"note: {said}. {again}: {cure_of(error)}.")
        return True

    def works_again(self) -> None:
        """A checkpoint is on the disk."""
        if self._failing and not self._held:
            self._failing = False
            self._note("note: the disk can be written again; the newest checkpoint is saved.")

    def notices(self) -> list[str]:
        """For the summary: one line if the training continued without something."""
        if not self._failed:
            return []
        return [f"{counted(self._failed, 'write')} failed during the training, first: {self._first}"]

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, b"".join(self._held[path]))
        del self._held[path]
        self._appended.add(path)
