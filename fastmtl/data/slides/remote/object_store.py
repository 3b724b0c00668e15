"""A file of an object store or another file system of fsspec: s3://, gs://, az:// and others."""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from typing import Any

from ....utils.optional_imports import MissingExtra, install_command, require
from .backoff import RemoteFileChanged, ServerBusy, with_retries
from .transport import FileInfo

_CHECKED_EVERY = 1.0  # seconds between questions whether the file changed, for stores that cannot tell with each read
_VERSION = (
    *("VersionId", "version_id", "generation", "ETag", "etag", "md5", "content_md5", "LastModified", "last_modified"),
    *("mtime", "updated", "created"),
)
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)


class ObjectStoreFile:
    """See `Transport`. Credentials are those of the store's own package, such as s3fs."""

    def __init__(self, url: str):
        fsspec = require("fsspec", "reading slides from object stores", "remote")
        try:
            self._store, self._name = fsspec.core.url_to_fs(url)
        except ImportError as error:
            how = f": {install_command('s3fs')}" if "s3fs" in str(error) else ""
            raise MissingExtra(f"{url}: {error}{how}") from error
        except ValueError as error:
            raise OSError(None, f"has a scheme that fsspec does not know: {error}") from error
        self._free: SimpleQueue[Any] = SimpleQueue()  # handles that no thread reads with
        self._checked = float("-inf")

    def info(self) -> FileInfo:
        return with_retries(self._ask)

    def read(self, start: int, end: int, known: FileInfo) -> bytes:
        found = bytearray()

        def attempt() -> bytes:
            if time.monotonic() - self._checked > _CHECKED_EVERY:
                self._check(known)
            try:
                found.extend(self._part(start + len(found), end, known))
            except _LASTING as error:
                raise OSError(None, _said(error)) from error
            except Exception as error:  # each store has its own types
                self._check(known)  # S3 refuses to read from a file that changed
                raise ServerBusy(_said(error)) from error
            if len(found) < end - start:
                raise ServerBusy("the connection ended early")
            return bytes(found)

        return with_retries(attempt)

    def _part(self, start: int, end: int, known: FileInfo) -> bytes:
        try:
            handle = self._free.get_nowait()
        except Empty:
            handle = self._store.open(self._name, "rb", cache_type="none")
            self._check(known)  # S3 compares each read with the file that the handle was opened for
        handle.seek(start)  # a handle that fails is not used again
        data = handle.read(end - start)
        self._free.put(handle)
        return data

    def _check(self, known: FileInfo) -> None:
        if self._ask() != known:
            raise RemoteFileChanged(None, "changed since it was opened")
        self._checked = time.monotonic()

    def _ask(self) -> FileInfo:
        try:
            self._store.invalidate_cache()
            words = self._store.info(self._name)
        except FileNotFoundError as error:
            raise FileNotFoundError(None, "No such file on the server") from error
        except _LASTING as error:
            raise OSError(None, _said(error)) from error
        except Exception as error:
            raise ServerBusy(_said(error)) from error
        if words.get("type") == "directory":
            raise IsADirectoryError(None, "is a folder, not a file")
        if words.get("size") is None:
            raise OSError(None, "the store does not say how many bytes it has")
        return FileInfo(int(words["size"]), " ".join(f"{key}={words[key]}" for key in _VERSION if words.get(key)))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:200]
