"""Limits of time and memory for a test of hostile files."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class OverBudget(AssertionError):
    """It took too long or too much memory."""


@contextmanager
def limits(seconds: float, megabytes: int) -> Iterator[None]:
    """OverBudget if the block takes longer, or raises this process's peak memory by more."""

    def late(_number: int, _frame: object) -> None:
        raise OverBudget(f"took more than {seconds} seconds")

    main = threading.current_thread() is threading.main_thread()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, late) if main else None
    try:
        if main:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if more > megabytes:
        raise OverBudget(f"took {more:.0f} MB more, and {megabytes} are allowed")
