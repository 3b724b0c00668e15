"""A file on a server: its size and version, and its bytes by range. HTTP by requests, all other schemes by fsspec."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import TypeVar

from .backoff import RemoteFileChanged
from .transport import FileInfo, Transport

_MAX_AGE = 60.0  # seconds after which a server is asked again whether a file changed; reads tell it earlier
_READS_AT_ONCE = 16  # of a process
_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


def transport_of(url: str) -> Transport:
    """Raises ImportError if the package for the URL's scheme is not installed."""
    if url.startswith(("http://", "https://")):
        from .http import HttpFile

        return HttpFile(url)
    from .object_store import ObjectStoreFile

    return ObjectStoreFile(url)


_infos: dict[str, tuple[float, FileInfo]] = {}
_lock = Lock()


def info_of(url: str) -> FileInfo:
    """What the server says of a file, or said within the last minute."""
    with _lock:
        asked, info = _infos.get(url, (float("-inf"), FileInfo(0, "")))
    if time.monotonic() - asked > _MAX_AGE:
        info = transport_of(url).info()
        with _lock:
            _infos[url] = time.monotonic(), info
    return info


def forget_info(url: str) -> None:
    """Ask the server again on next use."""
    with _lock:
        _infos.pop(url, None)


class RemoteFile:
    """A file on a server, open for reading: the same methods as `open_files.OpenFile`."""

    largest_gap = 2**18
    """Bytes between two tiles up to which one request for both is cheaper than two."""

    descriptors = 1

    def __init__(self, url: str):
        self._url, self._transport, self._info = url, transport_of(url), info_of(url)

    def state(self) -> tuple[int, int]:
        """Its bytes, and its version as a number, when it was opened."""
        return self._info.size, self._info.number

    def read_into(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill `buffers` one after the other; returns how many bytes there were.

        Raises:
            OSError: it cannot be read.
        """
        length = sum(map(len, buffers))
        data = memoryview(self.read(offset, offset + length))
        at = 0
        for buffer in buffers:
            part = data[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(buffer)
        return len(data)

    def read(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, fewer at the end of the file. Errors are those of `Transport.read`."""
        end = min(end, self._info.size)
        if end <= start:
            return b""
        try:
            return self._transport.read(start, end, self._info)
        except RemoteFileChanged:
            forget_info(self._url)
            raise

    def each(self, read: Callable[[_Item], _Value], items: Iterable[_Item]) -> Iterator[_Value]:
        """`read` of each item, in order, many at once: each waits for the server."""
        items = list(items)
        return map(read, items) if len(items) == 1 else _pool(os.getpid()).map(read, items)


@lru_cache(1)
def _pool(_process: int) -> ThreadPoolExecutor:
    """The process's own threads: those of a parent are lost when it forks."""
    return ThreadPoolExecutor(_READS_AT_ONCE, "remote slides")
