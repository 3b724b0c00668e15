"""Signals that ask a training to stop: it saves and leaves, so that a cluster can start it again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from ..training.errors import Interrupted
from ..training.run_dir import RunFolder

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_REPEATED = 2.0  # seconds in which torchrun forwards a Ctrl-C that its processes have already received themselves


class _Leave(KeyboardInterrupt):
    """Raised where the program is, because nothing has to be saved."""


class StopSignals:
    """Inside, SIGINT, SIGTERM, SIGUSR1 and SIGHUP end the training of `out` with Interrupted.

    Inside `asking` they call a function, which ends it after the next step; elsewhere they end it at once. A second
    Ctrl-C raises KeyboardInterrupt at once; other repeated signals change nothing, because schedulers send several.
    Signals that are ignored (by nohup, for example) stay ignored. Outside the main thread none is handled.

    Attributes:
        out: the run folder, for the message.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._before: dict[int, Any] = {}
        self._stop: Callable[[], None] | None = None
        self._received = ""
        self._interrupted_at: float | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not None and before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, (_Leave, Interrupted)):
            what = f"stopped by {self._received}" if isinstance(error, _Leave) else str(error)
            command = "torchrun ... -m fastmtl" if os.environ.get("WORLD_SIZE", "1") != "1" else "fastmtl"
            resume = f"continue with: {command} train --resume --out {self.out}"
            then = resume if RunFolder(self.out).exists else "run the same command again"
            raise Interrupted(f"{what}; {then}", of_all_ranks=getattr(error, "of_all_ranks", False)) from None

    @contextmanager
    def asking(self, stop: Callable[[], None]) -> Iterator[None]:
        """Inside, the first signal calls `stop`. At the end, a signal that came too late for it raises Interrupted."""
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None
        if self._received:
            raise Interrupted(f"stopped by {self._received}")

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            before, self._interrupted_at = self._interrupted_at, time.monotonic()
            grace = _REPEATED if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
            if before is not None and self._interrupted_at - before >= grace:
                raise KeyboardInterrupt
        first, self._received = not self._received, self._received or signal.Signals(number).name
        if first and self._stop is None:
            raise _Leave
        if first and self._stop is not None:
            self._stop()
