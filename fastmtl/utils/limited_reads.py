"""Reads whole files: only regular ones, so that no pipe blocks, and of limited size, so that none fills the memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_BYTES = 2**30
"""Bytes of a table, of polygons, of records or of an encoded image."""
MAX_JSON = 2**28
"""Bytes of one JSON document of a run or of a configuration."""
MAX_TOML = 2**20
"""Bytes of a recipe."""


def read_whole(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it cannot be read; IsADirectoryError for a folder.
        ValueError: it has more than `most` bytes, or is a pipe or device, which may never end; the message does not
            name the file.
    """
    descriptor = _opened(path)
    try:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("is not a file")
        if state.st_size > most:
            raise ValueError(f"has {state.st_size:,} bytes, more than {most:,}, which are not read")
        data = os.read(descriptor, state.st_size + 1)
        if len(data) != state.st_size:  # it changes at this moment, or comes in pieces
            data = _rest(descriptor, data, most)
    finally:
        os.close(descriptor)
    return data


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would wait for its writer


def _rest(descriptor: int, begin: bytes, most: int) -> bytes:
    parts, size = [begin], len(begin)
    while parts[-1]:
        parts.append(os.read(descriptor, 2**20))
        size += len(parts[-1])
        if size > most:  # it grew
            raise ValueError(f"has more than {most:,} bytes, which are not read")
    return b"".join(parts)
