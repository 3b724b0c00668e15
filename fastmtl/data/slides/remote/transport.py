"""What reading a file on a server takes: its size and version, and its bytes by range."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple, Protocol


class FileInfo(NamedTuple):
    """What a server says of a file.

    Attributes:
        size: bytes.
        version: its ETag, or else its time of change, in the server's words; "" if it gives neither.
    """

    size: int
    version: str

    @property
    def number(self) -> int:
        """The version as a number, in place of a time of change."""
        return int.from_bytes(blake2b(self.version.encode(), digest_size=7).digest(), "big")


class Transport(Protocol):
    """One file on a server. Thread-safe."""

    def info(self) -> FileInfo:
        """The file as it is now; OSError if there is none, or it may not be read."""
        ...

    def read(self, start: int, end: int, known: FileInfo) -> bytes:
        """Bytes `start` to `end`, fewer at the end of the file.

        Raises:
            RemoteFileChanged: the file is no longer `known`.
            OSError: it cannot be read, after all tries.
        """
        ...
