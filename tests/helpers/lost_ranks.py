"""Gloo ranks of which one dies, hangs, fails or differs, for tests/training/test_lost_ranks.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import torch

from fastmtl.distributed import World

TIMEOUT = 4.0


def _rank(rank: int, ranks: int, port: int, folder: str, how: str, bad: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    world, file = World.from_environment(), Path(folder) / f"{rank}.txt"
    try:
        with world.initialize(torch.device("cpu"), TIMEOUT):
            world.sum(torch.ones(1))
            started = time.monotonic()
            if rank == bad:
                _misbehave(how)
            if how == "differs":
                world.require_equal({"torch": "2.12" if rank == bad else "2.13", "training tiles": "7"})
            for _ in range(3):
                world.sum(torch.ones(1))
        file.write_text("0 nothing was raised")
    except Exception as error:
        file.write_text(f"{time.monotonic() - started:.1f} {type(error).__name__}: {error}")


def _misbehave(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hangs":
        time.sleep(2.5 * TIMEOUT)
    if how == "fails":
        raise ValueError("tile 7 cannot be read\nmore about it")


def run(folder: Path, how: str, *, ranks: int = 3, bad: int = 1) -> dict[int, tuple[float, str]]:
    """What each rank raised, and after how many seconds; a killed one is missing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = multiprocessing.get_context("spawn").Process
    processes = [start(target=_rank, args=(rank, ranks, port, str(folder), how, bad)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        assert process.exitcode is not None
    found = {}
    for rank in range(ranks):
        if (file := folder / f"{rank}.txt").exists():
            seconds, _, message = file.read_text().partition(" ")
            found[rank] = float(seconds), message
    return found
