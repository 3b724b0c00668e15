"""One line for an error that all ranks of `torchrun` have: rank 0 prints it, and the others leave it out.

A rank leaves a line out only once rank 0 has said, in torchrun's store, that it has printed the same one. Otherwise it
prints it: an error that only one rank has, and any error if rank 0 does not answer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

_SECONDS = 4.0  # more than rank 0 waits after a lost rank (heartbeat.py)
_POLL_SECONDS = 0.1


def say_printed(line: str) -> None:
    """Note in torchrun's store that this rank, rank 0, has printed `line`."""
    with suppress(Exception):  # the store may be gone: the others print it too
        if (store := _store()) is not None:
            store.set(_key(), line)


def printed_by_rank_0(line: str) -> bool:
    """Whether rank 0 has printed `line`, or does so in the next seconds; another rank calls it."""
    with _ignoring_sigterm(), suppress(Exception):
        until, store = time.monotonic() + _SECONDS, _store()
        while store is not None and time.monotonic() < until:
            if store.check([_key()]):
                return store.get(_key()).decode() == line
            time.sleep(_POLL_SECONDS)
    return False


@contextmanager
def _ignoring_sigterm() -> Iterator[None]:
    """torchrun sends SIGTERM to the other ranks once one has ended: inside, it does not end this process."""
    try:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _key() -> str:
    return f"fastmtl printed, start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store() -> Any:
    """torchrun's store; None if there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    from ..rank_store import listens

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not listens(host, port):
        return None
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_SECONDS))
