"""A lock that admits one process at a time to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .run_dir import RunError


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Lock the existing `folder` against other processes that call this; leaves a file .lock in it.

    The system releases the lock when the process ends, even after a crash. On a file system without locks this has no
    effect.

    Raises:
        RunError: another process has the lock; `busy` is the message.
    """
    import fcntl

    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(busy) from None
        except OSError:
            pass  # a file system without locks
        yield
