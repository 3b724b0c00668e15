"""The parts of a training step, by name: timed by a clock, and shown as ranges in profiles."""

from __future__ import annotations

from contextlib import AbstractContextManager, ContextDecorator, nullcontext
from contextvars import ContextVar
from typing import Protocol

import torch


class Clock(Protocol):
    """What times the phases; see `training.step_clock.StepClock`."""

    nvtx: bool  # whether Nsight Systems may show the phases

    def enter(self, name: str) -> None: ...
    def leave(self) -> None: ...
    def paused(self) -> AbstractContextManager[None]:
        """Inside, the clock stands still."""
        ...

    def moved(self, num_bytes: int) -> None:
        """Called with the bytes that an optimizer step reads and writes."""


active_clock: ContextVar[Clock | None] = ContextVar("active_clock", default=None)
"""The clock of the training in progress; a phase costs about two microseconds, with or without one."""


class phase(ContextDecorator):
    """Marks a part of a step: `with phase("forward"): ...`, or as a decorator.

    The time of a phase inside another one counts for the inner one only. torch.profiler and Nsight Systems show the
    phase as a range.

    >>> with phase("optimizer"):
    ...     pass
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def _recreate_cm(self) -> phase:
        return phase(self.name)

    def __enter__(self) -> None:
        self._clock = active_clock.get()
        self._range = None
        if self._clock is not None:
            self._clock.enter(self.name)
            if self._clock.nvtx:
                torch.cuda.nvtx.range_push(self.name)
        if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
            self._range = torch.profiler.record_function(self.name)
            self._range.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._range is not None:
            self._range.__exit__(*error)
        if self._clock is not None:
            if self._clock.nvtx:
                torch.cuda.nvtx.range_pop()
            self._clock.leave()


def not_timed() -> AbstractContextManager[None]:
    """Inside, work that is no part of the training counts for no phase, and not for the time of the epoch."""
    clock = active_clock.get()
    return nullcontext() if clock is None else clock.paused()
