"""The path of a file on a server."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

from .files import RemoteFile, info_of
from .transport import FileInfo

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(?=[^/])")
_AS_PATH = re.compile(r"(https?|s3|gs|gcs|az|abfss?|memory):/(?=[^/])", re.I)  # `Path` turns two slashes into one
_BLOCK, _MOST_BLOCKS = 2**18, 64


class RemotePath(type(Path())):
    """A file on a server, where a path of this computer is expected: its text is a URL, and it is opened and asked for
    its size over the network. Nothing can be written.

    >>> str(RemotePath("s3://bucket/slides/a.svs")), RemotePath("s3://bucket/slides/a.svs").name
    ('s3://bucket/slides/a.svs', 'a.svs')
    """

    def __str__(self) -> str:
        scheme, *rest = self.parts or (".",)
        return f"{scheme}//{'/'.join(rest)}" if rest else scheme

    @property
    def remote_info(self) -> FileInfo:
        """What the server says of it; OSError if it cannot be read."""
        return info_of(str(self))

    @property
    def local_name(self) -> str:
        """A relative path for what is computed from it.

        >>> RemotePath("http://localhost:80/slides/a.svs").local_name
        'http/localhost-80/slides/a.svs'
        """
        return "/".join(self.parts).replace(":/", "/").replace(":", "-")

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        info = self.remote_info
        whole = info.number // 10**9
        times = [whole, whole, whole, *(float(whole),) * 3, *(info.number,) * 3]
        return os.stat_result([stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, info.size, *times])

    def exists(self, **_: Any) -> bool:
        try:
            return self.remote_info.size >= 0
        except FileNotFoundError:
            return False

    def is_file(self, **_: Any) -> bool:
        return self.exists()

    def is_dir(self, **_: Any) -> bool:
        return False

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def open(self, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if mode != "rb":
            raise OSError(errno.EROFS, "a file on a server can only be read, as bytes", str(self))
        return io.BufferedReader(_Stream(RemoteFile(str(self))), _BLOCK)


class _Stream(io.RawIOBase):
    """A remote file as a stream, for headers that lie in several places."""

    def __init__(self, file: RemoteFile):
        super().__init__()
        self._file, self._at = file, 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.state()[0]}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        number, start = divmod(self._at, _BLOCK)
        if number not in self._blocks:
            self._blocks[number] = self._file.read(number * _BLOCK, (number + 1) * _BLOCK)
        self._blocks.move_to_end(number)
        if len(self._blocks) > _MOST_BLOCKS:
            self._blocks.popitem(last=False)
        view = memoryview(buffer).cast("B")
        part = self._blocks[number][start : start + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


def slide_path(path: str | Path) -> Path:
    """The path of a slide: a `RemotePath` if it is a URL, as text or as `Path` spells it.

    Raises:
        ValueError: a URL of this computer's files, with a password, with parts that a path cannot have, or with a #.
    """
    if isinstance(path, RemotePath):
        return path
    text = str(path)
    if text.lower().startswith(("file:/", "local:/")):
        raise ValueError(f"{text} is a file of this computer; give its path without {text.partition(':')[0]}:")
    found = _URL.match(text) or _AS_PATH.match(text)
    if found is None:
        return Path(path)
    rest = text[found.end() :]
    if "@" in rest.split("/")[0]:  # before any message that has the text
        raise ValueError(f"{found[1]}://... names a user; put user and password into ~/.netrc, out of files and logs")
    if any(part in ("", ".", "..") for part in rest.split("/")):
        raise ValueError(f"{text} has an empty part, '.' or '..', which the address of a slide cannot have")
    if "#" in rest and found[1].lower() in ("http", "https"):  # else the part before it would be read, another file
        raise ValueError(f"{text} has a '#', which ends the address; write %23 if it is in the file's name")
    return RemotePath(f"{found[1].lower()}://{rest}")
