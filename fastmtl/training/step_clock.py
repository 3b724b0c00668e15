"""Where the time of an epoch goes: images per second, the share of each phase of the steps, and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..protocols import Batch
from ..utils.phases import active_clock, phase

_MOST_EVENTS = 4096  # on a GPU, between two calls of `so_far`
_PAUSED = "paused"


class StepClock:
    """Times the phases (`utils.phases`) of one epoch, while its batches are `timed`.

    On a CPU it reads the time at every change of phase. On a GPU it records an event in the stream there, and reads
    them only in `so_far`, at log steps: the shares are those of the device's time, and "loader" is the time in which
    the device had nothing to do because the batch was missing.

    Args:
        device: of the training.
        num_ranks: processes, each of which trains on as many images.
    """

    def __init__(self, device: torch.device, num_ranks: int = 1) -> None:
        self.nvtx = device.type == "cuda"
        self._device, self._num_ranks = device, num_ranks
        self._images, self._waited, self._paused, self._moved = 0, 0.0, 0.0, 0
        self._loader: Iterable[Batch] = ()
        self._use_before = (0, 0)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._events: deque[tuple[str, torch.cuda.Event]] = deque()  # each ends a stretch of this phase
        self._unused: list[torch.cuda.Event] = []
        self._started = self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the epoch began, without pauses."""
        return time.perf_counter() - self._started - self._paused

    def enter(self, name: str) -> None:
        """Begin a phase inside the current one."""
        self._mark()
        self._open.append(name)

    def leave(self) -> None:
        """End the current phase."""
        self._mark()
        self._open.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still."""
        started = time.perf_counter()
        self.enter(_PAUSED)
        try:
            yield
        finally:
            self.leave()
            self._paused += time.perf_counter() - started

    def moved(self, num_bytes: int) -> None:
        """Count memory that an optimizer step reads and writes."""
        self._moved += num_bytes

    def timed(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches, while this is the active clock; waiting for them is the phase "loader"."""
        batches = iter(loader)
        self._loader, self._use_before = loader, _tile_use(loader)
        active_clock.set(self)
        try:
            while True:
                started = self.seconds
                with phase("loader"):
                    batch = next(batches, None)
                self._waited += self.seconds - started
                if batch is None:
                    return
                self._images += len(batch)
                yield batch
        finally:
            if active_clock.get() is self:  # after an error another clock may be active by now
                active_clock.set(None)

    def so_far(self) -> dict[str, Any]:
        """Figures of the epoch until now; waits for a GPU.

        Returns:
            "images_per_second" of all ranks; "waiting", the share of this process's time in which it waited for data;
            "time", phase -> share of the time, 1 in total but for rounding; "memory_bytes", see `memory_bytes`; with a
            fused step "update_gb_per_second", memory read and written in the phase "optimizer"; with slides of large
            tiles "reused_tiles", the share that did not have to be decoded (see `TileLoader.tile_use`).
        """
        self._mark()
        self._read(wait=True)
        seconds, spent = self.seconds, {name: one for name, one in self._seconds.items() if name != _PAUSED}
        total = sum(spent.values()) or 1.0
        found: dict[str, Any] = {
            "images_per_second": self._images * self._num_ranks / seconds,
            "waiting": self._waited / seconds,
            "time": {name: share for name, one in spent.items() if (share := round(one / total, 4))},
            "memory_bytes": memory_bytes(self._device),
        }
        if self._moved:
            found["update_gb_per_second"] = self._moved / 1e9 / self._seconds["optimizer"]
        reused, decoded = (now - before for now, before in zip(_tile_use(self._loader), self._use_before, strict=True))
        if reused + decoded:
            found["reused_tiles"] = reused / (reused + decoded)
        return found

    def _mark(self) -> None:
        """End a stretch of the current phase."""
        name = self._open[-1] if self._open else "other"
        if not self.nvtx:
            now = time.perf_counter()
            self._seconds[name] += now - self._last
            self._last = now
            return
        event = self._unused.pop() if self._unused else torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((name, event))
        if len(self._events) > _MOST_EVENTS:
            self._read(wait=False)

    def _read(self, *, wait: bool) -> None:
        """Add up the events that have happened; the last one stays as the beginning of the next stretch."""
        if wait and self._events:
            self._events[-1][1].synchronize()
        while len(self._events) > 1 and self._events[1][1].query():
            _, begin = self._events.popleft()
            name, end = self._events[0]
            self._seconds[name] += begin.elapsed_time(end) / 1000
            self._unused.append(begin)


def _tile_use(loader: Iterable[Batch]) -> tuple[int, int]:
    """Large tiles that were reused and decoded until now; zeros for a loader that does not count them."""
    return getattr(loader, "tile_use", (0, 0))


def memory_bytes(device: torch.device) -> int:
    """The peak memory of tensors on the GPU; on a CPU the memory of this process now (its peak, where the system does
    not report the current one)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, others kibibytes
