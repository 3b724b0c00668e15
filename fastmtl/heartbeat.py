"""Finds the rank that has ended or hangs, when a collective fails on this one.

Once a second each rank writes to a shared store what its main thread is doing. A rank whose beat does not change has
ended. A rank that does anything but wait for others hangs: it is the one that they wait for.
"""

from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

_SECONDS = 1.0  # between beats
_WATCHED = 3.5  # a rank without a beat for this long has ended
_GRACE = 2.0  # seconds that rank 0 waits before it ends, and the store with it, so that the others can read why
_STORE_SECONDS = 10.0
_WAITING = "waiting"
# A main thread in one of these waits for other ranks.
_COLLECTIVES = (str(Path(dist.__file__).parent), str(Path(__file__).parent / "distributed.py"), __file__)
_COLLECTIVES += (str(Path(__file__).parent / "balance" / "collectives.py"),)


class Heartbeat:
    """This rank's beat, from a thread that starts now.

    Args:
        rank: of this process.
        size: number of ranks.
        host, port: of the ranks' store.
    """

    def __init__(self, rank: int, size: int, host: str, port: int) -> None:
        self._rank, self._size, self._ended = rank, size, threading.Event()
        # A connection of its own: on torch's connection the beat would wait for torch's calls.
        server = TCPStore(host, port, timeout=timedelta(seconds=_STORE_SECONDS))
        self._store = PrefixStore("fastmtl", server)
        self._main = threading.main_thread().ident or 0
        self._beat(0)
        self._thread = threading.Thread(target=self._run, name="fastmtl-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the beat; from then on the others may report that this rank has ended."""
        self._ended.set()
        self._thread.join()

    def leave(self, reason: str) -> None:
        """Tell the others that this rank ends because of an error of its own."""
        self._write(f"end {self._rank}", reason)

    def find_lost(self, seconds: float) -> str:
        """Which ranks have ended or hang, in words; a rank calls it that has waited at most `seconds` for them."""
        try:
            found = self._find_lost(seconds)
            if self._rank == 0:
                time.sleep(_GRACE)
            return found
        except dist.DistError:
            return "rank 0 has ended, which connects the others; see its own error"

    def _find_lost(self, seconds: float) -> str:
        others = [rank for rank in range(self._size) if rank != self._rank]
        before = {rank: self._read(f"beat {rank}") for rank in others}
        until = time.monotonic() + _WATCHED
        while time.monotonic() < until:
            if lost := self._read("lost"):  # another rank has found it, and may have ended since
                return lost
            ended = {rank: self._read(f"end {rank}") for rank in others}
            if any(ended.values()):
                return self._agree([f"rank {rank} has ended: {why}" for rank, why in ended.items() if why])
            time.sleep(_SECONDS / 10)
        now = {rank: self._read(f"beat {rank}") for rank in others}
        dead = [rank for rank in others if now[rank] == before[rank]]
        if dead:
            one = len(dead) == 1
            return self._agree(
                [
                    f"{_ranks(dead)} {'has' if one else 'have'} ended without a message (killed, or out of memory?); "
                    f"see the log of {'its' if one else 'their'} machine"
                ]
            )
        doing = {rank: beat.partition(" ")[2] for rank, beat in now.items()}
        busy = {rank: what for rank, what in doing.items() if what != _WAITING} or doing
        hung = ", ".join(f"rank {rank} ({what})" for rank, what in busy.items())
        return self._agree(
            [f"no answer for {seconds:g} s from {hung}; if it is only slow, raise training.rank_timeout"]
        )

    def _agree(self, lost: list[str]) -> str:
        """Return the first finding of any rank: the rank that found it may end, and others would then report it."""
        return self._store.compare_set("lost", "", "; ".join(lost)).decode()

    def _run(self) -> None:
        number = 0
        while not self._ended.wait(_SECONDS):
            number += 1
            if not self._beat(number):
                return

    def _beat(self, number: int) -> bool:
        return self._write(f"beat {self._rank}", f"{number} {_doing(self._main)}")

    def _write(self, key: str, value: str) -> bool:
        """Whether the store answers; it does not once rank 0 has ended."""
        try:
            self._store.set(key, value)
        except dist.DistError:
            return False
        return True

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""


def _ranks(numbers: list[int]) -> str:
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _doing(thread: int) -> str:
    """What a thread is doing, in one line."""
    frame: Any = sys._current_frames().get(thread)
    if frame is None or frame.f_code.co_filename.startswith(_COLLECTIVES):
        return _WAITING
    return f"in {Path(frame.f_code.co_filename).name}, line {frame.f_lineno}, {frame.f_code.co_name}"
