"""Open slide files of a process: only the most recently used ones stay open."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import RLock

_MOST_OPEN = 128


class OpenFile:
    """A file open for reading, closed with its last reference, so never while a thread reads.

    Attributes:
        descriptor: the system's number of it.
    """

    def __init__(self, path: Path):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be None at interpreter exit
        if self.descriptor >= 0:
            close(self.descriptor)


class _OpenFiles:
    """The most recently used files by reader; thread-safe."""

    def __init__(self) -> None:
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = RLock()  # a slide may be garbage-collected, and close, in a thread that opens another one

    def get(self, reader: object, path: Path) -> OpenFile:
        """The reader's file; OSError where it cannot be opened."""
        with self._lock:
            file = self._files.pop(id(reader), None) or OpenFile(path)
            self._files[id(reader)] = file
            while len(self._files) > _MOST_OPEN:
                self._files.popitem(last=False)
            return file

    def close(self, reader: object) -> None:
        """Close the reader's file; it opens again on its next use."""
        with self._lock:
            self._files.pop(id(reader), None)


open_files = _OpenFiles()
