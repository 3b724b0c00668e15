"""Measures a case: first parity, then all contenders in turn in one process, so that drift affects all equally."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmtl import ops

from .registry import Case, Run
from .timing import Timer, by_clock, timer

_NO_INPUTS, _MISSING = "no inputs: ", "not installed: "


@dataclass(frozen=True)
class Row:
    """One contender in one case. Times in milliseconds, memory in bytes; `note` says why they are missing, `timing` how
    they were measured (see `timing.timer`)."""

    contender: str
    p20: float = float("nan")
    p50: float = float("nan")
    p80: float = float("nan")
    ratio: float = float("nan")  # time divided by fastmtl's time, median over rounds
    peak_bytes: int = 0
    note: str = ""
    timing: str = ""


def measure(case: Case, device: torch.device, rounds: int, cold: bool = False, eager: bool = False) -> list[Row]:
    """Measure every contender of `case`; a missing, wrong or out-of-memory contender gets a row with a note. On a GPU,
    `eager` includes the latency of launches."""
    try:
        inputs = case.make(device)
        truth = case.truth(inputs)
    except Exception as error:
        return [Row(name, note=_NO_INPUTS + reason(error)) for name in case.contenders]
    runs: dict[str, Run] = {}
    notes: dict[str, str] = {}
    peaks: dict[str, int] = {}
    for name, contender in case.contenders.items():
        try:
            run = contender(inputs)
            error = difference(run(), truth)
            if error <= case.tolerance:
                peaks[name] = peak_memory(run, device)
                runs[name] = run
            else:
                notes[name] = f"parity failed: relative error {error:.1e} > {case.tolerance:.0e}"
        except Exception as failure:  # a peer may fail in any way, which must not stop the others
            notes[name] = reason(failure)
    timers = {name: timer(run, device, eager=eager, cold=cold) for name, run in runs.items()}
    times = interleave({name: pair[0] for name, pair in timers.items()}, device, rounds, cold, notes)
    first = next(iter(case.contenders))
    rows = []
    for name in case.contenders:
        if name in notes:
            rows.append(Row(name, note=notes[name]))
            continue
        seconds = times[name]
        ratio = float("nan")
        if first in times:
            ratio = statistics.median(b / a for a, b in zip(times[first], seconds, strict=True))
        p20, p50, p80 = (1e3 * quantile(seconds, share) for share in (0.2, 0.5, 0.8))
        rows.append(Row(name, p20, p50, p80, ratio, peaks[name], timing=timers[name][1]))
    return rows


def reason(error: Exception) -> str:
    """A short reason why a row has no figures."""
    if isinstance(error, ImportError):
        return f"{_MISSING}{error.name or error}"
    # torch's CPU allocator does not have its own exception type.
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"failed: {type(error).__name__}" + (f": {lines[0][:120]}" if lines else "")


def is_missing(note: str) -> bool:
    """Whether figures are missing only because a package is not installed."""
    return note.removeprefix(_NO_INPUTS).startswith(_MISSING)


def difference(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Largest error of any output, relative to that output's largest value; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(found, truth, strict=True):
        scale = b.abs().max().clamp(min=1e-30)
        error = ((a.double() - b.double()).abs().max() / scale).item()
        worst = max(worst, error if error == error else float("inf"))
    return worst


def interleave(
    timers: Mapping[str, Timer], device: torch.device, rounds: int, cold: bool, notes: dict[str, str]
) -> dict[str, list[float]]:
    """Seconds per run; each round times every contender once. `cold` clears the caches before every run.

    A contender that fails on the way is dropped, with the reason in `notes`.
    """
    sweep = torch.ones(2**26, device=device) if cold else None  # 256 MiB, more than any cache
    times: dict[str, list[float]] = {name: [] for name in timers}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, seconds in timers.items():
                if name not in times:
                    continue
                if sweep is not None:
                    sweep.add_(1)
                try:
                    times[name].append(seconds())
                except Exception as failure:
                    notes[name] = reason(failure)
                    del times[name]
    finally:
        gc.enable()
    return times


def recording_cost(device: torch.device) -> float:
    """Seconds that measuring adds to a run: two clock readings, and on a GPU two synchronisations."""
    return statistics.median(by_clock(tuple, device) for _ in range(101))


def peak_memory(run: Run, device: torch.device) -> int:
    """Peak bytes that torch's allocator holds during one run, beyond what it held before; outputs count."""
    ops.release_memory()  # otherwise the output's memory, kept from the parity run, would count as held before
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler warns about every freed block that is older than itself, and when it starts; older blocks are not
    # counted.
    with (
        _without("Memory block of unknown size", "SyncActivityProfilerHandler"),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()  # type: ignore[attr-defined]
            peak = max(peak, held)
    return peak


def quantile(values: list[float], share: float) -> float:
    """Interpolate linearly between the two nearest values, so that a share of 0.5 gives the median.

    >>> quantile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.5
    """
    ordered, place = sorted(values), share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@contextmanager
def _without(*noises: str) -> Iterator[None]:
    """Hide lines with one of `noises` on standard error, C++'s too; other lines are printed at the end of the block."""
    sys.stderr.flush()
    outside = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(outside, 2)
            os.close(outside)
            caught.seek(0)
            for line in caught:
                if not any(noise.encode() in line for noise in noises):
                    os.write(2, line)


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel after every run.

    By default blocks over 32 MB are mapped anew each time, and zeroing their pages costs several times what the fastest
    contenders take: all would be charged for the kernel's work, and by how much would change from run to run.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy, counting bytes read and written: the upper limit for memory-bound kernels."""
    num_bytes = 2**32 if device.type == "cuda" else 2**28  # a GPU copies 256 MiB in the time of a few launches
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    best = min(by_clock(lambda: (target.copy_(source),), device) for _ in range(7))
    return 2 * num_bytes / best
