"""Reads whole files: only regular ones, so that no pipe blocks, and of limited size, so that none fills the memory."""

from __future__ import annotations

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
        OSError: it cannot be read.
        ValueError: it has more than `most` bytes, or is a folder, pipe or device, which may never end; the message does
            not name the file.
    """
    with open(path, "rb", opener=_at_once) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("is not a file")
        if state.st_size > most:
            raise ValueError(f"has {state.st_size:,} bytes, more than {most:,}, which are not read")
        data = file.read(most + 1)
    if len(data) > most:  # it grew
        raise ValueError(f"has more than {most:,} bytes, which are not read")
    return data


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its writer
