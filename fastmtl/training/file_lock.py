"""A lock that admits one process at a time to a folder."""

from __future__ import annotations

import errno
import os
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
        RunError: another process has the lock; `busy` is the message. Or .lock is a link, a folder or a pipe.
    """
    import fcntl

    file = _opened(folder / ".lock")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(busy) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(file)


def _opened(path: Path) -> int:
    """Follows no link, which could make a file elsewhere, and waits for no reader of a pipe."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise RunError(
            f"{path} is not the file that fastmtl locks, but a link, a folder or a pipe; remove it."
        ) from None
