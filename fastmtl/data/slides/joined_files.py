"""A slide that is several files: they are read as one, in which each file begins at a multiple of `PART` bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

PART = 2**40
"""Bytes from the start of one file to that of the next: more than a file has."""

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


class FilePart(NamedTuple):
    """One of the files.

    Attributes:
        name: in the slide's folder.
        size: bytes.
        modified: time of change, nanoseconds.
    """

    name: str
    size: int
    modified: int


class PartChanged(OSError):
    """A file is not the one that was scanned."""


def state_of(parts: Sequence[FilePart]) -> tuple[int, int]:
    """The bytes of all files, and a number that differs if any of them changed; of this process."""
    return sum(part.size for part in parts), hash(tuple(parts))


def end_of(parts: Sequence[FilePart], offset: int) -> int:
    """Where the file that `offset` lies in ends."""
    number = offset // PART
    return number * PART + parts[number].size if number < len(parts) else 0


class JoinedFiles:
    """The files, open for reading as one, each from its first use on: the same methods as `open_files.OpenFile`."""

    largest_gap = 2**14  # as `OpenFile`'s

    def __init__(self, folder: Path, parts: Sequence[FilePart]):
        self._folder, self._parts = folder, parts
        self._descriptors: dict[int, int] = {}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be None at interpreter exit
        for descriptor in self._descriptors.values():
            close(descriptor)

    @property
    def descriptors(self) -> int:
        return max(1, len(self._descriptors))

    def state(self) -> tuple[int, int]:
        """`state_of` the files: of those that are open as they are now."""
        now = list(self._parts)
        for number, descriptor in tuple(self._descriptors.items()):
            status = os.fstat(descriptor)
            now[number] = FilePart(now[number].name, status.st_size, status.st_mtime_ns)
        return state_of(now)

    def read_into(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill `buffers` one after the other from `offset`; returns how many bytes there were.

        Raises:
            PartChanged: a file is not the one that was scanned.
            OSError: it cannot be read.
        """
        number, at = divmod(offset, PART)
        return os.preadv(self._opened(number), buffers, at)

    def each(self, read: Callable[[_Item], _Value], items: Iterable[_Item]) -> Iterator[_Value]:
        """`read` of each item, in order."""
        return map(read, items)

    def _opened(self, number: int) -> int:
        if number not in self._descriptors:
            part = self._parts[number]
            try:
                descriptor = os.open(self._folder / part.name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise OSError(error.errno, f"{part.name}: {error.strerror}") from error
            if self._descriptors.setdefault(number, descriptor) != descriptor:  # another thread was first
                os.close(descriptor)
            status = os.fstat(self._descriptors[number])
            if (status.st_size, status.st_mtime_ns) != part[1:]:
                raise PartChanged(None, f"{part.name} changed")
        return self._descriptors[number]
