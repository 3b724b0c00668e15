"""A file on a web server that answers range requests."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache
from time import time
from typing import Any

from ....utils.optional_imports import require
from .backoff import RemoteFileChanged, ServerBusy, with_retries
from .transport import FileInfo

_TIMEOUT = 10, 30  # seconds to connect, and between two packets
_CONNECTIONS = 32  # kept open, of a process to one server
_CHUNK = 2**16  # what a broken connection loses at most
_MAY_PASS = {408, 425, 429, 500, 502, 503, 504}
_NOT_FOUND, _FORBIDDEN = {404, 410}, {401, 403, 407}
_WHOLE, _PART, _BEYOND = 200, 206, 416
_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")


class HttpFile:
    """See `Transport`. Proxies, certificates and names with passwords (~/.netrc) are those of requests."""

    def __init__(self, url: str):
        self._url = url
        self._requests: Any = require("requests", "reading slides from web servers", "remote")

    def info(self) -> FileInfo:
        return with_retries(self._ask)

    def read(self, start: int, end: int, known: FileInfo) -> bytes:
        found = bytearray()

        def attempt() -> bytes:
            self._get(start + len(found), end, known, found)  # after a broken connection only what is missing
            return bytes(found)

        return with_retries(attempt)

    def _ask(self) -> FileInfo:
        with self._response(0, 1) as response:
            info = self._info(response)
            with suppress(self._requests.RequestException):
                next(response.iter_content(2), b"")  # to its end, so that the connection can be used again
            return info

    def _get(self, start: int, end: int, known: FileInfo, found: bytearray) -> None:
        """Append the bytes to `found` as they come."""
        with self._response(start, end) as response:
            if self._info(response) != known:
                raise RemoteFileChanged(None, "changed since it was opened")
            place = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if place is None or place[1] is None or int(place[1]) != start:
                raise ServerBusy("the server sent another range than was asked for")
            missing = end - start
            try:
                for chunk in response.iter_content(_CHUNK):
                    found += chunk[:missing]
                    missing -= len(chunk)
                    if missing < 0:  # reading to the end keeps the connection, but not without end
                        break
            except self._requests.RequestException as error:
                raise ServerBusy(f"the connection broke: {type(error).__name__}") from error
            if missing > 0:
                raise ServerBusy("the connection ended early")

    def _response(self, start: int, end: int) -> Any:
        # Compressed answers would have other lengths than their ranges.
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        try:
            return _session(os.getpid()).get(self._url, headers=headers, stream=True, timeout=_TIMEOUT)
        except ValueError as error:  # without the address itself: a server may redirect to one with a password
            raise OSError(None, f"is not a valid address, or redirects to none: {type(error).__name__}") from error
        except self._requests.RequestException as error:
            raise ServerBusy(f"the server cannot be reached: {type(error).__name__}") from error

    def _info(self, response: Any) -> FileInfo:
        """What an answer says of the file; OSError for one without a part of it."""
        status, headers = response.status_code, response.headers
        if status in _MAY_PASS:
            raise ServerBusy(f"the server answers {status} {response.reason}", _seconds(headers.get("Retry-After", "")))
        if status in _NOT_FOUND:
            raise FileNotFoundError(None, "No such file on the server")
        if status in _FORBIDDEN:
            raise PermissionError(
                None, f"the server answers {status} {response.reason}; it may need a line in ~/.netrc"
            )
        if status == _WHOLE:
            raise OSError(None, "the server sends whole files instead of ranges of bytes; copy the slide and read that")
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if status not in (_PART, _BEYOND) or found is None:
            raise OSError(None, f"the server answers {status} {response.reason}")
        return FileInfo(int(found[3]), headers.get("ETag") or headers.get("Last-Modified") or "")


@lru_cache(1)
def _session(_process: int) -> Any:
    """The process's own connections: two processes would mix their answers on one."""
    requests = require("requests", "reading slides from web servers", "remote")
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_connections=8, pool_maxsize=_CONNECTIONS))
    return session


def _seconds(text: str) -> float:
    """The pause of a header Retry-After: seconds, or a date; 0 for anything else."""
    try:
        return max(0.0, float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError):
        return 0.0
