"""The key-value store through which the ranks of one run find each other."""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

_CONNECT_SECONDS = 5.0
_POLL_SECONDS = 0.1
_PLACE, _TOKEN = "fastmtl store", "token"


class RankStore(NamedTuple):
    """A store, and where other connections to it go."""

    store: TCPStore
    host: str
    port: int


def open_store(rank: int, size: int, seconds: float) -> RankStore:
    """Open the store of this run's ranks, which all of them call; `seconds` is how long to wait for rank 0.

    `torchrun`'s own store outlives a restart of the ranks, and with it the addresses of the killed ones. So rank 0
    opens a new store at each start, and says in `torchrun`'s where it is.

    Raises:
        torch.distributed.DistError: rank 0 does not open one in time.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = timedelta(seconds=seconds)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return RankStore(TCPStore(host, port, size, rank == 0, wait, multi_tenant=True), host, port)
    launcher = TCPStore(host, port, size, is_master=False, timeout=wait)
    if rank > 0:
        return _find(launcher, host, wait)
    store = TCPStore(host, 0, size, is_master=True, timeout=wait, wait_for_workers=False)
    token = uuid.uuid4().hex
    store.set(_TOKEN, token)
    launcher.set(_PLACE, f"{store.port} {token}")
    return RankStore(store, host, store.port)


def _find(launcher: TCPStore, host: str, wait: timedelta) -> RankStore:
    """Connect to rank 0's store. The place of an earlier start is refused: nothing listens there, or without the
    token."""
    until = time.monotonic() + wait.total_seconds()
    while time.monotonic() < until:
        port, token = launcher.get(_PLACE).decode().split()
        with suppress(dist.DistError):
            if listens(host, int(port)):
                store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=_CONNECT_SECONDS))
                if store.check([_TOKEN]) and store.get(_TOKEN).decode() == token:
                    store.set_timeout(wait)
                    return RankStore(store, host, int(port))
        time.sleep(_POLL_SECONDS)
    raise dist.DistError(f"rank 0 has opened no store on {host} in {wait.total_seconds():g} s")


def listens(host: str, port: int) -> bool:
    """Whether a connection succeeds. TCPStore would try a closed port for seconds and log a long trace."""
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
