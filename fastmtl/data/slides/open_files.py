"""Open slide files of a process: only the most recently used ones stay open."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import TypeVar

from .joined_files import FilePart, JoinedFiles
from .remote.files import RemoteFile
from .remote.path import RemotePath

_MOST_OPEN = 128
_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


class OpenFile:
    """A file open for reading, closed with its last reference, so never while a thread reads."""

    largest_gap = 2**14
    """Unused bytes up to about this number are read faster than another call takes."""

    descriptors = 1

    def __init__(self, path: Path):
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be None at interpreter exit
        if self._descriptor >= 0:
            close(self._descriptor)

    def state(self) -> tuple[int, int]:
        """Its bytes and time of change, nanoseconds, now."""
        status = os.fstat(self._descriptor)  # takes a microsecond
        return status.st_size, status.st_mtime_ns

    def read_into(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill `buffers` one after the other from `offset`; returns how many bytes there were. Raises OSError."""
        return os.preadv(self._descriptor, buffers, offset)

    def each(self, read: Callable[[_Item], _Value], items: Iterable[_Item]) -> Iterator[_Value]:
        """`read` of each item, in order."""
        return map(read, items)


class _OpenFiles:
    """The most recently used files by reader; thread-safe."""

    def __init__(self) -> None:
        self._files: OrderedDict[int, OpenFile | RemoteFile | JoinedFiles] = OrderedDict()
        self._lock = RLock()  # a slide may be garbage-collected, and close, in a thread that opens another one

    def get(self, reader: object, path: Path, parts: Sequence[FilePart] = ()) -> OpenFile | RemoteFile | JoinedFiles:
        """The reader's file, or its files in the folder of `path`; OSError where it cannot be opened."""
        with self._lock:
            file = self._files.pop(id(reader), None) or _opened(path, parts)
            self._files[id(reader)] = file
            while len(self._files) > 1 and sum(one.descriptors for one in self._files.values()) > _MOST_OPEN:
                self._files.popitem(last=False)
            return file

    def close(self, reader: object) -> None:
        """Close the reader's file; it opens again on its next use."""
        with self._lock:
            self._files.pop(id(reader), None)


def _opened(path: Path, parts: Sequence[FilePart]) -> OpenFile | RemoteFile | JoinedFiles:
    if parts:
        return JoinedFiles(path if path.is_dir() else path.parent, parts)
    return RemoteFile(str(path)) if isinstance(path, RemotePath) else OpenFile(path)


open_files = _OpenFiles()
