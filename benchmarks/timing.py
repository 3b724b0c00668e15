"""How one run is timed: by the clock, or on a GPU by events around replays of a captured graph.

A replay has no launch latency of Python's: it is the kernels' own time, as in a training step that is captured or runs
ahead of the device. By the clock, launches count, as in eager training.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .registry import Run

Timer = Callable[[], float]  # seconds of one run
_REPLAY_SECONDS = 2e-3  # replayed for at least this long, because an event resolves half a microsecond


def timer(run: Run, device: torch.device, *, eager: bool, cold: bool) -> tuple[Timer, str]:
    """A timer of `run`, and how it measures: "clock", "graph", or "clock (no graph: REASON)" where a run cannot be
    captured, for example because it waits for the device."""
    if device.type != "cuda" or eager:
        return lambda: by_clock(run, device), "clock"
    try:
        graph = _capture(run, device)
    except Exception as error:
        torch.cuda.synchronize(device)
        return lambda: by_clock(run, device), f"clock (no graph: {type(error).__name__})"
    once = _replay(graph, device, 1)
    number = 1 if cold else max(1, round(_REPLAY_SECONDS / max(once, 1e-6)))
    return lambda: _replay(graph, device, number), "graph"


def by_clock(run: Run, device: torch.device) -> float:
    """Seconds from the call until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _capture(run: Run, device: torch.device) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles and fills caches, which a capture does not allow
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def _replay(graph: torch.cuda.CUDAGraph, device: torch.device, number: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(number):
        graph.replay()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3 / number
