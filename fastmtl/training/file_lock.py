"""Folders that one process at a time works in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .run_dir import RunError


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Keep other processes that ask out of `folder`, which must be there; a file .lock stays in it.

    The system lets go of the lock when the process ends, however it does. On a file system without locks nothing is
    kept out.

    Raises:
        RunError: another process has it; says `busy`.
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
