"""A web server on this computer that answers range requests, and can be told to fail."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class RangeServer:
    """Serves the files of `folder`.

    Attributes:
        failures: what the next answers are instead: a status, "cut" for half of the body and a broken connection, or
            the address of a redirection.
        tags: whether answers have an ETag.
        ranges: whether ranges are answered; else the whole file is.
        requests: the ranges that were asked for, (first, last).
    """

    folder: Path
    address: str = ""
    failures: list[int | str] = field(default_factory=list)
    tags: bool = True
    ranges: bool = True
    requests: list[tuple[int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    state = RangeServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            first, last = (int(at) for at in re.findall(r"\d+", self.headers["Range"]))
            with state.lock:
                state.requests.append((first, last))
                failure = state.failures.pop(0) if state.failures else None
            if isinstance(failure, str) and failure != "cut":
                return self._answer(302, b"", {"Location": failure})
            path = folder / self.path.lstrip("/")
            if isinstance(failure, int):
                return self._answer(failure, b"", {"Retry-After": "0"})
            if not path.is_file():
                return self._answer(404, b"", {})
            data, changed = path.read_bytes(), path.stat().st_mtime_ns
            headers = {"ETag": f'"{changed:x}-{len(data)}"'} if state.tags else {}
            if not state.ranges:
                return self._answer(200, data, headers)
            if first >= len(data):
                return self._answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
            part = data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
            return self._answer(206, part, headers, cut=failure == "cut")

        def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection |= cut

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a reader that leaves in the middle of an answer

    server = Server(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
