"""A lock that lets one process at a time work in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .run_dir import RunError


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Lock `folder`, which must exist, against other processes that call this; a file .lock stays in it.

    The system releases the lock when the process ends, even in a crash. On a file system without locks nothing is
    locked.

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
